"""What generated data rest on: the penalty, mixtures and holes, as formulas; distances whose values are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.defences.train.course import AdversarialTraining, Drill
from vauban.defences.train.cutout import Cutout
from vauban.defences.train.generated import GeneratedData
from vauban.defences.train.mixup import Mixup
from vauban.parts.generators.quality import column_distances, copies, correlation_difference
from vauban.parts.generators.wgan import gradient_penalty
from vauban.parts.projections import Linf
from vauban.parts.training import Batch
from vauban.targets.torch import TorchTarget

N, EPS = 24, 0.1


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [0.5, 1.0, 3.0])
def test_the_penalty_of_a_linear_critic_is_how_far_its_norm_is_from_one(size: float) -> None:
    weight = nn.Parameter(size * F.normalize(normal(12), dim=0))
    real, fake, mix = normal(5, 3, 4, seed=1), normal(5, 3, 4, seed=2), torch.rand(5)
    found = gradient_penalty(lambda z: z.flatten(1) @ weight, real, fake, mix)
    assert found.item() == pytest.approx((size - 1) ** 2, abs=1e-5)
    (grad,) = torch.autograd.grad(found, weight)
    torch.testing.assert_close(grad, 2 * (size - 1) * weight.detach() / size, rtol=1e-4, atol=1e-5)


def test_the_penalty_is_taken_between_the_rows_and_of_packs_together() -> None:
    real, fake, mix = normal(6, 4, seed=1), normal(6, 4, seed=2), torch.rand(6)
    between = mix[:, None] * real + (1 - mix[:, None]) * fake
    slope = 2 * between  # of the sum of squares
    truth = (slope.norm(dim=1) - 1).square().mean()
    assert gradient_penalty(lambda z: z.square().sum(1), real, fake, mix).item() == pytest.approx(
        truth.item(), rel=1e-5
    )
    packed = (slope.view(3, 8).norm(dim=1) - 1).square().mean()
    found = gradient_penalty(lambda z: z.view(3, 8).square().sum(1), real, fake, mix, pack=2)
    assert found.item() == pytest.approx(packed.item(), rel=1e-5)


def drill(how: AdversarialTraining, net: nn.Module) -> Drill:
    target = TorchTarget(net, "m", Domain(task="classification", classes=2), "logits")
    return Drill(how, target, Linf(), EPS, Rng(0, N))


class Seen(nn.Module):
    """A linear model of flattened inputs that remembers them."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.last = nn.Linear(features, 2)
        with torch.no_grad():
            self.last.weight.copy_(normal(2, features, seed=7))
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(x.detach().clone())
        out: Tensor = self.last(x.flatten(1))
        return out


def test_mixup_is_the_loss_of_both_labels_between_two_rows() -> None:
    x, y, net = normal(N, 6), torch.arange(N) % 2, Seen(6)
    work = drill(Mixup(alpha=1.0, ramp=0.0), net)
    loss = work.step(net, Batch(x, y, torch.arange(N), 3))
    draw = work.rng.child("step", 3).numpy("mixup")
    share, other = draw.beta(1.0, 1.0), torch.from_numpy(draw.permutation(N))
    assert 0.01 < share < 0.99
    mixed = share * x + (1 - share) * x[other]
    torch.testing.assert_close(net.inputs[0], mixed.float())
    weights = share * F.one_hot(y, 2) + (1 - share) * F.one_hot(y[other], 2)
    truth = -(weights * net.last(mixed.float()).log_softmax(1)).sum(1).mean()
    assert loss.item() == pytest.approx(truth.item(), rel=1e-5)


def test_mixup_under_attack_is_the_worst_mixture_of_a_linear_model() -> None:
    """With two classes the loss of a mixed label has one low point; the attack ends at one side of the ball."""
    x, y, net = normal(N, 6), torch.arange(N) % 2, Seen(6)
    work = drill(Mixup(alpha=1.0, adversarial=True, steps=30, ramp=0.0), net)
    plain = drill(Mixup(alpha=1.0, ramp=0.0), net).step(net, Batch(x, y, torch.arange(N))).item()
    mixed = net.inputs[-1]
    assert work.step(net, Batch(x, y, torch.arange(N))).item() > plain
    moved = net.inputs[-1] - mixed
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, EPS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 6, 8), (3, 5, 5), (7, 9)])
def test_cutout_is_a_square_around_a_pixel(shape: tuple[int, ...]) -> None:
    x, y = normal(N, *shape), torch.arange(N) % 2
    rows, rng = torch.arange(N), Rng(4, N)
    found = Cutout(side=0.5).cut(x, Rng(4, N), rows)
    height, width = shape[-2:]
    size = round(0.5 * min(height, width))
    tall, wide = rng.integers(rows, height)[:, 0].tolist(), rng.integers(rows, width)[:, 0].tolist()
    truth = x.clone()
    mean = x.mean((0, -2, -1))
    for n in range(N):
        for i in range(height):
            for j in range(width):
                if 0 <= i - tall[n] + size // 2 < size and 0 <= j - wide[n] + size // 2 < size:
                    truth[n, ..., i, j] = mean
    torch.testing.assert_close(found, truth)
    net = Seen(int(np.prod(shape)))
    loss = drill(Cutout(side=1.0, ramp=0.0), net).step(net, Batch(x, y, rows))
    assert loss.item() == pytest.approx(F.cross_entropy(net.last(net.inputs[0].flatten(1)), y).item(), rel=1e-5)


def test_generated_rows_take_the_place_of_rows_of_their_class() -> None:
    x, y = normal(N, 3), torch.arange(N) % 3
    how = GeneratedData(generated=0.5, adversarial=False, ramp=0.0)
    work = drill(how, Seen(3))
    # of class 0 and 2 there are generated rows, of class 1 none
    pool = torch.cat([torch.full((4, 3), 100.0), torch.full((2, 3), 300.0)])
    work.memory |= {"pool": pool, "starts": torch.tensor([0, 4, 4, 6])}
    batch = Batch(x, y, torch.arange(N))
    mixed = how.mixed(work.inner(work.target.module, EPS, "step", 0), batch)
    assert torch.equal(mixed.x[:12], x[:12])
    assert torch.equal(mixed.y, y)
    late = mixed.x[12:]
    assert bool((late[y[12:] == 0] == 100).all())
    assert bool((late[y[12:] == 2] == 300).all())
    assert torch.equal(late[y[12:] == 1], x[12:][y[12:] == 1])
    again = how.mixed(work.inner(work.target.module, EPS, "step", 0), batch)
    assert torch.equal(again.x, mixed.x)


def test_a_generated_row_may_be_any_of_its_class() -> None:
    how = GeneratedData(generated=1.0, adversarial=False)
    work = drill(how, Seen(1))
    work.memory |= {"pool": torch.arange(5.0)[:, None], "starts": torch.tensor([0, 5])}
    batch = Batch(normal(N, 1), torch.zeros(N, dtype=torch.int64), torch.arange(N))
    drawn = torch.cat([how.mixed(work.inner(work.target.module, EPS, "step", n), batch).x for n in range(20)])
    counts = torch.bincount(drawn[:, 0].long(), minlength=5)
    assert int(counts.sum()) == 20 * N
    assert int(counts.min()) > 0.6 * 4 * N


def test_copies_of_training_rows_are_told_and_new_rows_are_not() -> None:
    train, test = normal(400, 5, seed=1), normal(300, 5, seed=2)
    copied = copies(train[torch.randperm(400, generator=torch.Generator().manual_seed(0))[:300]], train, test)
    assert copied.copied
    assert (copied.distance, copied.near) == (0, 1)
    assert copied.expected == pytest.approx(0.05, abs=1e-6)
    fresh = copies(normal(300, 5, seed=3), train, test)
    assert not fresh.copied
    assert fresh.near == pytest.approx(0.05, abs=0.04)
    assert fresh.distance == pytest.approx(1, abs=0.1)
    some = torch.cat([train[:60] + 0.001 * normal(60, 5), normal(240, 5, seed=3)])
    assert copies(some, train, test).copied


def test_rows_that_occur_twice_are_no_copies() -> None:
    """A table of two coins: every row lies on many training rows, made or kept back alike."""
    coins = (normal(300, 2) > 0).float()
    found = copies(coins[:100], coins[100:200], coins[200:])
    assert not found.copied
    assert found.near == 0


def test_distances_of_columns_and_correlations_are_their_definitions() -> None:
    real = np.array([[0.0, 1, 0, 1], [1, 0, 1, 2], [2, 1, 0, 3], [3, 0, 1, 4]])
    made = np.array([[0.0, 1, 0, 11], [1, 1, 0, 12], [2, 1, 0, 13], [5, 1, 0, 14]])
    # the first four values alike but for one; the pair is (1, 0) always instead of half the time; the last all above
    found = column_distances(made, real, [(1, 2)])
    assert found.tolist() == pytest.approx([0.5, 0.25, 1.0])
    x = np.stack([np.arange(10.0), np.arange(10.0), -np.arange(10.0)], 1)
    turned = x * np.array([1, -1, 1])
    # pairs (0, 1) and (1, 2) change from 1 to -1 and back, (0, 2) stays
    assert correlation_difference(turned, x) == pytest.approx(4 / 3)
    assert correlation_difference(replaced(x), x) == pytest.approx(2 / 3)


def replaced(x: np.ndarray) -> np.ndarray:
    """With the first column constant, whose correlations are then 0."""
    out = x.copy()
    out[:, 0] = 5.0
    return out


@pytest.mark.parametrize(
    ("how", "word"),
    [
        (lambda: GeneratedData(generated=0.0), "generated is a share"),
        (lambda: GeneratedData(rounds=0), "rounds must be at least 1"),
        (lambda: GeneratedData(labels="best"), "labels is one of condition, model, agreed"),
        (lambda: GeneratedData(pool=0.0), "nothing would be generated"),
        (lambda: Mixup(alpha=0.0), "nothing would be mixed"),
        (lambda: Mixup(steps=0), "steps must be at least 1"),
        (lambda: Cutout(side=1.5), "side is a share"),
        (lambda: replace(Cutout(), steps=0), "steps must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(how: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        how()
