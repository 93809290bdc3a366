"""A defence chosen by experiment: what is tried, what is chosen, what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vauban
from vauban.audits.choose import Auto, _Contest, _Record
from vauban.audits.trials import Bench, Candidate
from vauban.core.data import Data
from vauban.parts.training import fit
from vauban.schema.errors import BadData, BadOption, CorruptFile, NotOffered, UnknownName
from vauban.schema.log import Trial

QUICK = {"candidates": "train.pgd,preprocess.squeeze", "rounds": 1, "first": 10, "rows": 24}


def data(rows: int = 240) -> Data:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(rows) % 2
    x = (0.35 * torch.rand(rows, 6, generator=g) + 0.3 * y[:, None]).clamp(0, 1)
    return Data(x[:-40], y[:-40], x[-40:], y[-40:], id="blobs")


def net(bend: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Leans on one feature above all, which is easily moved."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), bend(), nn.Linear(8, 2))
    known = data()
    return fit(module, known.x_train * torch.eye(6)[0], known.y_train, seed=0, epochs=60, rate=1e-2)


def harden(folder: Path | None, model: Any = None, rows: Any = None, **more: Any) -> Any:
    settings = {"auto": {**QUICK, **more.pop("auto", {})}}
    how = {"profile": "smoke", "include": ["evasion.pgd"], "formats": ("json", "html"), **more}
    target = vauban.target(model if model is not None else net(), bounds=(0, 1), classes=2)
    return vauban.harden(
        target, rows or data(), defence="auto", threat="linf:0.1", out=folder, settings=settings, **how
    )


def test_it_tries_chooses_and_says_why(tmp_path: Path) -> None:
    after = harden(tmp_path / "run")
    choice = after.comparison.choice
    assert {t.defence for t in choice.trials} == {"", "train.pgd", "preprocess.squeeze"}
    assert choice.defence == "train.pgd"
    assert choice.runner_up == "preprocess.squeeze"
    assert choice.settings == {"epochs": 30}
    assert after.comparison.defence == "train.pgd"
    assert all(t.clean is not None and len(t.outcomes) == 24 for t in choice.trials)
    assert "train.pgd held" in choice.reasons[0]
    assert "runner-up, preprocess.squeeze" in choice.reasons[1]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "How the defence was chosen" in page
    assert ">squeeze</text>" in page
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["before_after"]["choice"]["defence"] == "train.pgd"


def test_trials_that_were_made_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = harden(tmp_path / "run")
    monkeypatch.setattr(Bench, "_made", lambda *_: pytest.fail("tried again"))
    again = harden(tmp_path / "run")
    assert again.comparison == first.comparison
    (tmp_path / "run" / "trials.json").write_text("{")
    with pytest.raises(CorruptFile, match="delete it to make the trials again"):
        harden(tmp_path / "run")


def test_an_interrupted_contest_goes_on_after_its_last_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, real = [], Bench._made

    def once(self: Bench, candidate: Candidate, epochs: int | None, rows: int) -> Any:
        made.append(candidate.id)
        if len(made) == 2:
            raise KeyboardInterrupt
        return real(self, candidate, epochs, rows)

    monkeypatch.setattr(Bench, "_made", once)
    with pytest.raises(KeyboardInterrupt):
        harden(tmp_path / "run")
    cut = harden(tmp_path / "run").comparison.choice
    assert made == ["train.pgd", "preprocess.squeeze", "preprocess.squeeze"]
    monkeypatch.setattr(Bench, "_made", real)
    whole = harden(None).comparison.choice
    timeless = {"training_seconds": 0.0, "judging_seconds": 0.0}
    for a, b in zip(cut.trials, whole.trials, strict=True):
        assert a.model_copy(update=timeless) == b.model_copy(update=timeless)


def test_what_cannot_be_trained_is_left_out_with_its_reason() -> None:
    choice = harden(None, net(nn.GELU), auto={"candidates": "train.ibp,train.pgd"}).comparison.choice
    failed = {t.defence: t.failed for t in choice.trials if t.failed}
    assert list(failed) == ["train.ibp"]
    assert "gelu" in failed["train.ibp"]
    assert choice.defence == "train.pgd"
    with pytest.raises(NotOffered, match=r"None of the trials could be made: train\.ibp"):
        harden(None, net(nn.GELU), auto={"candidates": "train.ibp"})


def test_bad_input_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match=r"too short for one trial .* give more with --time-limit"):
        harden(tmp_path / "run", time_limit=0.001, auto={"candidates": "train.pgd"})
    with pytest.raises(UnknownName, match=r"train\.nothing"):
        harden(None, auto={"candidates": "train.nothing"})
    whole = data()
    with pytest.raises(NotOffered, match="needs data_read"):
        harden(None, rows=Data(None, None, whole.x_test, whole.y_test), auto={"candidates": "train.pgd"})
    with pytest.raises(BadData, match="20 are needed"):
        harden(None, rows=data(100))
    with pytest.raises(BadOption, match="keep must be at least 2"):
        harden(None, auto={"keep": 1})


def test_time_is_shared_and_the_winner_trains_as_long_as_there_is_time(tmp_path: Path) -> None:
    choice = harden(tmp_path / "run", time_limit=40.0, auto={"candidates": "train.pgd"}).comparison.choice
    (trial,) = [t for t in choice.trials if t.defence]
    assert 1 <= (trial.epochs or 0) <= 30
    assert trial.training_seconds < 40 * 0.35
    assert 1 <= choice.settings["epochs"] <= 30


def test_accuracy_on_clean_inputs_comes_first_then_robustness_then_cost(tmp_path: Path) -> None:
    base = Trial(defence="", round=0, rows=0, clean=0.9, robust=0.1)
    trials = {
        "robust but useless": Trial(defence="a", round=1, rows=9, clean=0.5, robust=0.45, training_seconds=1),
        "slow": Trial(defence="b", round=1, rows=9, clean=0.85, robust=0.4, training_seconds=9),
        "quick": Trial(defence="c", round=1, rows=9, clean=0.85, robust=0.4, training_seconds=2),
        "weak": Trial(defence="d", round=1, rows=9, clean=0.95, robust=0.3, training_seconds=1),
    }
    contest = _Contest(Auto(allowed=0.05), None, _Record(tmp_path / "none"), None)  # type: ignore[arg-type]
    order = sorted(trials, key=lambda name: contest._rank(trials[name], base), reverse=True)
    assert order == ["quick", "slow", "weak", "robust but useless"]


def test_rows_that_nobody_knows_are_judged_on_where_there_are_some() -> None:
    """Training rows are known to the model that was given, and audited rows are the audit's own."""
    known = data()
    seen: list[Any] = []
    plain = Bench.judged

    def judged(self: Bench, target: Any, seconds: float | None) -> Any:
        seen.append(self)
        return plain(self, target, seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "judged", judged)
        choice = harden(None, samples=15, auto={"candidates": "train.pgd", "rows": 22}).comparison.choice
    bench = seen[0]
    assert choice.source == "unaudited"
    assert choice.rows == 22
    assert len(bench.learnt.x_train) == len(known.x_train)
    audited = {tuple(row.tolist()) for row in bench.ready.case.data.x_test}
    held = {tuple(row.tolist()) for row in bench.held.x_test}
    assert not audited & held
    assert held <= {tuple(row.tolist()) for row in known.x_test}
    few = harden(None, auto={"candidates": "train.pgd"}).comparison.choice
    assert few.source == "known"
