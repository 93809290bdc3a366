"""What an audit shows while it goes on."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console
from rich.progress import Progress

from vauban.audits.plan import Estimate, Plan, Unit
from vauban.cli.watch import Bars, Lines, duration, estimate_text
from vauban.engine.case import Check
from vauban.engine.gate import Refusal
from vauban.schema.log import Attempt
from vauban.schema.threat import ThreatModel

THREAT = ThreatModel.of("linf:0.1")
UNIT = Unit(Check(id="evasion.pgd", threat=THREAT), "a", Estimate(100, 50))
NOT = Unit(Check(id="evasion.fgsm", threat=THREAT), "b", refusal=Refusal("skipped", "why"))
DONE = Attempt(check="evasion.pgd", threat="linf:0.1", state="assessed")


def go(watcher: Lines) -> None:
    """A defence, then two audits, as in a hardening."""
    watcher.step(1, 3, "training")
    for _ in range(2):
        watcher.planned(Plan((UNIT, NOT), ()), 0)
        watcher.started(UNIT)
        watcher.step(1, 2)
        watcher.ended(UNIT, DONE, False)
        watcher.ended(NOT, Attempt(check="evasion.fgsm", state="skipped", reason="why"), False)


def test_one_line_for_each_finished_unit(capsys: pytest.CaptureFixture[str]) -> None:
    go(Lines())
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("[1/1] done  evasion.pgd linf:0.1") == 2
    assert "1 checks, 1 left out; at most 100 queries" in err


def test_bars_take_the_same_calls() -> None:
    screen = StringIO()
    with Progress(console=Console(file=screen, force_terminal=True)) as progress:
        go(Bars(progress))
        assert [t.completed for t in progress.tasks] == [1, 1]
    assert "evasion.pgd" in screen.getvalue()


@pytest.mark.parametrize(("seconds", "words"), [(0.1, "1 s"), (45, "45 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_an_unknown_time_is_not_shown() -> None:
    assert estimate_text(Estimate(1, 0, 2)) == "at most 1 queries, 2 trainings"
