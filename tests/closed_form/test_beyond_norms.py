"""Knobs and patches on linear models, whose worst case is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linear import Linear
from torch import Tensor

from vauban.attacks.catalog import ATTACKS
from vauban.core.attack import EvasionScene
from vauban.core.rng import Rng
from vauban.defences.train.inner import worst_case
from vauban.domains.image.spaces import PICTURES
from vauban.engine.oracle import MeteredOracle
from vauban.parts.goals import ClassAs, Misclassify, Shift
from vauban.schema.access import EVERYTHING, Access

H, W, N = 6, 7, 6


def made(name: str) -> Any:
    return PICTURES[name](torch.tensor(0.0), torch.tensor(1.0))


def attacked(
    id: str, space: str, target: Linear, x: Tensor, goal: Any, radius: float, access: Access = EVERYTHING, **more: Any
) -> tuple[MeteredOracle, Any]:
    room = made(space)
    frame = room.frame(x)
    oracle = MeteredOracle(target, goal, room, frame.start, radius, access=access, render=frame.render)
    oracle.begin()
    classes = None if target.kind == "values" else len(target.w)
    found = ATTACKS.load(id)(**more)(EvasionScene(oracle, frame.start, room, radius, classes), Rng(0, len(x)))
    return oracle, found


def moved_by(weights: Tensor, x: Tensor, b: float) -> Linear:
    """Two classes, the second right wherever the weighted sum exceeds `b`."""
    return Linear(torch.stack([torch.zeros_like(weights), weights]), torch.tensor([0.0, -b]))


def test_a_brightness_is_broken_exactly_where_the_mean_must_fall_by_less_than_the_radius() -> None:
    """The answer is the mean of the picture, which an added amount moves by itself as long as nothing is cut."""
    x = torch.rand(N, 1, H, W, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    target = moved_by(torch.full((1, H, W), 1 / (H * W)), x, 0.3)
    labels = torch.ones(N, dtype=torch.int64)
    need = x.flatten(1).mean(1).double() - 0.3
    for row in range(N):
        for factor, wanted in ((0.99, False), (1.01, True)):
            for access in (EVERYTHING, Access.LABELS):
                radius = float(need[row]) * factor
                oracle, _ = attacked(
                    "evasion.grid", "brightness", target, x[row : row + 1], Misclassify(labels[:1]), radius, access
                )
                assert bool(oracle.best.reached) == wanted


@pytest.mark.parametrize("seed", range(2))
def test_translations_are_searched_as_well_as_every_shift_one_by_one(seed: int) -> None:
    """Between whole pixels a shifted picture is bilinear in the shift, so that a linear model is worst at whole shifts."""
    g = torch.Generator().manual_seed(seed)
    x, weights = torch.rand(N, 1, H, W, generator=g), torch.randn(1, H, W, generator=g)
    reach = 2
    worst = torch.full((N,), torch.inf, dtype=torch.float64)
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            shifted = torch.zeros_like(x)
            for i in range(H):
                for j in range(W):
                    if 0 <= i - down < H and 0 <= j - right < W:
                        shifted[:, :, i, j] = x[:, :, i - down, j - right]
            worst = worst.minimum((shifted * weights).flatten(1).sum(1).double())
    clean = (x * weights).flatten(1).sum(1).double()
    # a little above the worst sum, and a little below
    rows = (clean - worst > 0.1).nonzero().flatten().tolist()
    assert len(rows) > 2
    for row in rows:
        gap = float(clean[row] - worst[row])
        for share, wanted in ((0.99, True), (1.01, False)):
            target = moved_by(weights, x, float(clean[row]) - share * gap)
            one, right_class = x[row : row + 1], torch.ones(1, dtype=torch.int64)
            oracle, found = attacked("evasion.grid", "translation", target, one, Misclassify(right_class), float(reach))
            assert bool(oracle.best.reached) == wanted
            assert bool(found.facts["broken_first_by"]) == wanted


@pytest.mark.parametrize("space", ["rotation", "rigid"])
def test_turns_are_searched_to_within_a_percent_of_a_fine_lattice(space: str) -> None:
    g = torch.Generator().manual_seed(1)
    x, weights = torch.rand(N, 1, H, W, generator=g), torch.randn(1, H, W, generator=g)
    room = made(space)
    frame, radius = room.frame(x), 25.0
    points = room.lattice(frame.start[:1], radius, 8_000)
    worst = torch.full((N,), torch.inf)
    for point in points:
        shown = frame.render(point.expand_as(frame.start), torch.arange(N))
        worst = worst.minimum((shown * weights).flatten(1).sum(1))
    clean = (x * weights).flatten(1).sum(1)
    for row in range(3):
        bound = float(clean[row] - 0.99 * (clean[row] - worst[row]))
        target = moved_by(weights, x, bound)
        oracle, _ = attacked(
            "evasion.grid", space, target, x[row : row + 1], Misclassify(torch.ones(1, dtype=torch.int64)), radius
        )
        assert bool(oracle.best.reached)


@pytest.mark.parametrize("id", ["evasion.pgd", "evasion.apgd"])
def test_gradients_find_the_worst_flow_of_a_ramp(id: str) -> None:
    """A ramp moved by a field: the weighted sum falls most where every control point goes the full way up or down."""
    ramp = torch.linspace(0.2, 0.8, 9)[None, None, None, :].expand(1, 1, 9, 9).contiguous()
    room = made("flow")
    frame, radius = room.frame(ramp), 0.4
    g = torch.Generator().manual_seed(2)
    weights = torch.randn(1, 9, 9, generator=g)
    weights[:, :, [0, -1]] = 0  # what comes in from outside is no ramp
    weights[:, [0, -1]] = 0
    start = frame.start.clone().requires_grad_(True)
    shown = (frame.render(start, torch.zeros(1, dtype=torch.int64)) * weights).sum()
    (slope,) = torch.autograd.grad(shown, start)
    # linear in the horizontal knobs, and blind to the vertical ones
    gain = float(slope[:, 1].abs().sum()) * radius
    clean = float((ramp * weights).sum())
    for share, wanted in ((0.99, True), (1.01, False)):
        target = moved_by(weights, ramp, clean - share * gain)
        oracle, _ = attacked(id, "flow", target, ramp, Misclassify(torch.ones(1, dtype=torch.int64)), radius)
        assert bool(oracle.best.reached) == wanted


def sliding(change: Tensor, share: float) -> Tensor:
    """The largest sum of `change` `[m, h, w]` over any rectangle of at most that share, one by one."""
    best = torch.full((len(change),), -torch.inf, dtype=torch.float64)
    for a in range(1, H + 1):
        for b in range(1, W + 1):
            if a * b <= share * H * W:
                for top in range(H - a + 1):
                    for left in range(W - b + 1):
                        part = change[:, top : top + a, left : left + b]
                        best = best.maximum(part.double().sum((1, 2)))
    return best


@pytest.mark.parametrize(("classes", "goal"), [(2, "untargeted"), (6, "untargeted"), (2, "targeted")])
def test_a_patch_is_as_good_as_the_best_window_of_a_linear_model(classes: int, goal: str) -> None:
    g = torch.Generator().manual_seed(classes)
    x, w = torch.rand(N, 2, H, W, generator=g), torch.randn(classes, 2, H, W, generator=g)
    share = 0.12
    target = Linear(w, torch.zeros(classes))
    z = target.forward(x).values
    true = z.argmax(1)
    aims = torch.arange(classes) if goal == "untargeted" else torch.tensor([0])
    margin = torch.full((N, classes), -torch.inf, dtype=torch.float64)
    for aim in aims.tolist():
        slope = w[aim] - w[true]
        gain = torch.where(slope > 0, slope * (1 - x), -slope * x).sum(1)
        reached = z.gather(1, true[:, None])[:, 0] - z[:, aim] - sliding(gain, share)
        margin[:, aim] = torch.where(true == aim, -torch.inf, -reached.double())
    best = margin.amax(1)
    rows = (best > -torch.inf).nonzero().flatten()
    for row in rows.tolist():
        # the right class is given a lead by which the best window just does, or does not, suffice
        for slack, wanted in ((-0.01, True), (0.01, False)):
            lead = float(best[row]) + slack * max(1.0, abs(float(best[row])))
            b = torch.zeros(classes)
            b[true[row]] = lead
            shifted = Linear(w, b)
            wish: Any = Misclassify(true[row : row + 1]) if goal == "untargeted" else ClassAs(torch.tensor([0]))
            if bool(wish.margin(shifted.forward(x[row : row + 1]), torch.zeros(1, dtype=torch.int64)) > 0):
                continue
            oracle, _ = attacked("evasion.patch", "patch", shifted, x[row : row + 1], wish, share)
            assert bool(oracle.best.reached) == wanted, (row, slack)


def test_a_patch_in_a_regression_goes_both_ways() -> None:
    g = torch.Generator().manual_seed(4)
    x, w = torch.rand(N, 1, H, W, generator=g), torch.randn(1, 1, H, W, generator=g)
    target, share = Linear(w, torch.zeros(1), kind="values"), 0.1
    up = sliding(torch.where(w[0] > 0, w[0] * (1 - x), -w[0] * x).sum(1), share)
    down = sliding(torch.where(w[0] < 0, -w[0] * (1 - x), w[0] * x).sum(1), share)
    assert bool((up > down).any())
    assert bool((up < down).any())
    for row in range(N):
        most = max(float(up[row]), float(down[row]))
        for factor, wanted in ((0.99, True), (1.01, False)):
            one = x[row : row + 1]
            goal = Shift(target.forward(one).values, most * factor)
            assert bool(attacked("evasion.patch", "patch", target, one, goal, share)[0].best.reached) == wanted


def test_a_universal_patch_is_one_and_fools_wherever_it_is_put() -> None:
    """A model that adds up pixels: a bright patch turns every dark picture, at any place."""
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.2
    bright = torch.ones(1, 8, 8)
    target = Linear(torch.stack([-bright, bright]), torch.tensor([12.0, -12.0]))
    labels = target.forward(x).labels
    assert bool((labels == 0).all())
    # 64 pixels of 0.1 in the mean, less 9 of them, and 9 of 1: the sum grows from 6.4 to about 14.5
    _, found = attacked("evasion.universal_patch", "patch", target, x, Misclassify(labels), 9 / 64, steps=20)
    assert found.facts["fooled"] == 1.0
    patch = torch.tensor(found.facts["patch"])
    assert patch.shape == (1, 3, 3)
    assert bool((patch == 1).all())
    changed = (found.x != x)[:, 0]
    assert bool((changed.flatten(1).sum(1) == 9).all())
    corners = {tuple(row.nonzero()[0].tolist()) for row in changed}
    assert len(corners) > 3


def test_training_meets_the_worst_turn_of_a_picture() -> None:
    """The inner attack of adversarial training works on knobs as well, and shows the model pictures."""
    g = torch.Generator().manual_seed(6)
    x, w = torch.rand(N, 1, H, W, generator=g), torch.randn(2, 1, H, W, generator=g)
    target, y = Linear(w, torch.zeros(2)), torch.zeros(N, dtype=torch.int64)
    for name, radius in (("rotation", 30.0), ("flow", 0.5), ("corruption", 3.0), ("patch", 0.1)):
        z = worst_case(target.forward, x, y, made(name), radius, 10, Rng(0, N), torch.arange(N))
        assert z.shape == x.shape
        assert bool(((z >= 0) & (z <= 1)).all())
        if name in ("flow", "patch"):
            gaps = [v.values[:, 1] - v.values[:, 0] for v in (target.forward(z), target.forward(x))]
            assert bool((gaps[0] > gaps[1]).all())
