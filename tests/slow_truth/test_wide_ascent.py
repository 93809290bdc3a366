"""The ascent in L1 against a loop over one row, and looking farther away where slopes around the inputs vanish or mislead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vauban.attacks.evasion.apgd import APGD
from vauban.attacks.evasion.ascent import ascend, close_in
from vauban.attacks.evasion.fmn import FMN
from vauban.attacks.evasion.front import Front
from vauban.attacks.evasion.nearest import Nearest, unled
from vauban.core.attack import EvasionScene
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.engine.oracle import MeteredOracle
from vauban.parts.goals import Misclassify
from vauban.parts.projections import SPACES
from vauban.targets.torch import TorchTarget

D, ROWS, RADIUS, STEPS = 30, 5, 0.6, 40


class Formula(nn.Module):
    """Logits by any function of the rows."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(x)


def target_of(answer: Callable[[Tensor], Tensor]) -> TorchTarget:
    return TorchTarget(Formula(answer), domain=Domain(task="classification", classes=2), output="logits")


def scene_of(target: TorchTarget, x: Tensor, y: Tensor, name: str, radius: float, box: bool = True) -> EvasionScene:
    space = SPACES[name](0.0, 1.0) if box else SPACES[name]()
    oracle = MeteredOracle(target, Misclassify(y), space, x, radius, nearest=radius == float("inf"))
    oracle.begin()
    return EvasionScene(oracle, x, space, radius, target.domain.classes)


def hills(seed: int) -> tuple[TorchTarget, Tensor, Tensor]:
    """A curved score that no row can lose within the radius, on inputs some of which touch the box."""
    g = torch.Generator().manual_seed(seed)
    w, v = torch.randn(D, 8, generator=g), torch.randn(8, 1, generator=g)
    x = torch.rand(ROWS, D, generator=g).mul(1.4).sub(0.2).clamp(0, 1)

    def answer(rows: Tensor) -> Tensor:
        score = torch.tanh(rows @ w * 0.3) @ v
        return torch.cat([score + 1000, -score], 1)

    return target_of(answer), x, torch.zeros(ROWS, dtype=torch.int64)


def stuck(slope: Tensor, value: Tensor) -> bool:
    return bool(value >= 1 if slope > 0 else value <= 0)


def by_hand(target: TorchTarget, space: Any, x: Tensor, radius: float, z: Tensor) -> Tensor:
    """Croce and Hein 2021, algorithm 1, for the margin of one row `[1, D]`: the best point."""
    size, best, best_slope, top, every = radius, z, torch.zeros_like(z), -float("inf"), max(1, int(0.04 * STEPS))
    before = int((z != x).sum())
    share = before / D / 1.5
    for number in range(STEPS):
        leaf = z.clone().requires_grad_(True)
        logits = target.forward(leaf).values[0]
        value = logits[1] - logits[0]
        (slope,) = torch.autograd.grad(value, leaf)
        if float(value.detach()) > top:
            best, best_slope, top = z, slope, float(value.detach())
        if number and number % every == 0:
            now = int((best != x).sum())
            if now < 0.95 * before:
                size, z, slope = radius, best, best_slope
            else:
                size = max(size / 1.5, radius / 10)
            share, before = now / D / 1.5, now
        free = [i for i in range(D) if not stuck(slope[0, i], z[0, i])]
        steep = sorted(free, key=lambda i: -abs(float(slope[0, i])))[: max(1, int(share * D))]
        step = torch.zeros_like(z)
        for i in steep:
            step[0, i] = slope[0, i].sign() * size / len(steep)
        z = space.project(z + step, x, radius)
    return best


@pytest.mark.parametrize("seed", range(3))
def test_sparse_ascent_against_a_loop_over_rows(seed: int) -> None:
    target, x, y = hills(seed)
    scene = scene_of(target, x, y, "l1", RADIUS)
    front = Front(scene)
    far = x + 20 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    start = front.project(far)
    best = ascend(scene, front, start, scene.oracle.goal.margin, STEPS)
    for i in range(ROWS):
        alone = by_hand(target, scene.space, x[i : i + 1], RADIUS, start[i : i + 1])
        mine, theirs = (float(target.forward(z).values.diff()) for z in (best[i : i + 1], alone))
        assert mine == pytest.approx(theirs, abs=1e-3)
        assert mine > float(target.forward(start[i : i + 1]).values.diff())


def cliff(threshold: float) -> tuple[TorchTarget, Tensor, Tensor]:
    """Flat wherever the input has not gone `threshold` along one direction; beyond, steep."""
    g = torch.Generator().manual_seed(1)
    way = torch.randn(40, generator=g)
    way = way / way.norm()

    def answer(rows: Tensor) -> Tensor:
        climbed = (rows @ way - threshold).relu()
        return torch.stack([torch.full_like(climbed, 0.01), climbed], 1)

    return target_of(answer), torch.zeros(32, 40), torch.zeros(32, dtype=torch.int64)


@pytest.mark.parametrize("name", ["l2", "l1"])
def test_wider_balls_find_the_gradient_that_is_flat_within_the_radius(name: str) -> None:
    target, x, y = cliff({"l2": 0.7, "l1": 0.3}[name])
    broken = {}
    for wide in (False, True):
        scene = scene_of(target, x, y, name, 1.0, box=False)
        APGD(steps=60, wide=wide)(scene, Rng(0, len(x)))
        broken[wide] = int(scene.oracle.best.reached.sum())
    assert broken[False] == 0
    assert broken[True] >= 3


def test_what_is_found_outside_the_radius_does_not_count_and_a_last_look_there_is_not_paid() -> None:
    target, x, y = hills(0)
    scene = scene_of(target, x, y, "l2", 0.01)
    close_in(scene, Front(scene), x, scene.oracle.goal.margin, 20)
    size = (scene.oracle.best.x.double() - x.double()).norm(dim=1)
    assert float(size.max()) <= 0.01 * (1 + 1e-6)
    assert scene.oracle.spent.gradients.tolist() == [20] * ROWS
    assert scene.oracle.spent.queries.tolist() == [22] * ROWS


class Witness(Nearest):
    """Remembers how far from the inputs it was asked, step by step."""

    def __init__(self, scene: EvasionScene) -> None:
        super().__init__(scene)
        self.space, self.inputs, self.reach = scene.space, scene.x, list[Tensor]()

    def see(self, z: Tensor, rows: Tensor, margin: Tensor) -> Tensor:
        self.reach.append(self.space.distance(z, self.inputs[rows]))
        return super().see(z, rows, margin)


@pytest.mark.parametrize("name", ["l2", "l1"])
def test_rows_whose_slopes_mislead_begin_farther_away_and_end_within_what_was_found(name: str) -> None:
    target, x, y = hills(0)
    scene = scene_of(target, x, y, name, torch.inf, box=False)
    found = Witness(scene)
    near = torch.full((ROWS,), 0.5).double()
    found.distance, found.promised = near.clone(), torch.tensor([2.0, 2.0, 0.5, 0.5, 0.0]).double()
    found.astray = found.misled()
    assert found.astray.tolist() == [True, True, False, False, False]
    FMN(steps=40).run(scene, Front(scene), found, scene.oracle.goal.margin, 40, Rng(0, ROWS))
    reach = torch.stack(found.reach)
    for quarter, ratio in enumerate((8, 4, 2, 1)):
        part = reach[1 + 5 * quarter : 6 + 5 * quarter, :2]
        assert part.max() == pytest.approx(ratio * 0.5, rel=1e-3)
        assert (part <= ratio * 0.5 * (1 + 1e-5)).all()
    # the goal is out of reach, so that the radius grows slowly from there
    assert (reach[22:, :2] > 0.5).all()
    assert (reach[21:, :2] < 0.5 * 1.1**25).all()


def test_only_misled_rows_follow_the_largest_class() -> None:
    target, x, y = hills(1)
    scene = scene_of(target, x, y, "l2", 1.0)
    loss = unled(scene.oracle.goal, lambda outputs, rows: torch.full((len(rows),), 7.0), torch.arange(ROWS) < 2)
    rows = torch.tensor([4, 1, 0])
    margins = scene.oracle.goal.margin(target.forward(x[rows]), rows)
    assert loss(target.forward(x[rows]), rows).tolist() == [7.0, *margins[1:].tolist()]


def test_a_row_is_misled_by_a_success_much_nearer_than_promised() -> None:
    target, x, y = hills(1)
    found = Nearest(scene_of(target, x, y, "l2", 1.0))
    found.promised = torch.tensor([10.0, 10.0, 10.0, 0.0, 0.0]).double()
    found.distance = torch.tensor([2.7, 9.0, torch.inf, 1.0, torch.inf]).double()
    assert found.misled().tolist() == [True, False, False, False, False]
