"""Training methods on models whose worst inputs are known, and against their steps written out."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.crew import ALONE
from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.defences.train.awp import WeightPerturbation
from vauban.defences.train.course import AdversarialTraining, Drill
from vauban.defences.train.fast import FastTraining
from vauban.defences.train.free import FreeTraining
from vauban.defences.train.ibp import IBPTraining
from vauban.defences.train.mart import MART
from vauban.defences.train.multi import SeveralNorms
from vauban.defences.train.pgd import PGDTraining
from vauban.defences.train.trades import TRADES
from vauban.parts.projections import L2, Linf
from vauban.parts.training import Batch
from vauban.schema.errors import BadData, NotOffered
from vauban.targets.torch import TorchTarget

N, D, EPS = 24, 10, 0.3


@dataclass
class Context:
    radius: float | None = EPS
    space: Any = field(default_factory=Linf)
    store: Any = None
    crew: Any = ALONE
    diary: Any = None

    def attack(self, id: str, **settings: Any) -> Any:
        raise AssertionError

    def progress(self, done: int, total: int, text: str = "") -> None: ...


def linear(seed: int = 0) -> nn.Linear:
    """Two classes, whose logits are 0 and w.x + b apart."""
    g = torch.Generator().manual_seed(seed)
    net = nn.Linear(D, 2)
    net.weight.data, net.bias.data = torch.randn(2, D, generator=g), torch.randn(2, generator=g)
    return net


def rows(seed: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(N, D, generator=g), torch.arange(N) % 2


def drill(how: AdversarialTraining, net: nn.Module, space: Any = Linf()) -> Drill:  # noqa: B008
    return Drill(how, TorchTarget(net, "m", Domain(task="classification", classes=2), "logits"), space, EPS, Rng(0, N))


def descended(how: AdversarialTraining, net: nn.Module, space: Any = Linf()) -> tuple[float, Tensor]:  # noqa: B008
    """The loss of one step, and its slope with respect to the weights."""
    loss = drill(how, net, space).step(net, Batch(*rows(), torch.arange(N)))
    (grad,) = torch.autograd.grad(loss, net.weight)  # type: ignore[call-overload]
    return loss.item(), grad


def margins(net: nn.Linear) -> tuple[Tensor, Tensor]:
    """Of the label's logit over the other, at the clean inputs and at those that are worst in linf."""
    x, y = rows()
    apart = net.weight[y] - net.weight[1 - y]
    clean = (apart * x).sum(1) + net.bias[y] - net.bias[1 - y]
    return clean, clean - EPS * apart.abs().sum(1)


def entropies(p: Tensor, q: Tensor) -> Tensor:
    """Kullback-Leibler divergence of two coins, q from p."""
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


def test_trades_is_the_clean_loss_and_the_divergence_at_the_end_of_one_side() -> None:
    """The divergence of a linear model grows to both sides; a row climbs the one on which it begins."""
    net = linear()
    clean, low = margins(net)
    p = clean.sigmoid()
    both = torch.stack([entropies(p, low.sigmoid()), entropies(p, (2 * clean - low).sigmoid())])
    loss, _ = descended(TRADES(beta=3.0, steps=30, ramp=0.0), net)
    least, most = ((F.softplus(-clean) + 3 * side).mean().item() for side in (both.amin(0), both.amax(0)))
    assert least * (1 - 1e-5) <= loss <= most * (1 + 1e-5)
    alone = PGDTraining(steps=30, ramp=0.0)
    assert descended(TRADES(beta=1e-6, steps=5, ramp=0.0), net)[0] == pytest.approx(
        F.softplus(-clean).mean().item(), rel=1e-4
    )
    assert descended(alone, net)[0] == pytest.approx(F.softplus(-low).mean().item(), rel=1e-4)


def test_a_change_is_gone_on_from_in_the_next_epoch_and_grows_with_the_radius() -> None:
    """A flat model moves no point: where the second search ends is where it began."""
    flat = linear()
    flat.weight.data.zero_()
    trained = drill(PGDTraining(recall=True, steps=3, ramp=0.0), flat)
    batch = Batch(*rows(), torch.arange(N))
    first, second, wide = (
        trained.inner(flat, radius, "step", number).worst(batch, 3, recall=True)
        for number, radius in enumerate((EPS, EPS, 2 * EPS))
    )
    elsewhere = trained.inner(flat, EPS, "step", 1).worst(batch, 3)
    torch.testing.assert_close(second, first)
    torch.testing.assert_close(wide - batch.x, 2 * (first - batch.x))
    assert float((elsewhere - first).abs().max()) > EPS


def test_the_attack_alone_may_be_made_in_bf16() -> None:
    """A linear model's worst corners are the same; the loss there, and its slope, are those of float32."""
    loss, slope = descended(PGDTraining(steps=5, ramp=0.0), linear())
    coarse, coarse_slope = descended(PGDTraining(steps=5, ramp=0.0, search="bf16"), linear())
    assert coarse == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(coarse_slope, slope)
    with pytest.raises(ValueError, match="precision is one of"):
        PGDTraining(search="half")  # type: ignore[arg-type]


def test_mart_is_its_formula_at_the_worst_inputs() -> None:
    net = linear()
    clean, low = margins(net)
    p, q = clean.sigmoid(), low.sigmoid()
    boosted = -q.log() - (1 - (1 - q).clamp_max(1 - 1e-4)).log()
    truth = (boosted + 2 * entropies(p, q) * (1 - p)).mean()
    (expected,) = torch.autograd.grad(truth, net.weight)
    loss, grad = descended(MART(beta=2.0, steps=5, ramp=0.0), net)
    assert loss == pytest.approx(truth.item(), rel=1e-4)
    torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-4)


def test_awp_is_the_slope_at_the_weights_that_are_worst() -> None:
    net = linear()
    moved = copy.deepcopy(net)
    _, low = margins(net)
    (up,) = torch.autograd.grad(F.softplus(-low).mean(), net.weight)
    moved.weight.data += 0.1 * net.weight.norm().detach() * up / up.norm()
    # the inputs are the worst for the weights as they were
    x, y = rows()
    apart = (net.weight[y] - net.weight[1 - y]).detach()
    z = x - EPS * apart.sign()
    truth = F.cross_entropy(moved(z), y)
    (expected,) = torch.autograd.grad(truth, moved.weight)
    before = net.weight.clone()
    loss, grad = descended(WeightPerturbation(gamma=0.1, delay=0.0, steps=5, ramp=0.0), net)
    assert loss == pytest.approx(truth.item(), rel=1e-4)
    torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(net.weight, before)


def test_awp_waits_and_counts_a_batch_once() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(D, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    batch = Batch(*rows(), torch.arange(N), 0, 0.2)
    plain = drill(PGDTraining(steps=2, ramp=0.0), copy.deepcopy(net).train())
    early = drill(WeightPerturbation(steps=2, ramp=0.0, delay=0.3), copy.deepcopy(net).train())
    late = drill(WeightPerturbation(steps=2, ramp=0.0, delay=0.0), copy.deepcopy(net).train())
    modules = [copy.deepcopy(net).train() for _ in range(3)]
    losses = [d.step(m, batch).item() for d, m in zip((plain, early, late), modules, strict=True)]
    assert losses[0] == losses[1] < losses[2]
    for module in modules:
        assert int(module[1].num_batches_tracked) == 1


def test_one_step_without_noise_is_the_worst_input_of_a_linear_model() -> None:
    net = linear()
    _, low = margins(net)
    loss, _ = descended(FastTraining(noise=0.0, validation=0.0, ramp=0.0), net)
    assert loss == pytest.approx(F.softplus(-low).mean().item(), rel=1e-5)


def test_noise_is_kept_and_goes_beyond_the_ball() -> None:
    """N-FGSM: the step is added to the noise, which is not cut to the ball."""
    seen: list[Tensor] = []
    net = linear()
    net.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach().clone()))
    drill(FastTraining(noise=2.0, ramp=0.0), net).step(net, Batch(*rows(), torch.arange(N)))
    x, _ = rows()
    noise, final = seen[0] - x, seen[1] - x
    assert EPS < float(noise.abs().max()) <= 2 * EPS + 1e-6
    torch.testing.assert_close((final - noise).abs(), torch.full_like(x, EPS), rtol=1e-4, atol=1e-5)


def test_a_collapse_ends_fast_training_with_the_best_epoch() -> None:
    class Scored(FastTraining):
        scores = (0.2, 0.6, 0.5, 0.1, 0.9)

        def judged(self, inner: Any, batch: Batch) -> Tensor:
            made.append(copy.deepcopy(inner.module.state_dict()))
            return torch.full((len(batch.x),), self.scores[len(made) - 1]).double()

    made: list[dict[str, Tensor]] = []
    x, y = rows()
    net = TorchTarget(linear(), "m", Domain(task="classification", classes=2), "logits")
    x, y = torch.cat([x] * 4), torch.cat([y] * 4)
    out = Scored(epochs=5, batch_size=32)(net, Data(x, y, x, y), Rng(0), Context())
    assert len(made) == 4
    assert out.facts["best_epoch"] == 2
    assert "catastrophic overfitting" in out.facts["ended"]
    assert any("ended early" in caveat for caveat in out.caveats)
    kept = out.target.module.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(kept[k], v) for k, v in made[1].items())


def test_free_training_goes_on_from_the_last_change_and_costs_a_pass_a_step() -> None:
    seen: list[Tensor] = []
    net = linear()
    net.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach().clone()))
    work, batch = drill(FreeTraining(ramp=0.0), net), Batch(*rows(), torch.arange(N))
    for _ in range(3):
        work.step(net, batch).backward()
    x, y = rows()
    away = -EPS * (net.weight[y] - net.weight[1 - y]).detach().sign()
    assert len(seen) == 3
    assert torch.equal(seen[0], x)
    # one step of a radius, along the sign of the slope, from nothing: the worst input of a linear model
    torch.testing.assert_close(seen[1], x + away)
    torch.testing.assert_close(seen[2], x + away)
    few = Batch(x[:5], y[:5], torch.arange(5))
    work.step(net, few)
    torch.testing.assert_close(seen[3], x[:5] + away[:5])


def test_free_training_makes_as_many_steps_as_plain_training() -> None:
    counted: list[int] = []
    net = linear()
    x, y = rows()

    class Counts(FreeTraining):
        def loss(self, inner: Any, batch: Batch) -> Tensor:
            counted.append(batch.number)
            return super().loss(inner, batch)

    target = TorchTarget(net, "m", Domain(task="classification", classes=2), "logits")
    Counts(epochs=8, replays=4, batch_size=12)(target, Data(x, y, x, y), Rng(0), Context())
    assert len(counted) == 8 * 2


def test_intervals_of_a_linear_model_are_its_worst_loss() -> None:
    net = linear()
    clean, low = margins(net)
    truth = (0.5 * F.softplus(-clean) + 0.5 * F.softplus(-low)).mean()
    (expected,) = torch.autograd.grad(truth, net.weight)
    loss, grad = descended(IBPTraining(ramp=0.0), net)
    assert loss == pytest.approx(truth.item(), rel=1e-5)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(NotOffered, match="give one in linf"):
        descended(IBPTraining(ramp=0.0), net, L2())


def test_the_worst_of_several_norms_row_by_row() -> None:
    net = linear()
    x, y = rows()
    apart = net.weight[y] - net.weight[1 - y]
    clean = (apart * x).sum(1) + net.bias[y] - net.bias[1 - y]
    drops = torch.stack([EPS * apart.abs().sum(1), 0.9 * apart.norm(dim=1)])
    worst = F.softplus(-(clean - drops.amax(0))).mean()
    mean = F.softplus(-(clean - drops)).mean()
    each = [F.softplus(-(clean - drop)).mean().item() for drop in drops]
    assert descended(SeveralNorms(norms="l2:0.9", steps=20, ramp=0.0), net)[0] == pytest.approx(worst.item(), rel=0.02)
    found = descended(SeveralNorms(norms="l2:0.9", way="mean", steps=20, ramp=0.0), net)[0]
    assert found == pytest.approx(mean.item(), rel=0.02)
    one = descended(SeveralNorms(norms="l2:0.9", way="random", steps=20, ramp=0.0), net)[0]
    assert min(abs(one - value) / value for value in each) < 0.02


@pytest.mark.parametrize(
    ("how", "word"),
    [
        (lambda: SeveralNorms(norms="l7:1"), "norms are written as"),
        (lambda: SeveralNorms(norms="l2"), "norms are written as"),
        (lambda: SeveralNorms(way="best"), "way is one of"),
        (lambda: TRADES(beta=0.0), "beta must be above 0"),
        (lambda: PGDTraining(patience=3), "needs validation above 0"),
        (lambda: PGDTraining(average=1.0), "average is a decay"),
        (lambda: WeightPerturbation(gamma=0.0), "gamma must be above 0"),
        (lambda: FreeTraining(replays=0), "replays must be at least 1"),
        (lambda: IBPTraining(share=0.0), "share is of the worst-case loss"),
    ],
)
def test_settings_that_make_no_sense_are_refused(how: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        how()


def test_too_few_rows_to_judge_on_are_told() -> None:
    x, y = rows()
    target = TorchTarget(linear(), "m", Domain(task="classification", classes=2), "logits")
    with pytest.raises(BadData, match="at least 8 are needed"):
        PGDTraining(validation=0.1)(target, Data(x, y, x, y), Rng(0), Context())
