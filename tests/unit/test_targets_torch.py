"""Torch targets: what goes in and out, features, recipes, and no trace left."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vauban.core.target import Domain, Featured, TorchBacked
from vauban.schema.access import Access
from vauban.schema.errors import BadTarget
from vauban.targets.load import target
from vauban.targets.torch import TorchTarget, Training, placement


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3))


@pytest.fixture
def x() -> Tensor:
    return torch.rand(9, 2, 3, generator=torch.Generator().manual_seed(1))


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Dropout()
        self.layer = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.layer(x.flatten(1))
        raise RuntimeError("broken")


def test_modes_gradients_and_hooks_are_as_found(x: Tensor) -> None:
    module = network().train()
    module[4].eval()
    module[5].weight.grad = torch.ones_like(module[5].weight)
    modes = [part.training for part in module.modules()]
    state = copy.deepcopy(module.state_dict())
    found = TorchTarget(module)
    rng = torch.get_rng_state()
    for answer in (found.forward(x).values, found.forward_features(x)[0].values):
        assert torch.equal(answer, copy.deepcopy(module).eval()(x))
    assert [part.training for part in module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(module[5].weight.grad, torch.ones_like(module[5].weight))
    assert module[1].weight.grad is None
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in module.modules())


def test_nothing_is_left_after_an_exception(x: Tensor) -> None:
    module = Failing().train()
    found = TorchTarget(module)
    for call in (found.forward, found.forward_features):
        with pytest.raises(RuntimeError, match="broken"):
            call(x)
    assert all(part.training for part in module.modules())
    assert not any(part._forward_pre_hooks for part in module.modules())


def test_input_gradients_agree_with_finite_differences(x: Tensor) -> None:
    found = TorchTarget(network().double())
    leaf = x.double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z: found.forward(z).values, leaf)


def test_float64_modules_get_float64_inputs(x: Tensor) -> None:
    found = TorchTarget(network().double())
    assert placement(found.module) == (torch.device("cpu"), torch.float64)
    assert found.forward(x).values.dtype == torch.float64


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_a_single_output_becomes_two_classes(x: Tensor, shape: tuple[int, ...]) -> None:
    layer = nn.Linear(6, 1)
    nn.init.constant_(layer.weight, 9.0)
    nn.init.constant_(layer.bias, -27.0)

    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return layer(x.flatten(1)).reshape(shape)

    class Sure(One):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sigmoid()

    z = layer(x.flatten(1))[:, 0]
    logits = TorchTarget(One()).forward(x)
    assert logits.kind == "logits"
    assert torch.equal(logits.values, torch.stack([torch.zeros_like(z), z], 1))
    probabilities = TorchTarget(Sure()).forward(x)
    assert probabilities.kind == "probabilities"
    torch.testing.assert_close(probabilities.values, logits.values.softmax(1))
    values = TorchTarget(One(), domain=Domain(task="regression")).forward(x)
    assert values.kind == "values"
    assert torch.equal(values.values, z)


def test_the_kind_of_output_is_found_or_declared(x: Tensor) -> None:
    soft = nn.Sequential(network(), nn.Softmax(1))
    found = TorchTarget(soft)
    assert found.forward(x).kind == "probabilities"
    assert Access.LOGITS not in found.offers
    assert found.settled(Domain()).output == "probabilities"
    assert TorchTarget(soft, output="logits").forward(x).kind == "logits"
    plain = TorchTarget(network())
    assert plain.forward(x).kind == "logits"
    assert Access.LOGITS in plain.offers


def test_one_sigmoid_answer_does_not_settle_the_kind(x: Tensor) -> None:
    found = TorchTarget(nn.Sequential(nn.Flatten(), nn.Linear(6, 1), nn.Sigmoid()))
    found.forward(x[:1])
    assert found.forward(x).kind == "probabilities"


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Identity(), "shape"),
        (nn.LSTM(3, 3, batch_first=True), "tuple"),
        (nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (6, 9))), "6 answers to 9 inputs"),
    ],
)
def test_wrong_answers_are_refused(module: nn.Module, words: str, x: Tensor) -> None:
    with pytest.raises(BadTarget, match=words):
        TorchTarget(module, output="logits").forward(x)


def test_features_are_what_the_last_linear_layer_to_run_reads(x: Tensor) -> None:
    class Backwards(nn.Module):
        """Declared in another order than run."""

        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 3)
            self.first = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x.flatten(1)).tanh())

    module = Backwards()
    found = TorchTarget(module)
    for _ in range(2):  # found on the first call, known on the second
        outputs, features = found.forward_features(x)
        torch.testing.assert_close(features, module.first(x.flatten(1)).tanh())
        torch.testing.assert_close(outputs.values, module(x))
    assert isinstance(found, Featured)
    assert isinstance(found, TorchBacked)
    assert Access.FEATURES not in TorchTarget(nn.Sequential(nn.Flatten(), nn.Linear(6, 3))).offers


def test_features_without_a_linear_layer(x: Tensor) -> None:
    module = nn.Sequential(nn.Conv1d(2, 4, 1), nn.ReLU(), nn.Conv1d(4, 3, 3), nn.Flatten())
    _, features = TorchTarget(module).forward_features(x)
    torch.testing.assert_close(features, module[:2](x).flatten(1))


def test_identity_is_that_of_the_weights() -> None:
    one, two = network(), network()
    assert TorchTarget(one).sha256() == TorchTarget(two).sha256()
    with torch.no_grad():
        two[5].bias[0] = torch.nextafter(two[5].bias[0], torch.tensor(9.0))
    assert TorchTarget(one).sha256() != TorchTarget(two).sha256()
    assert TorchTarget(one).sha256() != TorchTarget(copy.deepcopy(one).to(torch.bfloat16)).sha256()


def test_copies_share_nothing() -> None:
    found = TorchTarget(network().train(), id="m", training=Training(epochs=1))
    clone = found.clone()
    assert not any(part.training for part in clone.modules())
    with torch.no_grad():
        clone[5].bias += 1
    assert not torch.equal(clone[5].bias, found.module[5].bias)
    around = found.around(clone, "+x")
    assert around.id == "m+x"
    assert around.module is clone
    assert around.training == found.training


@pytest.mark.parametrize("training", [Training(epochs=3), Training(factory=network, epochs=3)])
def test_recipes_depend_on_the_seed_alone(training: Training, x: Tensor) -> None:
    found = TorchTarget(network(), output="logits", training=training)
    before = found.sha256()
    y = torch.arange(9) % 3
    assert found.recipe is not None
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, other = found.recipe.fit(x, y, 1), found.recipe.fit(x, y, 2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert found.recipe.fit(x, y, 1).sha256() == one.sha256() != other.sha256()
    assert found.sha256() == before
    assert one.recipe is not None


@pytest.mark.parametrize("last", [nn.Identity(), nn.Softmax(1)], ids=["logits", "probabilities"])
def test_recipes_learn(last: nn.Module) -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(120, 2))).float()
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    module = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3), last)
    found = TorchTarget(module, training=Training(epochs=60, rate=1e-2))
    found.forward(x)
    assert found.recipe is not None
    assert float((found.recipe.fit(x, y, 0).forward(x).labels == y).float().mean()) > 0.9


def test_only_what_can_be_forgotten_is_trained_anew() -> None:
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6, 2))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ self.weight

    assert Access.TRAINING not in target(Raw()).offers
    assert Access.TRAINING in target(Raw(), factory=Raw).offers
    assert Access.TRAINING in target(network()).offers
