"""What an audit shows while it goes on."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console
from rich.progress import Progress

from vauban.audits.plan import Estimate, Plan, Unit
from vauban.cli.watch import Bars, Lines, duration, estimate_text, screen
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


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_tell_what_is_left_of_a_slow_training(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = Lines(clock)
    lines.note("defending: TRADES")
    for epoch in range(4, 10):  # it was interrupted after three
        clock.now += 12
        lines.step(epoch, 9, "trades")
    told = [line.strip() for line in capsys.readouterr().err.splitlines()[1:]]
    assert told == ["defending: TRADES: 6 of 9, about 36 s left"]
    lines.note("defending: Distillation")
    lines.step(1, 3, "training the teacher")
    clock.now += 60
    lines.step(2, 3, "training the student")
    assert "defending: Distillation, training the student: 2 of 3, about 30 s left" in capsys.readouterr().err


def test_bars_tell_what_is_left_where_an_epoch_takes_minutes() -> None:
    clock, text = Clock(), StringIO()
    progress = screen(console=Console(file=text, force_terminal=True, width=120), get_time=clock, auto_refresh=False)
    bars = Bars(progress)
    for epoch in range(1, 4):
        clock.now += 200
        bars.step(epoch, 6, "trades")
    assert progress.tasks[0].time_remaining == 600
    with progress.console.capture() as shown:
        progress.console.print(progress.get_renderable())
    assert "trades" in shown.get()
    assert "0:10:00" in shown.get()
    bars.step(4, 6, "another")
    assert progress.tasks[0].description == "another"


@pytest.mark.parametrize(("seconds", "words"), [(0.1, "1 s"), (45, "45 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_an_unknown_time_is_not_shown() -> None:
    assert estimate_text(Estimate(1, 0, 2)) == "at most 1 queries, 2 trainings"
