"""What a bit search keeps, and the examiner's figures on a digits model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vauban.attacks.tampering.bit_flip import BitFlip
from vauban.core.attack import TamperScene
from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.data.demo import digits
from vauban.domains.catalog import modality, settle
from vauban.engine.case import Case, Check
from vauban.engine.execute import execute
from vauban.parts.quantize import QuantisedWeights
from vauban.schema.threat import Budget, ThreatModel
from vauban.targets.torch import TorchTarget, Training

THREAT = ThreatModel(id="weights")


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    )


@pytest.fixture(scope="module")
def case() -> Case:
    data = digits()
    domain = replace(settle(Domain(), data), classes=10)
    target = TorchTarget(_mlp(), domain=domain, training=Training(factory=_mlp, epochs=30, rate=3e-3))
    target = target.recipe.fit(data.x_train, data.y_train, 0)
    return Case(target, data, domain, modality("image"), profile="smoke")


def _patch(case: Case, edits: int = 5, **settings):
    x, y = case.data.x_train[:128], case.data.y_train[:128]
    scene = TamperScene(target=case.target, x=x, y=y, edits=edits, evaluate=lambda module: 1.0)
    return BitFlip(**settings)(scene, Rng(0, 128))


def test_few_searched_flips_break_the_int8_digits_model_and_random_ones_do_not(case):
    attempt = execute(Check("tampering.bit_flip", THREAT), case).attempt
    assert attempt.state == "assessed", attempt.reason
    flips = attempt.measurement("tampering.flips_to_collapse").value
    random = attempt.measurement("tampering.random_control_accuracy")
    assert flips is not None
    assert flips <= 40
    assert flips == len(attempt.facts["flips"])
    assert attempt.facts["accuracy_after"] < 0.2
    assert random.low > attempt.facts["int8_accuracy"] - 0.05
    assert abs(attempt.facts["int8_accuracy"] - attempt.facts["float_accuracy"]) < 0.02
    searched, control = attempt.curves[0].series
    assert searched.x == list(range(int(flips) + 1))
    assert control.x[-1] == flips
    assert searched.y[-1] == attempt.facts["accuracy_after"]


def test_the_listed_flips_alone_reproduce_the_broken_model(case):
    attempt = execute(Check("tampering.bit_flip", THREAT), case).attempt
    module = case.target.clone()
    weights = QuantisedWeights(module)
    for flip in attempt.facts["flips"]:
        place = int(np.ravel_multi_index(flip["index"], weights.stored[flip["tensor"]].codes.shape))
        assert weights.flip(flip["tensor"], place, flip["bit"]) == (flip["before"], flip["after"])
    with torch.no_grad():
        right = case.target.around(module, "").forward(case.data.x_test).labels == case.data.y_test
    assert float(right.double().mean()) == pytest.approx(attempt.facts["accuracy_after"])


def test_a_budget_too_small_is_no_collapse_and_says_so(case):
    threat = ThreatModel(id="two", budget=Budget(weight_edits=2))
    attempt = execute(Check("tampering.bit_flip", threat), case).attempt
    assert attempt.measurement("tampering.flips_to_collapse").value is None
    assert len(attempt.facts["flips"]) == 2
    assert any("Not collapsed" in caveat for caveat in attempt.caveats)


def test_without_training_rows_half_of_the_test_rows_are_searched_on(case):
    bare = replace(case, data=Data(x_test=case.data.x_test, y_test=case.data.y_test))
    attempt = execute(Check("tampering.bit_flip", THREAT), bare).attempt
    assert attempt.state == "assessed", attempt.reason
    assert "half of the test rows" in attempt.facts["searched_on"]
    assert attempt.measurement("tampering.flips_to_collapse").n == 399


def test_the_weights_stay_on_the_int8_grid_and_differ_by_the_flips_alone(case):
    patch = _patch(case)
    plain = QuantisedWeights(case.target.clone())
    scales = patch.facts["scales"]
    for name, parameter in patch.module.named_parameters():
        if name not in scales:
            assert torch.equal(parameter, dict(case.target.module.named_parameters())[name])
            continue
        codes = parameter.detach() / scales[name]
        assert torch.allclose(codes, codes.round(), atol=1e-3)
        assert codes.round().abs().max() <= 128
        touched = {flip.index for flip in patch.flips if flip.tensor == name}
        moved = (parameter.detach() != plain.stored[name].weights).nonzero().tolist()
        assert {tuple(place) for place in moved} == touched
    assert len({(f.tensor, f.index, f.bit) for f in patch.flips}) == len(patch.flips) == 5


def test_no_trace_on_the_users_model(case):
    module = case.target.module
    module.train()
    digest, grads = case.target.sha256(), [p.requires_grad for p in module.parameters()]
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    try:
        _patch(case)
        assert case.target.sha256() == digest
        assert module.training
        assert all(p.grad is None for p in module.parameters())
        assert [p.requires_grad for p in module.parameters()] == grads
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
        assert torch.equal(state[0], torch.random.get_rng_state())
        assert (state[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    finally:
        module.eval()


def test_the_same_seed_gives_the_same_flips(case):
    runs = [execute(Check("tampering.bit_flip", THREAT), case).attempt.model_dump(exclude={"cost"}) for _ in range(2)]
    assert runs[0] == runs[1]


def test_probabilities_are_searched_as_well(case):
    module = nn.Sequential(case.target.clone(), nn.Softmax(1))
    target = TorchTarget(module, output="probabilities", domain=case.domain)
    attempt = execute(Check("tampering.bit_flip", THREAT), replace(case, target=target)).attempt
    assert attempt.measurement("tampering.flips_to_collapse").value <= 40


@pytest.mark.parametrize("settings", [{"candidates": 0}, {"accuracy": 2.0}, {"accuracy": -0.5}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError):
        BitFlip(**settings)
