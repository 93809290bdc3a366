"""Linear models are stolen exactly, with d + 1 queries, and nothing else is called linear."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from vauban.attacks.extraction.exact import Exact
from vauban.core.attack import TheftScene
from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.engine.case import Case, Check
from vauban.engine.extraction import Meter, examine
from vauban.parts.linear_recovery import Affine, derivative, largest_difference, log_ratios
from vauban.schema.errors import Limit
from vauban.schema.threat import Budget, ThreatModel
from vauban.targets.torch import TorchTarget


def affine(d: int, k: int, seed: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> nn.Linear:
    layer = nn.Linear(d, k).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(k, d, generator=generator, dtype=torch.float64) * scale / d**0.5)
        layer.bias.copy_(torch.randn(k, generator=generator, dtype=torch.float64))
    return layer


def target(module: nn.Module, d: int, classes: int | None, output: Any = None) -> TorchTarget:
    task = "regression" if classes is None else "classification"
    domain = Domain(kind="tabular", task=cast(Any, task), classes=classes, low=torch.zeros(d), high=torch.ones(d))
    return TorchTarget(module=module, domain=domain, output=output)


def scene(victim: TorchTarget, d: int, kind: str, allowed: int = 10**6) -> tuple[TheftScene, Meter]:
    meter = Meter(victim, kind, allowed)
    pool = torch.rand(8, d)
    return TheftScene(meter, victim.domain, (d,), allowed, pool, labels_only=False, kind=kind), meter


def error(parameters: dict[str, Tensor] | None, layer: nn.Linear, shift: bool) -> float:
    assert parameters is not None
    truth = Affine(layer.weight.detach().double(), layer.bias.detach().double())
    return largest_difference(Affine(parameters["weight"], parameters["bias"]), truth, shift)


def test_softmax_regression_784_x_10_from_785_queries() -> None:
    layer = affine(784, 10, 0)
    victim = target(nn.Sequential(layer, nn.Softmax(1)), 784, 10, "probabilities")
    theft, meter = scene(victim, 784, "probabilities")
    replica = Exact(checks=5)(theft, Rng(0, 1))
    assert replica.queries == 785
    assert meter.spent == 785 + 5
    assert error(replica.parameters, layer, shift=True) < 1e-10
    x = torch.rand(300, 784, dtype=torch.float64)
    assert torch.allclose(replica.predict(x), victim.forward(x).values, atol=1e-10)


def test_softmax_regression_from_logits() -> None:
    layer = affine(64, 10, 1)
    theft, _ = scene(target(layer, 64, 10, "logits"), 64, "logits")
    replica = Exact()(theft, Rng(0, 1))
    assert replica.queries == 65
    assert error(replica.parameters, layer, shift=False) < 1e-10


def test_binary_logistic_regression_with_one_output() -> None:
    layer = affine(30, 1, 2)
    victim = target(nn.Sequential(layer, nn.Sigmoid()), 30, 2, "probabilities")
    theft, _ = scene(victim, 30, "probabilities")
    replica = Exact()(theft, Rng(0, 1))
    assert replica.queries == 31
    assert replica.parameters is not None
    recovered = replica.parameters["weight"][1] - replica.parameters["weight"][0]
    assert float((recovered - layer.weight[0].detach()).abs().max()) < 1e-10


def test_linear_regression() -> None:
    layer = affine(12, 1, 3)
    theft, _ = scene(target(layer, 12, None), 12, "values")
    replica = Exact()(theft, Rng(0, 1))
    assert replica.queries == 13
    assert error(replica.parameters, layer, shift=False) < 1e-12


def test_float32_model_gives_float32_precision() -> None:
    layer = affine(50, 5, 4, torch.float32)
    theft, _ = scene(target(nn.Sequential(layer, nn.Softmax(1)), 50, 5, "probabilities"), 50, "probabilities")
    replica = Exact()(theft, Rng(0, 1))
    assert 1e-10 < error(replica.parameters, layer, shift=True) < 1e-4


def test_a_feature_without_room_is_solved_too() -> None:
    layer = affine(4, 3, 5)
    victim = target(layer, 4, 3, "logits")
    low, high = torch.tensor([0.0, 2.0, -5.0, 0.1]), torch.tensor([1.0, 2.0, 70.0, 0.3])
    box = Domain(kind="tabular", task="classification", classes=3, low=low, high=high)
    theft = TheftScene(Meter(victim, "logits", 99), box, (4,), 99, torch.rand(2, 4), False, "logits")
    assert error(Exact()(theft, Rng(0, 1)).parameters, layer, shift=False) < 1e-10


def test_a_network_is_not_called_linear() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 3)).double()
    theft, _ = scene(target(module, 10, 3, "logits"), 10, "logits")
    replica = Exact()(theft, Rng(0, 1))
    assert replica.parameters is None
    assert replica.facts["linear"] is False
    assert replica.facts["deviation"] > 1e-3


def test_budget_is_kept() -> None:
    theft, meter = scene(target(affine(10, 3, 6), 10, 3, "logits"), 10, "logits", allowed=12)
    with pytest.raises(Limit, match="takes 19 queries, the threat allows 12"):
        Exact()(theft, Rng(0, 1))
    assert meter.spent == 0


@pytest.mark.parametrize("settings", [{"checks": 0}, {"tolerance": 0.0}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Exact(**settings)


def test_log_ratios_and_derivative_of_an_affine_softmax() -> None:
    layer = affine(6, 4, 7)
    found = derivative(lambda x: log_ratios(torch.softmax(layer(x), 1)), torch.full((1, 6), 0.5, dtype=torch.float64))
    truth = Affine(layer.weight.detach(), layer.bias.detach())
    assert largest_difference(found, truth, shift=True) < 1e-12
    assert layer.weight.grad is None


def case_of(victim: TorchTarget, d: int, regression: bool = False) -> Case:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(200, d, generator=generator)
    outputs = victim.forward(x).values.detach()
    y = outputs.double() if regression else outputs.argmax(1)
    data = Data(x[:100], y[:100], x[100:], y[100:])
    return Case(target=victim, data=data, domain=victim.domain, modality=cast(Any, None), profile="smoke")


def test_examiner_measures_the_theft() -> None:
    victim = target(nn.Sequential(affine(20, 4, 8), nn.Softmax(1)), 20, 4, "probabilities")
    attempt = examine(Check("extraction.exact", ThreatModel(id="any")), case_of(victim, 20)).attempt
    found = {m.name: m for m in attempt.measurements}
    assert attempt.state == "assessed"
    assert found["extraction.agreement"].value == 1.0
    assert found["extraction.agreement"].low is not None
    assert found["extraction.accuracy"].value == 1.0
    assert found["extraction.queries"].value == 21
    error_ = found["extraction.max_parameter_error"].value
    assert error_ is not None
    assert error_ < 1e-10
    assert attempt.cost.queries == 29


def test_examiner_measures_a_regression() -> None:
    victim = target(affine(7, 1, 9), 7, None)
    attempt = examine(Check("extraction.exact", ThreatModel(id="any")), case_of(victim, 7, regression=True)).attempt
    agreement = attempt.measurement("extraction.agreement")
    assert agreement is not None
    assert agreement.unit == "R2"
    assert agreement.value == pytest.approx(1.0)


def test_examiner_says_that_a_network_was_not_recovered() -> None:
    torch.manual_seed(1)
    victim = target(nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 3)), 10, 3, "logits")
    attempt = examine(Check("extraction.exact", ThreatModel(id="any")), case_of(victim, 10)).attempt
    assert attempt.measurement("extraction.max_parameter_error") is None
    assert any("not linear" in caveat for caveat in attempt.caveats)


def test_examiner_passes_the_threats_budget_on() -> None:
    victim = target(affine(10, 3, 6), 10, 3, "logits")
    threat = ThreatModel(id="poor", budget=Budget(queries=12))
    with pytest.raises(Limit):
        examine(Check("extraction.exact", threat), case_of(victim, 10))
