"""Hardening by a detector that refuses: before, after, resumption, what an attacker who knows it reached."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vauban.audits.harden import After, harden
from vauban.audits.plan import Request
from vauban.audits.progress import Quiet
from vauban.core.target import Domain
from vauban.data.load import load_data
from vauban.defences.detect.mahalanobis import MahalanobisDetector
from vauban.parts.training import fit, reset
from vauban.schema.threat import ThreatModel
from vauban.targets.torch import TorchTarget, Training


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
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
        target=TorchTarget(module, "small", domain, "logits", Training(factory=build, epochs=2)),
        data=data,
        threats=(ThreatModel.of("linf:0.1"),),
        include=("evasion.apgd",),
        exclude={"evasion.apgd_targeted": "slow"},
        profile="smoke",
        samples=48,
        formats=("json",),
        settings={"detect.mahalanobis": {"alarms": 0.1}, "evasion.square": {"queries": 50}},
    )


@pytest.fixture(scope="module")
def done(request_: Request, tmp_path_factory: pytest.TempPathFactory) -> tuple[After, Path]:
    folder = tmp_path_factory.mktemp("harden") / "run"
    return harden(request_, "detect.mahalanobis", folder), folder


def test_what_is_refused_is_no_success_and_no_right_answer(done: tuple[After, Path], request_: Request) -> None:
    after, folder = done
    rows = request_.data.head(48, 0)
    with torch.no_grad():
        labels = after.target.forward(rows.x_test).labels
    refused, right = labels == 10, labels == rows.y_test
    assert int(refused.sum()) > 0
    facts = after.comparison.facts
    assert facts["refused_clean_after"] == float(refused.double().mean())
    assert facts["clean_accuracy_after"] == float(right.double().mean())
    assert "refused_clean_before" not in facts
    attempt = next(a for a in after.log.attempts if a.check == "evasion.apgd")
    assert attempt.outcomes is not None
    assert [letter == "w" for letter in attempt.outcomes] == (~right).tolist()
    samples = load_file(folder / attempt.facts["samples"])
    with torch.no_grad():
        fooled = after.target.forward(samples["x"]).labels
    assert len(fooled) == attempt.outcomes.count("b")
    assert not bool((fooled == 10).any())
    assert bool((fooled != rows.y_test[samples["rows"]]).all())


def test_the_report_says_what_the_detector_costs(done: tuple[After, Path]) -> None:
    after, _ = done
    assert any("are refused, which counts as wrong" in text for text in after.comparison.caveats)
    alarms = [text for text in after.comparison.caveats if "raises the alarm at" in text]
    assert alarms == [
        text for text in alarms if f"{after.comparison.facts['false_alarms']:.1%} of clean inputs" in text
    ]
    assert after.comparison.curves[-1].id == "detector.roc"
    assert after.comparison.adaptive == ["evasion.selective", "evasion.apgd", "evasion.square"]
    assert after.log.target.classes == 11
    assert after.before.target.classes == 10
    doubts = {doubt.id: doubt for doubt in after.log.target.preflight}
    assert doubts["classes"].verdict == "pass"
    assert "refusals" in doubts
    assert after.facts["policy"] == "reject"
    assert after.facts["layers"] == 3


def test_the_saved_model_is_put_together_again(done: tuple[After, Path], request_: Request) -> None:
    after, folder = done
    told = json.loads((folder / "model.json").read_text())
    method = MahalanobisDetector(alarms=0.1)
    made: Any = method.restore(request_.target, request_.data, load_file(folder / "model.safetensors"))
    assert made.sha256() == told["sha256"] == after.target.sha256()
    assert made.domain.refusal == 10
    x = request_.data.x_test[:50]
    target: Any = after.target
    with torch.no_grad():
        assert torch.equal(made.forward(x).values, target.forward(x).values)
    assert made.threshold == target.threshold == told["facts"]["threshold"]


def test_the_same_call_resumes(done: tuple[After, Path], request_: Request) -> None:
    first, folder = done
    reused: list[bool] = []

    class Notes(Quiet):
        def ended(self, unit: Any, attempt: Any, again: bool) -> None:
            if attempt.state == "assessed":
                reused.append(again)

    second = harden(request_, "detect.mahalanobis", folder, Notes())
    assert reused
    assert all(reused)
    assert second.comparison == first.comparison


def test_flagging_leaves_the_answers_alone(request_: Request) -> None:
    request = replace(request_, settings={**request_.settings, "detect.energy": {"policy": "flag"}}, samples=12)
    after = harden(request, "detect.energy", None)
    assert after.log.target.classes == 10
    assert any("The detector refuses nothing here" in text for text in after.comparison.caveats)
    assert "refused_clean_after" not in after.comparison.facts
    x = request_.data.x_test[:40]
    target: Any = after.target
    with torch.no_grad():
        assert torch.equal(target.forward(x).values, request_.target.forward(x).values)
    assert target.flagged(x).dtype == torch.bool
    assert torch.equal(target.flagged(x), target.suspicion(x) > target.threshold)


@pytest.mark.slow
def test_every_family_of_attacks_takes_a_model_that_refuses(request_: Request) -> None:
    request = replace(request_, include=("extraction", "poisoning", "tampering", "leakage.loss_threshold"), samples=24)
    after = harden(request, "detect.mahalanobis", None)
    states = {a.check: (a.state, a.reason) for a in after.log.attempts}
    assert not [check for check, (state, _) in states.items() if state == "error"], states
    assert states["poisoning.label_flip"][0] == states["extraction.substitute"][0] == "assessed"
