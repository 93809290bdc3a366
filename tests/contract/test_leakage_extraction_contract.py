"""What holds for every leakage and extraction attack in the catalogue, third parties' included."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn

from vauban.attacks.catalog import ATTACKS
from vauban.core.data import Data
from vauban.core.registry import configure
from vauban.core.target import Domain
from vauban.engine.case import Case, Check, Outcome
from vauban.engine.execute import execute
from vauban.schema.access import Access
from vauban.schema.threat import ThreatModel
from vauban.targets.torch import TorchTarget, Training

IDS = [i for i in ATTACKS.ids() if i.startswith(("leakage.", "extraction."))]
MEMBERSHIP = [i for i in IDS if i.startswith("leakage.") and i != "leakage.inversion"]


def case_of(seed: int = 0) -> Case:
    x = torch.randn(160, 5, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).to(torch.int64) + (x[:, 1] > 1).to(torch.int64)
    data = Data(x[:80], y[:80], x[80:], y[80:])
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = nn.Sequential(nn.Linear(5, 12), nn.Dropout(0.2), nn.ReLU(), nn.Linear(12, 3))
    domain = Domain(kind="tabular", task="classification", classes=3, low=x.amin(0), high=x.amax(0))
    target = TorchTarget(module=module, domain=domain, output="logits", training=Training(epochs=3))
    return Case(target=target, data=data, domain=domain, modality=cast(Any, None), seed=seed, profile="smoke")


def run(id: str, case: Case, access: Access | None = None) -> Outcome:
    threat = ThreatModel(id="any") if access is None else ThreatModel(id="any", access=access)
    return execute(Check(id, threat), case)


def numbers(outcome: Outcome) -> list[tuple[str, float | None, float | None, float | None]]:
    return [(m.name, m.value, m.low, m.high) for m in outcome.attempt.measurements]


@pytest.mark.parametrize("id", IDS)
def test_card_profiles_and_price_are_in_order(id: str) -> None:
    cls = ATTACKS.load(id)
    assert cls.card.id == id
    assert cls.card.sources
    assert set(cls.profiles) == {"smoke", "deep"}
    for settings in ({}, *cls.profiles.values()):
        assert configure(cls, settings).price(10).queries >= 1


@pytest.mark.parametrize("id", IDS)
def test_it_is_assessed_and_leaves_no_trace(id: str) -> None:
    case = case_of()
    module = cast(TorchTarget, case.target).module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.random.get_rng_state()
    outcome = run(id, case)
    assert outcome.attempt.state == "assessed", outcome.attempt.reason
    assert outcome.attempt.cost.queries > 0
    assert torch.equal(torch.random.get_rng_state(), state)
    assert module.training
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not any(part._forward_hooks for part in module.modules())


@pytest.mark.parametrize("id", IDS)
def test_the_same_seed_gives_the_same_numbers(id: str) -> None:
    assert numbers(run(id, case_of(1))) == numbers(run(id, case_of(1)))


@pytest.mark.parametrize("id", IDS)
def test_every_rate_carries_n_and_an_interval(id: str) -> None:
    for measurement in run(id, case_of()).attempt.measurements:
        if measurement.value is not None and measurement.unit in ("rate", "auc", "dB"):
            assert measurement.n
            assert measurement.low is not None
            assert measurement.high is not None
            assert measurement.low <= measurement.value <= measurement.high


@pytest.mark.parametrize("id", MEMBERSHIP)
def test_a_leak_stands_beside_the_blind_baseline_and_the_null_control(id: str) -> None:
    names = [name for name, *_ in numbers(run(id, case_of()))]
    assert names == [
        "leakage.membership.auc",
        "leakage.membership.tpr_at_fpr_1pct",
        "leakage.membership.tpr_at_fpr_0.1pct",
        "leakage.blind_auc",
        "leakage.null_auc",
    ]


@pytest.mark.parametrize("id", IDS)
def test_without_rights_it_is_skipped_not_passed(id: str) -> None:
    attempt = run(id, case_of(), Access.NONE).attempt
    assert attempt.state == "skipped"
    assert not attempt.measurements
