"""The momentum family and JSMA on linear models, whose nearest success is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linear import Linear
from torch import Tensor

from vauban.attacks.catalog import ATTACKS
from vauban.attacks.evasion.jsma import best_pair
from vauban.core.attack import EvasionScene
from vauban.core.rng import Rng
from vauban.engine.oracle import MeteredOracle
from vauban.parts.goals import ClassAs, Misclassify, ReachValue, Shift
from vauban.parts.projections import SPACES

DUAL = {"linf": 1.0, "l2": 2.0}
D, N = 16, 5
FAMILY: dict[str, dict[str, Any]] = {"evasion.mi_fgsm": {}, "evasion.ni_si": {}, "evasion.vmi": {"neighbours": 3}}
BLURRED = {"diversity": 0.5, "kernel": 3}
"""Without effect, for inputs here are vectors."""


def plane(classes: int, seed: int = 0) -> tuple[Linear, Tensor]:
    """Two classes at random; more, all equally far apart: where distances differ, a loss need not lead to the nearest."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(2, D, generator=g) if classes == 2 else torch.eye(classes).repeat_interleave(2, 1)
    w = w if classes == 2 else w * torch.tensor([6.0, -3.0]).repeat(classes)
    return Linear(w, torch.zeros(len(w))), torch.randn(N, w.shape[1], generator=g)


def nearest(target: Linear, x: Tensor, norm: str) -> Tensor:
    """The distance to the nearest other class, `[n]`."""
    z = target.forward(x).values
    y = z.argmax(1)
    size = torch.linalg.vector_norm(target.w[None] - target.w[y][:, None], ord=DUAL[norm], dim=2)
    return torch.where(size > 0, (z.amax(1, keepdim=True) - z) / size, torch.inf).amin(1)


def attack(made: Any, target: Linear, goal: Any, space: Any, x: Tensor, radius: float) -> MeteredOracle:
    oracle = MeteredOracle(target, goal, space, x, radius)
    oracle.begin()
    classes = None if target.kind == "values" else len(target.w)
    made(EvasionScene(oracle, x, space, radius, classes), Rng(0, len(x)))
    return oracle


def hold(made: Any, target: Linear, goal: Any, norm: str, x: Tensor, radius: float = 1.0) -> None:
    """No row is broken at 0.99 of the nearest success, all are at 1.01 of it."""
    for factor, wanted in ((0.99, False), (1.01, True)):
        oracle = attack(made, target, goal, SPACES[norm](), x, radius * factor)
        assert oracle.best.reached.tolist() == [wanted] * len(x), factor


@pytest.mark.parametrize("norm", sorted(DUAL))
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("id", sorted(FAMILY))
def test_the_family_lands_within_one_percent_of_the_optimum(id: str, classes: int, norm: str) -> None:
    target, x = plane(classes)
    x = x / nearest(target, x, norm)[:, None]
    hold(ATTACKS.load(id)(**FAMILY[id], **BLURRED), target, Misclassify(target.forward(x).labels), norm, x)


@pytest.mark.parametrize("norm", sorted(DUAL))
@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize("id", sorted(FAMILY))
def test_every_loss_leads_to_a_wanted_class(id: str, loss: str, norm: str) -> None:
    target, x = plane(2, seed=1)
    x = x / nearest(target, x, norm)[:, None]
    hold(ATTACKS.load(id)(**FAMILY[id], loss=loss), target, ClassAs(1 - target.forward(x).labels), norm, x)


@pytest.mark.parametrize("norm", sorted(DUAL))
@pytest.mark.parametrize("id", sorted(FAMILY))
def test_a_regression_is_shifted_either_way_at_the_known_radius(id: str, norm: str) -> None:
    target, x = plane(2)
    target = Linear(target.w, target.b, "values")
    value, unit = target.forward(x).values, 1 / float(torch.linalg.vector_norm(target.w[0], ord=DUAL[norm]))
    made = ATTACKS.load(id)(**FAMILY[id])
    for residual in (0.4, -0.4):
        hold(made, target, Shift(value - residual, 1.0), norm, x, 0.6 * unit)
    hold(made, target, ReachValue(value - 2.0, 0.5), norm, x, 1.5 * unit)


@pytest.mark.parametrize("id", sorted(FAMILY))
def test_what_the_box_allows_in_linf_is_used(id: str) -> None:
    """All features but one are at the wall that they would have to cross: that one has to make up for them."""
    target = Linear(torch.tensor([[0.0] * 4, [1.0, 1.0, 1.0, -1.0]]), torch.tensor([2.7, 0.0]))
    x, goal = torch.tensor([[1.0, 1.0, 0.0, 0.0]]), Misclassify(torch.tensor([0]))
    for radius, broken in ((0.7 * 0.99, False), (0.7 * 1.01, True)):
        oracle = attack(ATTACKS.load(id)(**FAMILY[id]), target, goal, SPACES["linf"](0.0, 1.0), x, radius)
        assert oracle.best.reached.tolist() == [broken]


@pytest.mark.parametrize("goal", ["targeted", "untargeted"])
@pytest.mark.parametrize("settings", [{}, {"steps": 2}, {"others": "sum", "candidates": 6}])
@pytest.mark.parametrize("fewest", [1, 4, 7])
def test_jsma_needs_as_many_features_as_there_must_be(fewest: int, settings: dict[str, Any], goal: str) -> None:
    """Every feature in the middle of the box closes the gap by as much, up or down."""
    g = torch.Generator().manual_seed(2)
    signs = torch.randint(0, 2, (30,), generator=g) * 2.0 - 1
    x = torch.full((4, 30), 0.5)
    w = torch.stack([-signs, signs])
    # each feature is worth half of both weights: one unit; the gap is half a unit short of `fewest`
    target = Linear(w, torch.stack([x[0] @ signs + (fewest - 0.5), -x[0] @ signs]))
    wanted: Any = {"targeted": ClassAs(torch.ones(4).long()), "untargeted": Misclassify(torch.zeros(4).long())}[goal]
    made = ATTACKS.load("evasion.jsma")(**settings)
    for radius, broken in ((fewest - 1, False), (fewest, True), (fewest + 5, True)):
        oracle = attack(made, target, wanted, SPACES["l0"](0.0, 1.0), x, float(radius))
        assert oracle.best.reached.tolist() == [broken] * 4, radius
    exact = attack(made, target, wanted, SPACES["l0"](0.0, 1.0), x, float(fewest))
    assert exact.best.distance.tolist() == [float(fewest)] * 4


def test_jsma_takes_the_largest_gains_first_where_both_logits_mirror_each_other() -> None:
    g = torch.Generator().manual_seed(3)
    slope = torch.randn(40, generator=g)
    target, x = Linear(torch.stack([-slope, slope]), torch.tensor([4.0, -4.0])), torch.rand(8, 40, generator=g)
    y = target.forward(x).labels
    gap = target.forward(x).values.diff(dim=1).abs()[:, 0]
    towards = slope * torch.where(y == 0, 1.0, -1.0)[:, None]
    gains = 2 * towards.abs() * torch.where(towards > 0, 1 - x, x)
    fewest = (gains.sort(dim=1, descending=True).values.cumsum(1) <= gap[:, None]).sum(1) + 1
    assert int(fewest.max()) > 2
    for i, count in enumerate(fewest.tolist()):
        for less, broken in ((1, False), (0, True)):
            made, one = ATTACKS.load("evasion.jsma")(), x[i : i + 1]
            oracle = attack(made, target, ClassAs(1 - y[i : i + 1]), SPACES["l0"](0.0, 1.0), one, float(count - less))
            assert oracle.best.reached.tolist() == [broken], i


@pytest.mark.parametrize("shift", [0.0, -3.0])
@pytest.mark.parametrize("alone", [False, True])
def test_the_best_pair_is_that_of_the_slow_way(alone: bool, shift: float) -> None:
    """With all features as candidates; with a large negative shift no pair does both, and the largest sum is wanted."""
    g = torch.Generator().manual_seed(4)
    rise, fall = torch.randn(20, 9, generator=g).double(), torch.randn(20, 9, generator=g).double() + shift
    free = torch.rand(20, 9, generator=g) < 0.7
    found = best_pair(rise / 10, fall / 10, free, 27, alone).tolist()
    for row, (first, second) in enumerate(found):
        usable = free[row].nonzero().flatten().tolist()
        pairs = [(i, i) for i in usable] if alone else [(i, j) for i in usable for j in usable if i < j]

        def worth(pair: tuple[int, int], row: int = row) -> tuple[bool, float]:
            up, down = (float(gain[row, sorted(set(pair))].sum()) for gain in (rise, fall))
            return (True, up * down) if min(up, down) > 0 else (False, up + down)

        best = max(pairs, key=worth)
        assert sorted((first, second)) == sorted(best), row
