"""Linear models, whose nearest success is known: attacks that look for it are held against it as a ratio."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linear import Linear
from torch import Tensor

from vauban.attacks.catalog import ATTACKS
from vauban.core.attack import EvasionScene
from vauban.core.rng import Rng
from vauban.engine.oracle import MeteredOracle
from vauban.parts.goals import ClassAs, Misclassify, Shift
from vauban.parts.projections import SPACES

DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}
D, N = 16, 5


def general(classes: int, seed: int = 0) -> tuple[Linear, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    target = Linear(torch.randn(classes, D, generator=g), torch.zeros(classes))
    x = torch.randn(N, D, generator=g)
    return target, x, target.forward(x).labels


def even(classes: int = 10) -> tuple[Linear, Tensor, Tensor]:
    """All classes equally far apart in every norm."""
    w = torch.zeros(classes, 2 * classes)
    for c in range(classes):
        w[c, 2 * c : 2 * c + 2] = torch.tensor([6.0, -3.0])
    target = Linear(w, torch.zeros(classes))
    x = torch.randn(N, 2 * classes, generator=torch.Generator().manual_seed(0))
    return target, x, target.forward(x).labels


def scaled(target: Linear, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """Every row brought to distance 1 of its nearest other class: without offsets, distances grow with the input."""
    z = target.forward(x).values
    gap = z.gather(1, y[:, None]) - z
    size = torch.linalg.vector_norm(target.w[None] - target.w[y][:, None], ord=DUAL[norm], dim=2)
    return x / torch.where(size > 0, gap / size, torch.inf).amin(1, keepdim=True)


def attack(made: Any, target: Linear, goal: Any, space: Any, x: Tensor, radius: float) -> MeteredOracle:
    """All rows at once."""
    oracle = MeteredOracle(target, goal, space, x, radius, nearest=radius == float("inf"))
    oracle.begin()
    made(EvasionScene(oracle, x, space, radius, target.w.shape[0]), Rng(0, len(x)))
    return oracle


STEPS: dict[str, dict[str, Any]] = {
    "evasion.alma": {"steps": 120},
    "evasion.brendel_bethge": {"steps": 150, "starts": 40},
    "evasion.carlini_wagner": {"steps": 200},
    "evasion.ddn": {"steps": 120},
    "evasion.deep_fool": {},
    "evasion.ead": {"steps": 200},
    "evasion.fab": {"steps": 120},
    "evasion.fmn": {"steps": 120},
    "evasion.pdgd": {"steps": 120},
    "evasion.pdpgd": {"steps": 120},
    "evasion.sigma_zero": {"steps": 200},
    "evasion.super_deep_fool": {},
}
MODELS = {
    "binary": lambda: general(2),
    "ten": even,
    "random0": lambda: general(10, 0),
    "random1": lambda: general(10, 1),
}
PAIRS = [(name, norm) for name in STEPS for norm in ATTACKS.load(name).card.spaces if norm in DUAL]
SPARSE = [name for name in STEPS if "l0" in ATTACKS.load(name).card.spaces]


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize(("id", "norm"), PAIRS)
def test_the_nearest_success_is_found_to_one_percent(id: str, norm: str, model: str) -> None:
    target, x, y = MODELS[model]()
    x = scaled(target, x, y, norm)
    made = ATTACKS.load(id)(**STEPS[id])
    oracle = attack(made, target, Misclassify(y), SPACES[norm](), x, float("inf"))
    assert bool((oracle.best.distance >= 1 - 1e-5).all())
    assert bool((oracle.best.distance <= 1.01).all()), oracle.best.distance


@pytest.mark.parametrize(("id", "norm"), PAIRS)
def test_a_wanted_class_is_reached_at_its_own_distance(id: str, norm: str) -> None:
    if "targeted" not in ATTACKS.load(id).card.goals:
        pytest.skip("goes for any class")
    target, x, y = general(2, seed=1)
    x = scaled(target, x, y, norm)
    oracle = attack(ATTACKS.load(id)(**STEPS[id]), target, ClassAs(1 - y), SPACES[norm](), x, float("inf"))
    assert bool((oracle.best.distance <= 1.01).all()), oracle.best.distance


@pytest.mark.parametrize(("id", "norm"), PAIRS)
def test_a_radius_decides_and_ends_the_search(id: str, norm: str) -> None:
    target, x, y = general(2)
    x = scaled(target, x, y, norm)
    made = ATTACKS.load(id)(**STEPS[id])
    near = attack(made, target, Misclassify(y), SPACES[norm](), x, 0.99)
    assert not bool(near.best.reached.any())
    far = attack(made, target, Misclassify(y), SPACES[norm](), x, 1.01)
    assert bool(far.best.reached.all())
    assert bool((far.spent.queries <= near.spent.queries).all())
    assert int(far.spent.queries.sum()) < int(near.spent.queries.sum())


@pytest.mark.parametrize(("id", "norm"), PAIRS)
def test_a_regression_is_shifted_at_the_known_distance(id: str, norm: str) -> None:
    if "regression" not in ATTACKS.load(id).card.tasks:
        pytest.skip("classification only")
    target, x, _ = general(1)
    target = Linear(target.w, target.b, "values")
    prediction = target.forward(x).values
    per_unit = 1 / float(torch.linalg.vector_norm(target.w[0], ord=DUAL[norm]))
    for residual in (0.4, -0.4):
        goal = Shift(prediction - residual, 1.0)
        oracle = attack(ATTACKS.load(id)(**STEPS[id]), target, goal, SPACES[norm](), x, float("inf"))
        assert bool((oracle.best.distance <= 1.01 * 0.6 * per_unit).all()), oracle.best.distance / per_unit


@pytest.mark.parametrize(("id", "norm"), [pair for pair in PAIRS if pair[1] == "linf"])
def test_the_optimum_in_a_box_is_found(id: str, norm: str) -> None:
    """Every feature on a wall, so that only some can move the way that is wanted."""
    g = torch.Generator().manual_seed(4)
    target = Linear(torch.randn(2, D, generator=g), torch.zeros(2))
    x = torch.rand(N, D, generator=g).round()
    y = target.forward(x).labels
    slope, free = _ways(target, x, y)
    gap = -_gap(target, x, y)
    wanted = gap / torch.where(free, slope.abs(), 0).sum(1)
    oracle = attack(ATTACKS.load(id)(**STEPS[id]), target, Misclassify(y), SPACES[norm](0.0, 1.0), x, float("inf"))
    possible = wanted <= 1
    assert bool(possible.any())
    ratio = oracle.best.distance[possible] / wanted[possible]
    assert bool((ratio <= 1.01).all()), ratio
    assert not bool(oracle.best.distance[~possible].isfinite().any())


def _gap(target: Linear, x: Tensor, y: Tensor) -> Tensor:
    z = target.forward(x).values
    return z.gather(1, 1 - y[:, None])[:, 0] - z.gather(1, y[:, None])[:, 0]


def _ways(target: Linear, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Slope of the margin, and which features the box [0, 1] lets follow it, `[n, d]`; `x` lies on its walls."""
    slope = target.w[1 - y] - target.w[y]
    return slope, torch.where(slope > 0, x == 0, x == 1)


@pytest.mark.parametrize("classes", [2, 6])
@pytest.mark.parametrize("id", SPARSE)
def test_the_fewest_features_are_found(id: str, classes: int) -> None:
    """Each to its wall, those of most gain first; the smallest number over the classes."""
    g = torch.Generator().manual_seed(2)
    # all classes' scores grow with other features, so that several must change
    target = Linear(torch.randn(classes, 40, generator=g).abs().sqrt().log(), torch.zeros(classes))
    x = torch.rand(12, 40, generator=g)
    y = target.forward(x).labels
    fewest = []
    for i in range(len(x)):
        counts = []
        for other in set(range(classes)) - {int(y[i])}:
            slope = target.w[other] - target.w[y[i]]
            gains = (slope.abs() * torch.where(slope > 0, 1 - x[i], x[i])).sort(descending=True).values.cumsum(0)
            gap = float(target.forward(x[i : i + 1]).values[0] @ (_one(classes, int(y[i])) - _one(classes, other)))
            counts.append(int((gains <= gap).sum()) + 1)
        fewest.append(min(counts))
    assert max(fewest) > 1
    oracle = attack(ATTACKS.load(id)(**STEPS[id]), target, Misclassify(y), SPACES["l0"](0.0, 1.0), x, float("inf"))
    assert oracle.best.distance.tolist() == fewest


def _one(classes: int, which: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(which), classes).float()


@pytest.mark.parametrize(
    ("id", "settings"), [("evasion.sparse_pgd", {"steps": 150}), ("evasion.sparse_rs", {"queries": 3000})]
)
def test_so_many_features_as_are_needed_are_enough_and_fewer_are_not(id: str, settings: dict[str, Any]) -> None:
    g = torch.Generator().manual_seed(2)
    target = Linear(torch.randn(2, 40, generator=g), torch.zeros(2))
    x = torch.rand(8, 40, generator=g)
    y = target.forward(x).labels
    slope = target.w[1 - y] - target.w[y]
    gains = (slope.abs() * torch.where(slope > 0, 1 - x, x)).sort(dim=1, descending=True).values.cumsum(1)
    fewest = (gains <= -_gap(target, x, y)[:, None]).sum(1) + 1
    assert int(fewest.max()) > 2
    for count in fewest.unique().tolist():
        rows = fewest == count
        for less, wanted in ((1, False), (0, True)):
            space = SPACES["l0"](0.0, 1.0)
            made = ATTACKS.load(id)(**settings)
            oracle = attack(made, target, Misclassify(y[rows]), space, x[rows], float(count - less))
            assert oracle.best.reached.tolist() == [wanted] * int(rows.sum()), (count, less)
