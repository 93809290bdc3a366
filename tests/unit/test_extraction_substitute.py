"""A substitute agrees with its model the more, the more it may ask."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn

from vauban.attacks.extraction.substitute import Substitute
from vauban.core.attack import TheftScene
from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.engine.case import Case, Check
from vauban.engine.extraction import Meter, examine
from vauban.parts.substitute import network
from vauban.schema.access import Access
from vauban.schema.errors import Limit
from vauban.schema.threat import Budget, ThreatModel
from vauban.targets.torch import TorchTarget


@pytest.fixture(scope="module")
def victim() -> TorchTarget:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= 3
    domain = Domain(kind="tabular", task="classification", classes=3, low=-torch.ones(6), high=torch.ones(6))
    return TorchTarget(module=module, domain=domain, output="logits")


def case_of(victim: TorchTarget, train: bool = True) -> Case:
    x = torch.rand(600, 6, generator=torch.Generator().manual_seed(1)) * 2 - 1
    y = victim.forward(x).labels
    data = Data(x[:300], y[:300], x[300:], y[300:]) if train else Data(x_test=x, y_test=y)
    return Case(target=victim, data=data, domain=victim.domain, modality=cast(Any, None), profile="smoke")


def test_agreement_grows_with_queries(victim: TorchTarget) -> None:
    check = Check("extraction.substitute", ThreatModel(id="any"), {"queries": 1000, "budgets": 5, "steps": 400})
    attempt = examine(check, case_of(victim)).attempt
    (line,) = attempt.curves[0].series
    agreement = attempt.measurement("extraction.agreement")
    assert agreement is not None
    assert line.x == [62, 125, 250, 500, 1000]
    assert line.y[-1] == agreement.value
    assert agreement.value is not None
    assert line.y[0] is not None
    assert agreement.value > max(0.85, line.y[0])
    assert attempt.cost.queries == 1000
    assert attempt.facts["mixtures"] == 700
    assert attempt.facts["distinct_queries"] == 1000


def test_labels_alone_are_enough_and_all_that_is_seen(victim: TorchTarget) -> None:
    threat = ThreatModel(id="labels", access=Access.LABELS | Access.DATA_READ)
    check = Check("extraction.substitute", threat, {"queries": 600, "budgets": 1, "steps": 300})
    agreement = examine(check, case_of(victim)).attempt.measurement("extraction.agreement")
    assert agreement is not None
    assert agreement.value is not None
    assert agreement.value > 0.75
    seen = Meter(victim, "labels", 10)(torch.zeros(2, 6))
    assert seen.dtype == torch.int64
    assert seen.shape == (2,)


def test_rows_that_the_thief_has_are_not_measured_on(victim: TorchTarget) -> None:
    check = Check("extraction.substitute", ThreatModel(id="any"), {"queries": 50, "budgets": 1, "steps": 10})
    attempt = examine(check, case_of(victim, train=False)).attempt
    assert attempt.facts["measured_rows"] == 300


def test_the_threats_budget_is_kept(victim: TorchTarget) -> None:
    threat = ThreatModel(id="poor", budget=Budget(queries=37))
    attempt = examine(Check("extraction.substitute", threat), case_of(victim)).attempt
    assert attempt.cost.queries == 37


def test_the_meter_answers_nothing_beyond_its_budget(victim: TorchTarget) -> None:
    meter = Meter(victim, "logits", 5)
    meter(torch.zeros(3, 6))
    with pytest.raises(Limit, match="2 of 5 are left"):
        meter(torch.zeros(3, 6))
    assert meter.spent == 3


def test_the_same_seed_steals_the_same_and_queries_stay_in_the_box(victim: TorchTarget) -> None:
    asked = []

    def query(x: torch.Tensor) -> torch.Tensor:
        asked.append(x)
        return victim.forward(x).values.detach().double()

    scene = TheftScene(query, victim.domain, (6,), 10**6, torch.rand(20, 6), False, "logits")
    attack = Substitute(queries=80, budgets=1, steps=20, noise=0.5)
    before = torch.random.get_rng_state()
    one, two, other = (attack(scene, Rng(seed, 20)).predict(scene.pool) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(asked[0], asked[1])
    assert float(asked[0].abs().max()) <= 1


@pytest.mark.parametrize("shape", [(5,), (1, 8, 8), (3, 16, 12), (1, 4, 4), (7, 9)])
def test_networks_fit_every_shape(shape: tuple[int, ...]) -> None:
    module = network(shape, 4, torch.tensor(0.0), torch.tensor(1.0), seed=0)
    assert module(torch.rand(2, *shape)).shape == (2, 4)


@pytest.mark.parametrize("settings", [{"queries": 0}, {"budgets": 0}, {"steps": 0}, {"noise": -1.0}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Substitute(**settings)


def test_a_regression_in_large_units_is_learnt() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        module = nn.Linear(6, 1)
    with torch.no_grad():
        module.weight *= 300
        module.bias += 5000
    domain = Domain(kind="tabular", task="regression", low=-torch.ones(6), high=torch.ones(6))
    victim = TorchTarget(module=module, domain=domain)
    x = torch.rand(400, 6, generator=torch.Generator().manual_seed(3)) * 2 - 1
    y = victim.forward(x).values.detach().double()
    data = Data(x[:200], y[:200], x[200:], y[200:])
    case = Case(target=victim, data=data, domain=domain, modality=cast(Any, None), profile="smoke")
    agreement = examine(Check("extraction.substitute", ThreatModel(id="any")), case).attempt.measurement(
        "extraction.agreement"
    )
    assert agreement is not None
    assert agreement.unit == "R2"
    assert agreement.value is not None
    assert agreement.value > 0.8
