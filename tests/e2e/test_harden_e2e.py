"""Hardening from end to end: before, defence, after, comparison, resumption, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vauban.audits.harden import After, harden, knowing
from vauban.audits.plan import Request
from vauban.audits.progress import Quiet
from vauban.core.data import Data
from vauban.core.target import Domain
from vauban.data.load import load_data
from vauban.defences.distill.defensive import DefensiveDistillation
from vauban.defences.train.pgd import PGDTraining
from vauban.parts.training import fit, reset
from vauban.schema.errors import BadData, BadOption, BadThreat, CorruptFile, NotOffered, RunFolder, UnknownName
from vauban.schema.log import AuditLog
from vauban.schema.threat import ThreatModel
from vauban.targets.torch import TorchTarget


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Sums are rounded otherwise with another number of threads, and so are the weights that come of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


@pytest.fixture(scope="module")
def request_() -> Request:
    data = load_data("demo:digits")
    module = fit(reset(build(), 0), data.x_train, data.y_train, seed=0, epochs=15, rate=3e-3)
    domain = Domain(kind="image", task="classification", classes=10, low=0.0, high=1.0)
    return Request(
        target=TorchTarget(module, "small", domain, "logits"),
        data=data,
        threats=(ThreatModel.of("linf:0.1"),),
        include=("evasion.fgsm",),
        profile="smoke",
        samples=24,
        formats=("json",),
        settings={"preprocess.squeeze": {"bits": 2}, "train.pgd": {"epochs": 5}},
    )


@pytest.fixture(scope="module")
def squeezed(request_: Request, tmp_path_factory: pytest.TempPathFactory) -> tuple[After, Path]:
    folder = tmp_path_factory.mktemp("harden") / "run"
    return harden(request_, "preprocess.squeeze", folder), folder


@pytest.fixture(scope="module")
def undisturbed(request_: Request) -> After:
    return harden(request_, "train.pgd", None)


class Notes(Quiet):
    """Remembers what it is told; stops after some units."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.notes: list[str] = []
        self.done: list[tuple[str, bool]] = []
        self.stop_after = stop_after

    def note(self, text: str) -> None:
        self.notes.append(text)

    def ended(self, unit: Any, attempt: Any, reused: bool) -> None:
        if attempt.state == "assessed":
            self.done.append((unit.check.id, reused))
        if self.stop_after is not None and len(self.done) >= self.stop_after:
            raise KeyboardInterrupt


def figures(log: AuditLog) -> list[Any]:
    return [(a.check, a.state, a.outcomes, [(m.name, m.value) for m in a.measurements]) for a in log.attempts]


class Stops(Quiet):
    """Presses Ctrl-C after three epochs."""

    def step(self, done: float, total: float, text: str = "") -> None:
        if done == 3 and "training" in text:
            raise KeyboardInterrupt


def test_a_training_that_was_interrupted_goes_on_to_the_same_model(
    request_: Request, undisturbed: After, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        harden(request_, "train.pgd", folder, Stops())
    assert (folder / "training.safetensors").exists()
    assert not (folder / "model.safetensors").exists()
    told: list[float] = []

    class Tells(Quiet):
        def step(self, done: float, total: float, text: str = "") -> None:
            if "training" in text:
                told.append(done)

    after = harden(request_, "train.pgd", folder, Tells())
    assert told == [4, 5]
    assert after.target.sha256() == undisturbed.target.sha256()
    assert not (folder / "training.safetensors").exists()


def test_what_is_left_of_a_training_is_not_trusted_blindly(request_: Request, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        harden(request_, "train.pgd", folder, Stops())
    (folder / "training.safetensors").write_bytes(b"no such thing")
    with pytest.raises(CorruptFile, match="delete it to train from the beginning"):
        harden(request_, "train.pgd", folder)


def test_the_run_folder_holds_both_audits_and_the_model(squeezed: tuple[After, Path]) -> None:
    after, folder = squeezed
    report = json.loads((folder / "report.json").read_text())
    assert (folder / "before" / "report.json").exists()
    assert json.loads((folder / "before" / "report.json").read_text())["before_after"] is None
    assert report["before_after"]["defence"] == "preprocess.squeeze"
    assert AuditLog.model_validate(report).before_after == after.comparison == after.log.before_after
    facts = json.loads((folder / "model.json").read_text())
    assert facts["facts"] == {"bits": 2, "median": 0, "levels": 4}
    assert facts["sha256"] == after.target.sha256() == after.log.target.sha256
    assert "not laid out like the one" in facts["how_to_load"]
    weights = load_file(folder / "model.safetensors")
    assert set(weights) == set(after.target.module.state_dict())  # type: ignore[attr-defined]


def test_the_attacks_that_know_the_defence_are_made_before_and_after(squeezed: tuple[After, Path]) -> None:
    after, _ = squeezed
    for log in (after.before, after.log):
        assessed = {a.check for a in log.attempts if a.state == "assessed"}
        assert assessed == {"evasion.fgsm", "evasion.apgd", "evasion.pgd", "evasion.square"}
    assert after.comparison.adaptive == ["evasion.apgd", "evasion.pgd", "evasion.square"]
    assert not any("adaptively" in text for text in after.comparison.caveats)
    assert {c.check for c in after.comparison.changes} == {
        "evasion.fgsm",
        "evasion.apgd",
        "evasion.pgd",
        "evasion.square",
    }


def test_both_audits_judge_the_same_samples(squeezed: tuple[After, Path]) -> None:
    after, _ = squeezed
    assert after.comparison.facts["same_samples"] is True
    assert after.before.data == after.log.data
    assert after.before.run.seed == after.log.run.seed


def test_the_adaptive_attack_went_through_the_squeezer(squeezed: tuple[After, Path]) -> None:
    after, _ = squeezed
    apgd = next(a for a in after.log.attempts if a.check == "evasion.apgd")
    assert any("BPDA" in text for text in apgd.caveats)
    robust = apgd.measurement("evasion.robust_accuracy")
    assert robust is not None
    assert robust.value is not None
    assert robust.value < 0.9


def test_the_price_in_clean_accuracy_is_told(squeezed: tuple[After, Path], request_: Request) -> None:
    after, _ = squeezed
    rows = request_.data.head(24, 0)
    with torch.no_grad():
        truth = float((after.target.forward(rows.x_test).labels == rows.y_test).double().mean())
    assert after.comparison.facts["clean_accuracy_after"] == truth
    assert any(text.startswith("Accuracy on 24 clean inputs: ") for text in after.comparison.caveats)


def test_the_same_call_again_repeats_nothing(squeezed: tuple[After, Path], request_: Request) -> None:
    first, folder = squeezed
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    watch = Notes()
    second = harden(request_, "preprocess.squeeze", folder, watch)
    assert all(reused for _, reused in watch.done)
    assert figures(second.log) == figures(first.log)
    assert second.comparison == first.comparison
    assert second.log.run.id == first.log.run.id
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert any("made before" in text for text in watch.notes)


@pytest.mark.parametrize("units", [1, 6])
def test_an_interrupted_hardening_goes_on_where_it_was(
    request_: Request, undisturbed: After, tmp_path: Path, units: int
) -> None:
    """After 1 unit it is in the audit before, after 6 in the audit after; either way nothing is made twice."""
    with pytest.raises(KeyboardInterrupt):
        harden(request_, "train.pgd", tmp_path / "cut", Notes(stop_after=units))
    watch = Notes()
    resumed = harden(request_, "train.pgd", tmp_path / "cut", watch)
    assert sum(reused for _, reused in watch.done) == units
    assert figures(resumed.log) == figures(undisturbed.log)
    assert figures(resumed.before) == figures(undisturbed.before)
    assert resumed.comparison.changes == undisturbed.comparison.changes
    assert resumed.target.sha256() == undisturbed.target.sha256()
    assert not any("defending" in text for text in watch.notes)


def test_nothing_is_kept_without_a_folder_and_training_pays(request_: Request) -> None:
    slow = dict.fromkeys(("evasion.square", "evasion.apgd_targeted"), "not what is asked here")
    request = replace(
        request_,
        samples=200,
        exclude=slow,
        settings={"train.pgd": {"epochs": 20}, "evasion.apgd": {"steps": 10}},
        target_spec="small.pt2",
    )
    before = request.target.sha256()
    after = harden(request, "train.pgd", None)
    change = next(
        c for c in after.comparison.changes if (c.check, c.name) == ("evasion.apgd", "evasion.robust_accuracy")
    )
    assert change.better is True
    assert request.target.sha256() == before
    assert any(
        text.startswith("Of the attacks that know this defence, not assessed: ") for text in after.comparison.caveats
    )
    assert after.facts["radius"] == 0.1
    assert after.target.id == "small+train.pgd"
    assert after.log.target.id == "small.pt2+train.pgd"
    assert after.log.findings
    for finding in after.log.findings:
        assert finding.reproduce.startswith("vauban harden small.pt2 --with train.pgd --include evasion.")
        assert "--set epochs=20" in finding.reproduce


def test_leakage_is_compared_for_private_training(request_: Request, tmp_path: Path) -> None:
    quick = {"epochs": 2, "accountant": "rdp"}
    request = replace(
        request_,
        include=("leakage.loss_threshold",),
        exclude={"leakage.lira": "slow", "leakage.rmia": "slow"},
        settings={"privacy.dp_sgd": quick},
    )
    after = harden(request, "privacy.dp_sgd", tmp_path / "run")
    assert {c.check for c in after.comparison.changes} == {"leakage.loss_threshold"}
    assert "leakage.membership.auc" in {c.name for c in after.comparison.changes}
    assert 7.9 < after.comparison.facts["epsilon"] <= 8
    assert any(text.startswith("Not attacked adaptively") for text in after.comparison.caveats)


def test_a_regression_is_hardened(tmp_path: Path) -> None:
    data = load_data("demo:diabetes")
    mean, spread = float(data.y_train.mean()), float(data.y_train.std())
    data = replace(data, y_train=(data.y_train - mean) / spread, y_test=(data.y_test - mean) / spread)
    module = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1))
    fit(reset(module, 0), data.x_train, data.y_train, seed=0, epochs=30, rate=1e-2)
    target = TorchTarget(module, "reg", Domain(task="regression"))
    request = Request(
        target=target, data=data, include=("evasion.pgd",), profile="smoke", samples=24, formats=("json",)
    )
    after = harden(request, "preprocess.squeeze", tmp_path / "run")
    assert any(text.startswith("Mean squared error on 24 clean inputs: ") for text in after.comparison.caveats)
    with pytest.raises(NotOffered, match=r"distill\.defensive is made for classification"):
        harden(request, "distill.defensive", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_users_own_settings_and_exclusions_stand(request_: Request) -> None:
    card = DefensiveDistillation.card
    asked = replace(
        request_, include=("evasion.fgsm",), settings={"evasion.apgd": {"steps": 7}, card.id: {"epochs": 1}}
    )
    known = knowing(asked, card)
    assert known.include == ("evasion.fgsm", "evasion.apgd", "evasion.square")
    assert known.settings == {"evasion.apgd": {"loss": "dlr", "steps": 7}}
    assert knowing(replace(asked, settings={"evasion.apgd": {"loss": "ce"}}), card).settings["evasion.apgd"] == {
        "loss": "ce"
    }
    assert knowing(replace(asked, include=("evasion",)), card).include == ("evasion",)
    assert knowing(replace(asked, include=()), PGDTraining.card).include == ()


# What cannot be done --------------------------------------------------------------------------------------------


def test_a_folder_of_another_hardening_is_refused(squeezed: tuple[After, Path], request_: Request) -> None:
    _, folder = squeezed
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    other = replace(request_, settings={"preprocess.squeeze": {"bits": 5}})
    with pytest.raises(RunFolder, match="holds another hardening"):
        harden(other, "preprocess.squeeze", folder)
    with pytest.raises(RunFolder, match=r"defence was preprocess\.squeeze, now train\.pgd"):
        harden(request_, "train.pgd", folder)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


def test_a_folder_with_something_else_is_refused(request_: Request, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolder, match=r"not a hardening \(thesis\.tex\)"):
        harden(request_, "preprocess.squeeze", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunFolder, match="is a file"):
        harden(request_, "preprocess.squeeze", tmp_path / "thesis.tex")


def test_a_damaged_or_exchanged_model_is_not_trusted(request_: Request, tmp_path: Path) -> None:
    request = replace(request_, settings={"train.pgd": {"epochs": 1}})
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        harden(request, "train.pgd", folder, Notes(stop_after=1))
    weights = load_file(folder / "model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, folder / "model.safetensors")
    with pytest.raises(CorruptFile, match=r"is not the model that model\.json describes"):
        harden(request, "train.pgd", folder)
    save_file({"other": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(CorruptFile, match="does not fit"):
        harden(request, "train.pgd", folder)
    (folder / "model.safetensors").write_bytes(b"\x80\x04not tensors")
    with pytest.raises(CorruptFile, match="cannot be read"):
        harden(request, "train.pgd", folder)
    (folder / "hardening.json").write_text("{")
    with pytest.raises(CorruptFile, match=r"hardening\.json cannot be read"):
        harden(request, "train.pgd", folder)


def test_bad_names_and_settings_are_told_before_anything_is_written(request_: Request, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(UnknownName, match=r"did you mean train\.pgd"):
        harden(request_, "train.pdg", folder)
    with pytest.raises(BadOption, match="has no setting 'epoch'; did you mean epochs"):
        harden(replace(request_, settings={"train.pgd": {"epoch": 3}}), "train.pgd", folder)
    with pytest.raises(BadThreat):
        harden(replace(request_, threats=(ThreatModel.of("linf:7"),)), "train.pgd", folder)
    rows = request_.data
    untrained = Data(None, None, rows.x_test, rows.y_test)
    with pytest.raises((BadData, NotOffered), match="train"):
        harden(replace(request_, data=untrained), "train.pgd", folder)
    assert not folder.exists()
