"""Defences against what can be computed by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.crew import ALONE
from vauban.core.data import Data
from vauban.core.rng import Rng, derive_seed
from vauban.core.target import Adaptive, Domain, Outputs
from vauban.data.load import load_data
from vauban.defences.distill.defensive import DefensiveDistillation
from vauban.defences.preprocess.front import Cleansed
from vauban.defences.preprocess.squeeze import Squeeze, Squeezer
from vauban.defences.privacy.dp_sgd import DPSGD
from vauban.defences.train.course import Drill
from vauban.defences.train.inner import Inner, worst_case
from vauban.defences.train.pgd import PGDTraining
from vauban.parts.losses import dlr
from vauban.parts.projections import L1, L2, Linf
from vauban.parts.training import Batch, fit, reset
from vauban.schema.errors import MissingExtra, NotOffered
from vauban.targets.torch import TorchTarget


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The work is too small to be shared out."""
    torch.set_num_threads(1)


@dataclass
class Context:
    radius: float | None = 0.1
    space: Any = field(default_factory=lambda: Linf(0.0, 1.0))
    store: Any = None
    crew: Any = ALONE
    diary: Any = None

    def attack(self, id: str, **settings: Any) -> Any:
        raise AssertionError

    def progress(self, done: int, total: int, text: str = "") -> None: ...


# Adversarial training -------------------------------------------------------------------------------------------


def linear(weights: Tensor, bias: float = 0.1) -> nn.Module:
    """A binary classifier with one output, w.x + b."""
    module = nn.Linear(len(weights), 1)
    with torch.no_grad():
        module.weight.copy_(weights[None])
        module.bias.fill_(bias)
    return module


def binary(module: nn.Module) -> TorchTarget:
    return TorchTarget(module, "line", Domain(task="classification", classes=2), "logits")


def worst_loss(weights: Tensor, x: Tensor, y: Tensor, drop: float) -> Tensor:
    """Logistic loss with every margin smaller by `drop`: the worst case of a linear model."""
    sign = 2.0 * y - 1
    return F.softplus(-(sign * (x @ weights + 0.1) - drop))


@pytest.mark.parametrize(
    ("space", "dual", "steps", "least"),
    [(Linf(), 1.0, 7, 0.9999), (L2(), 2.0, 15, 0.98), (L1(), torch.inf, 60, 0.98)],
    ids=["linf", "l2", "l1"],
)
def test_the_inner_attack_finds_the_worst_case_of_a_linear_model(
    space: Any, dual: float, steps: int, least: float
) -> None:
    """max over ||d||_p <= r of the logistic loss lowers every margin by r times the dual norm of w.

    On a sphere the steps, 2.5 radii long in all, turn a random start towards the optimum by a factor of about e^-2.5.
    """
    g = torch.Generator().manual_seed(0)
    weights, x = torch.randn(20, generator=g), torch.randn(32, 20, generator=g)
    y = torch.arange(32) % 2
    z = worst_case(binary(linear(weights)).forward, x, y, space, 0.4, steps, Rng(1, 32), torch.arange(32))
    drop = -(2.0 * y - 1) * ((z - x) @ weights)
    share = drop / (0.4 * torch.linalg.vector_norm(weights, dual))
    assert bool((space.distance(z, x) <= 0.4 + 1e-6).all())
    assert float(share.max()) <= 1 + 1e-5
    assert float(share.mean()) >= least


def test_the_training_loss_is_the_robust_logistic_loss() -> None:
    """min over w of mean softplus(-(y w.x - eps |w|_1)): what adversarial training of a linear model descends on."""
    g = torch.Generator().manual_seed(2)
    weights, x = torch.randn(10, generator=g), torch.randn(24, 10, generator=g)
    y = torch.arange(24) % 2
    module = linear(weights)
    how = PGDTraining(ramp=0.0, steps=5)
    drill = Drill(how, binary(module), Linf(), 0.3, Rng(0, 24))
    module.train()
    loss = drill.step(module, Batch(x, y, torch.arange(24)))
    (grad,) = torch.autograd.grad(loss, module.weight)
    own = weights.clone().requires_grad_()
    truth = worst_loss(own, x, y, 0.3 * own.abs().sum()).mean()  # type: ignore[arg-type]
    (expected,) = torch.autograd.grad(truth, own)
    assert loss.item() == pytest.approx(truth.item(), rel=1e-5)
    torch.testing.assert_close(grad[0], expected, rtol=1e-4, atol=1e-5)
    assert module.training


def test_training_comes_to_the_minimum_of_the_robust_loss() -> None:
    """Two features: one strong but small, one weak but large. Beyond its size the small one is worth nothing."""
    g = torch.Generator().manual_seed(5)
    y = torch.arange(200) % 2
    sign = 2.0 * y - 1
    x = torch.stack([0.2 * sign, sign + 0.8 * torch.randn(200, generator=g)], 1)
    data = Data(x, y, x, y)
    module = linear(torch.tensor([3.0, 0.0]), 0.0)
    how = PGDTraining(epochs=150, rate=0.1, batch_size=200, steps=3)
    made: Any = how(binary(module), data, Rng(0), Context(0.4, Linf())).target
    small, large = made.module.weight[0].detach()
    assert abs(float(small)) < 0.05
    assert float(large) > 1
    assert module.weight[0, 0].item() == 3.0


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_radius_grows_over_the_ramp_and_no_further(share: float) -> None:
    seen: list[float] = []

    class Spy(PGDTraining):
        def loss(self, inner: Inner, batch: Batch) -> Tensor:
            seen.append(inner.radius)
            return inner.answer(batch.x).values.sum()

    x, y = torch.rand(8, 2), torch.arange(8) % 2
    how = Spy(epochs=10, batch_size=2, ramp=share)
    how(binary(linear(torch.ones(2))), Data(x, y, x, y), Rng(0), Context(1.0, Linf()))
    assert len(seen) == 40
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert seen[0] == (1.0 if share == 0 else pytest.approx(1 / 20))
    assert seen[int(share * 40)] == 1.0


def test_clean_loss_is_mixed_in_by_its_share() -> None:
    weights = torch.tensor([1.0, -2.0])
    x, y = torch.tensor([[0.5, 0.2], [0.1, -0.4]]), torch.tensor([1, 0])

    def loss(clean: float) -> float:
        drill = Drill(PGDTraining(ramp=0.0, clean=clean), binary(linear(weights)), Linf(), 0.2, Rng(0, 2))
        return drill.step(linear(weights), Batch(x, y, torch.arange(2))).item()

    hard, easy = (float(worst_loss(weights, x, y, drop).mean()) for drop in (0.2 * 3.0, 0.0))
    assert loss(0.25) == pytest.approx(0.75 * hard + 0.25 * easy, rel=1e-5)


# Feature squeezing ----------------------------------------------------------------------------------------------

unit = st.floats(0, 1, width=32)


@settings(max_examples=30, deadline=None)
@given(st.lists(unit, min_size=4, max_size=4), st.integers(1, 8))
def test_squeezing_twice_is_squeezing_once(values: list[float], bits: int) -> None:
    squeezer = Squeezer(torch.tensor(-1.0), torch.tensor([1.0, 2.0, 1.0, 5.0]), bits, 0)
    x = torch.tensor([values])
    once = squeezer(x)
    torch.testing.assert_close(squeezer(once), once, rtol=0, atol=1e-5)
    assert bool(((once - x).abs() <= (squeezer.high - squeezer.low) / (2 * (2**bits - 1)) + 1e-5).all())


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 4))
def test_no_more_levels_than_the_bits_have(bits: int) -> None:
    x = torch.linspace(0, 1, 999)[None]
    assert len(Squeezer(torch.tensor(0.0), torch.tensor(1.0), bits, 0)(x).unique()) == 2**bits


def test_a_feature_that_never_varies_stays_itself() -> None:
    squeezer = Squeezer(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 3.0]), 2, 0)
    assert squeezer(torch.tensor([[0.4, 3.0]])).tolist() == [[pytest.approx(1 / 3), 3.0]]


@pytest.mark.parametrize("side", [2, 3, 4])
def test_medians_equal_those_of_a_loop_over_mirrored_windows(side: int) -> None:
    x = torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(1))
    found = Squeezer(torch.tensor(0.0), torch.tensor(1.0), 0, side)(x)
    before = (side - 1) // 2
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (before, side // 2), (before, side // 2)), mode="reflect")
    for n, c, i, j in np.ndindex(*x.shape):
        window = np.sort(padded[n, c, i : i + side, j : j + side].ravel())
        assert float(found[n, c, i, j]) == window[(len(window) - 1) // 2]


def test_the_squeezed_model_has_no_gradient_and_its_stand_in_has_the_models_own() -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    target = TorchTarget(inner, "m", Domain(task="classification", classes=3, low=0.0, high=1.0), "logits")
    x = torch.rand(5, 1, 4, 4)
    data = Data(x, torch.zeros(5).long(), x, torch.zeros(5).long())
    made: Any = Squeeze(bits=2)(target, data, Rng(0), Context()).target
    assert isinstance(made, Adaptive)
    soft = made.softened()

    def slope(of: Any, at: Tensor) -> tuple[Tensor, Tensor]:
        leaf = at.clone().requires_grad_()
        values = of.forward(leaf).values
        return values.detach(), torch.autograd.grad(values[:, 0].exp().sum(), leaf)[0]

    hard_values, hard_slope = slope(made, x)
    soft_values, soft_slope = slope(soft, x)
    whole: Cleansed = made.module
    _, own_slope = slope(target, whole.cleanser(x))
    assert torch.equal(hard_values, soft_values)
    assert bool((hard_slope == 0).all())
    assert torch.equal(soft_slope, own_slope)
    assert bool((soft_slope != 0).any())


def test_windows_that_do_not_fit_are_refused() -> None:
    target = TorchTarget(nn.Linear(4, 2), "m", Domain(task="classification", classes=2), "logits")
    flat = Data(torch.rand(4, 4), torch.zeros(4).long(), torch.rand(4, 4), torch.zeros(4).long())
    with pytest.raises(NotOffered, match="set median=0"):
        Squeeze(median=2)(target, flat, Rng(0), Context())
    small = Data(None, None, torch.rand(4, 1, 2, 2), torch.zeros(4).long())
    with pytest.raises(NotOffered, match="set a smaller median"):
        Squeeze(median=3)(target, small, Rng(0), Context())


# Differential privacy -------------------------------------------------------------------------------------------


def gaussian_epsilon(sigma: float, delta: float) -> float:
    """The exact epsilon of one Gaussian mechanism (Balle and Wang 2018, Theorem 8), by bisection."""

    def left(epsilon: float) -> float:
        a, b = 0.5 / sigma, epsilon * sigma
        return float(norm.cdf(a - b) - math.exp(epsilon) * norm.cdf(-a - b))

    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) > delta else (low, middle)
    return high


def renyi_epsilon(sigma: float, q: float, steps: int, delta: float) -> float:
    """Subsampled Gaussian at integer orders (Mironov et al. 2019, section 3.3), converted as in Balle et al. 2020."""
    best = math.inf
    for order in range(2, 64):
        terms = [
            math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(order - k + 1)
            + (order - k) * math.log1p(-q) + k * math.log(q) + (k * k - k) / (2 * sigma**2)
            for k in range(order + 1)
        ]  # fmt: skip
        rdp = steps * float(np.logaddexp.reduce(terms)) / (order - 1)
        best = min(best, rdp + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1))
    return best


@pytest.mark.parametrize("sigma", [0.8, 2.0])
def test_the_account_of_a_single_step_is_that_of_the_gaussian_mechanism(sigma: float) -> None:
    plan = DPSGD(noise=sigma, batch_size=50, epochs=1, delta=1e-4, accountant="prv").plan(50)
    assert (plan.sample_rate, plan.steps) == (1.0, 1)
    exact = gaussian_epsilon(sigma, 1e-4)
    assert exact <= plan.epsilon <= exact + 0.03


def test_the_accountants_agree_with_each_other_and_with_the_formula() -> None:
    how: dict[str, Any] = {"noise": 1.2, "batch_size": 64, "epochs": 20}
    renyi, exact = (DPSGD(**how, accountant=name).plan(1000) for name in ("rdp", "prv"))
    own = renyi_epsilon(1.2, 0.064, renyi.steps, renyi.delta)
    assert renyi.delta == 1000**-1.1 < 1 / 1000
    assert renyi.steps == round(20 / 0.064)
    assert renyi.epsilon == pytest.approx(own, rel=0.02)
    assert 0.7 * renyi.epsilon < exact.epsilon < renyi.epsilon


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_the_least_noise_that_keeps_the_budget_is_taken(epsilon: float) -> None:
    plan = DPSGD(epsilon=epsilon, epochs=10, accountant="rdp").plan(1000)
    assert epsilon - 0.02 < plan.epsilon <= epsilon
    less = DPSGD(noise=plan.noise * 0.97, epochs=10, accountant="rdp").plan(1000)
    assert less.epsilon > epsilon


def test_a_budget_that_nothing_keeps_is_refused() -> None:
    with pytest.raises(NotOffered, match="ask for a larger epsilon or fewer epochs"):
        DPSGD(epsilon=1e-7, delta=1e-9, epochs=1000, accountant="rdp").plan(100)


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Tensor], list[Tensor]]]:
    """(weights, clipped sum) of every step, taken before the noise is added."""
    from opacus.optimizers import DPOptimizer

    seen: list[tuple[list[Tensor], list[Tensor]]] = []
    add = DPOptimizer.add_noise

    def listen(self: Any) -> None:
        seen.append(([p.detach().clone() for p in self.params], [p.summed_grad.clone() for p in self.params]))
        add(self)

    monkeypatch.setattr(DPOptimizer, "add_noise", listen)
    return seen


def private_task() -> tuple[TorchTarget, Data]:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    x, y = torch.rand(30, 1, 4, 4), torch.arange(30) % 3
    return TorchTarget(module, "m", Domain(task="classification", classes=3), "logits"), Data(x, y, x, y)


def test_sums_are_those_of_clipped_gradients_one_row_at_a_time(sums: list[Any]) -> None:
    """Slow truth: a backward pass a row, clipped, added up; over the rows that Poisson sampling drew."""
    target, data = private_task()
    how = DPSGD(noise=1.0, clip=0.3, batch_size=10, epochs=3, accountant="rdp")
    how(target, data, Rng(4), Context())
    draws = torch.Generator().manual_seed(derive_seed(Rng(4).child("dp_sgd").seed, "sampling"))
    assert len(sums) == 9
    sizes = []
    for weights, found in sums:
        rows = (torch.rand(30, generator=draws) < 1 / 3).nonzero().flatten()
        sizes.append(len(rows))
        module = target.clone()
        for p, value in zip(module.parameters(), weights, strict=True):
            p.data.copy_(value)
        total = [torch.zeros_like(p) for p in module.parameters()]
        for row in rows:
            loss = F.cross_entropy(module(data.x_train[row : row + 1]), data.y_train[row : row + 1])
            grads = torch.autograd.grad(loss, list(module.parameters()))
            size = torch.cat([g.flatten() for g in grads]).norm()
            for add, g in zip(total, grads, strict=True):
                add += g * min(1.0, 0.3 / float(size))
        for one, other in zip(found, total, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
        assert float(torch.cat([f.flatten() for f in found]).norm()) <= 0.3 * len(rows) + 1e-5
    assert len(set(sizes)) > 1, "Poisson sampling: batches differ in size"


def test_noise_has_the_size_that_the_account_says(sums: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from opacus.optimizers import DPOptimizer

    noise: list[Tensor] = []
    scale = DPOptimizer.scale_grad

    def listen(self: Any) -> None:
        noise.append(torch.cat([(p.grad - p.summed_grad).flatten() for p in self.params]))
        scale(self)

    monkeypatch.setattr(DPOptimizer, "scale_grad", listen)
    target, data = private_task()
    DPSGD(noise=1.7, clip=0.5, batch_size=3, epochs=5, accountant="rdp")(target, data, Rng(0), Context())
    drawn = torch.cat(noise)
    assert float(drawn.std()) == pytest.approx(1.7 * 0.5, rel=4 / math.sqrt(2 * len(drawn)))
    assert abs(float(drawn.mean())) < 4 * 0.85 / math.sqrt(len(drawn))


def test_a_batch_without_rows_still_gets_noise(sums: list[Any]) -> None:
    target, data = private_task()
    how = DPSGD(noise=1.0, batch_size=1, epochs=1, accountant="rdp")
    how(target, data, Rng(0), Context())
    empty = [found for _, found in sums if all(bool((f == 0).all()) for f in found)]
    assert len(sums) == 30
    assert 1 <= len(empty) < 30


def test_batch_normalisation_is_replaced_and_named() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    x, y = torch.rand(12, 1, 4, 4), torch.arange(12) % 3
    target = TorchTarget(module, "m", Domain(task="classification", classes=3), "logits")
    hardened = DPSGD(noise=1.0, epochs=1, accountant="rdp")(target, Data(x, y, x, y), Rng(0), Context())
    made: Any = hardened.target
    assert hardened.facts["replaced_layers"] == ["1: BatchNorm2d -> GroupNorm"]
    assert not any(isinstance(part, nn.BatchNorm2d) for part in made.module.modules())
    assert hardened.facts["sampling"] == "poisson"
    assert any("secure=true" in text for text in hardened.caveats)


def test_secure_noise_is_never_the_same_twice() -> None:
    target, data = private_task()
    how = DPSGD(noise=1.0, epochs=1, accountant="rdp", secure=True)
    first, second = (how(target, data, Rng(0), Context()) for _ in range(2))
    assert first.target.sha256() != second.target.sha256()
    assert not any("secure=true" in text for text in first.caveats)


def test_without_opacus_the_user_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opacus", None)
    target, data = private_task()
    with pytest.raises(MissingExtra, match=r"vauban\[privacy\]"):
        DPSGD()(target, data, Rng(0), Context())


# On digits ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> tuple[TorchTarget, Data]:
    data = load_data("demo:digits")
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    fit(reset(module, 0), data.x_train, data.y_train, seed=0, epochs=30, rate=2e-3)
    domain = Domain(kind="image", task="classification", classes=10, low=0.0, high=1.0)
    return TorchTarget(module, "digits", domain, "logits"), data


def accuracy(target: Any, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((target.forward(x).labels == y).double().mean())


def attacked(target: Any, data: Data) -> Tensor:
    rows = torch.arange(len(data.x_test))
    return worst_case(target.forward, data.x_test, data.y_test, Linf(0.0, 1.0), 0.1, 20, Rng(7, len(rows)), rows)


def test_adversarial_training_pays(small: tuple[TorchTarget, Data]) -> None:
    target, data = small
    made = PGDTraining(epochs=15)(target, data, Rng(0), Context()).target
    before, after = (accuracy(t, attacked(t, data), data.y_test) for t in (target, made))
    assert after > before + 0.15
    assert accuracy(made, data.x_test, data.y_test) > 0.93


def test_squeezing_stops_who_does_not_know_it_and_not_who_does(small: tuple[TorchTarget, Data]) -> None:
    target, data = small
    made: Any = Squeeze(bits=3)(target, data, Rng(0), Context()).target
    naive = accuracy(made, attacked(made, data), data.y_test)
    adaptive = accuracy(made, attacked(made.softened(), data), data.y_test)
    assert naive > 0.9
    assert adaptive < naive - 0.3


def test_distillation_hides_the_gradient_of_the_cross_entropy_only(small: tuple[TorchTarget, Data]) -> None:
    """At temperature 1 the softmax saturates: the naive gradient is exactly 0, that of the logits is as before."""
    target, data = small
    made = DefensiveDistillation(temperature=20.0)(target, data, Rng(0), Context()).target
    assert accuracy(made, data.x_test, data.y_test) > 0.9

    def size(of: Any, loss: Any) -> Tensor:
        leaf = data.x_test.clone().requires_grad_()
        return torch.autograd.grad(loss(of.forward(leaf)).sum(), leaf)[0].flatten(1).abs().amax(1)

    def naive(outputs: Outputs) -> Tensor:
        return F.cross_entropy(outputs.values, data.y_test, reduction="none")

    assert float((size(target, naive) < 1e-20).double().mean()) < 0.05
    assert float((size(made, naive) < 1e-20).double().mean()) > 0.3
    assert float(size(made, naive).median()) < 1e-6 * float(size(target, naive).median())
    assert float((size(made, lambda outputs: dlr(outputs, data.y_test)) < 1e-3).double().mean()) < 0.05
