"""Attacks that see scores alone, on linear models, whose nearest success is known: within five percent of it."""

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
from vauban.schema.threat import Budget

DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}
D, N = 16, 4
BUDGETS: dict[tuple[str, str], dict[str, Any]] = {
    ("evasion.gen_attack", "linf"): {"queries": 2000},
    ("evasion.nes", "linf"): {"queries": 2000},
    ("evasion.nes", "l2"): {"queries": 2000},
    ("evasion.nes", "l1"): {"queries": 2000},
    ("evasion.sign_hunter", "linf"): {"queries": 100},
    ("evasion.simba", "linf"): {"queries": 100},
    ("evasion.simba", "l2"): {"queries": 500},
    ("evasion.simba", "l1"): {"queries": 500},
    ("evasion.spsa", "linf"): {"queries": 2000},
    ("evasion.spsa", "l2"): {"queries": 2000},
    ("evasion.spsa", "l1"): {"queries": 2000},
    ("evasion.square", "linf"): {"queries": 1000},
    ("evasion.square", "l2"): {"queries": 1000},
    ("evasion.square", "l1"): {"queries": 1000},
    ("evasion.zoo", "linf"): {"queries": 1000},
    ("evasion.zoo", "l2"): {"queries": 1000},
    ("evasion.zoo", "l1"): {"queries": 4000},
}
"""What each needs at most: its default or less."""


def binary(norm: str, seed: int = 0) -> tuple[Linear, Tensor, Tensor]:
    """Two classes, and inputs at distance 1 of the boundary."""
    g = torch.Generator().manual_seed(seed)
    target = Linear(torch.randn(2, D, generator=g), torch.zeros(2))
    x = torch.randn(N, D, generator=g)
    z = target.forward(x).values
    size = torch.linalg.vector_norm(target.w[0] - target.w[1], ord=DUAL[norm])
    return target, x * (size / (z[:, 0] - z[:, 1]).abs())[:, None], z.argmax(1)


def even(norm: str, classes: int = 6) -> tuple[Linear, Tensor, Tensor]:
    """Several classes, all equally far apart, and inputs at distance 1 of the nearest other one."""
    w = torch.zeros(classes, 2 * classes)
    for c in range(classes):
        w[c, 2 * c : 2 * c + 2] = torch.tensor([6.0, -3.0])
    target = Linear(w, torch.zeros(classes))
    x = torch.randn(N, 2 * classes, generator=torch.Generator().manual_seed(0))
    z = target.forward(x).values
    best = z.topk(2, 1).values
    size = torch.linalg.vector_norm(w[0] - w[1], ord=DUAL[norm])
    return target, x * (size / (best[:, 0] - best[:, 1]))[:, None], z.argmax(1)


def attack(made: Any, target: Linear, goal: Any, space: Any, x: Tensor, radius: float) -> MeteredOracle:
    oracle = MeteredOracle(target, goal, space, x, radius)
    oracle.begin()
    made(EvasionScene(oracle, x, space, radius, len(target.w)), Rng(0, len(x)))
    return oracle


def hold(made: Any, target: Linear, goal: Any, norm: str, x: Tensor, nearest: float = 1.0) -> None:
    """No row can be broken at 0.99 of the nearest success; all are at 1.05 times it."""
    for factor, wanted in ((0.99, False), (1.05, True)):
        oracle = attack(made, target, goal, SPACES[norm](), x, nearest * factor)
        assert oracle.best.reached.tolist() == [wanted] * len(x), factor
        assert int(oracle.spent.queries.max()) <= made.price(2).queries + 1


@pytest.mark.parametrize("model", ["binary", "even"])
@pytest.mark.parametrize(("id", "norm"), sorted(BUDGETS))
def test_comes_within_five_percent_of_the_optimum(id: str, norm: str, model: str) -> None:
    target, x, y = {"binary": binary, "even": even}[model](norm)
    hold(ATTACKS.load(id)(**BUDGETS[id, norm]), target, Misclassify(y), norm, x)


@pytest.mark.parametrize("norm", sorted(DUAL))
def test_simba_comes_there_along_waves_too(norm: str) -> None:
    target, x, y = binary(norm)
    hold(ATTACKS.load("evasion.simba")(queries=500, basis="dct"), target, Misclassify(y), norm, x)


@pytest.mark.parametrize(("id", "norm"), [pair for pair in sorted(BUDGETS) if pair[1] == "linf"])
def test_a_wanted_class_and_a_regression(id: str, norm: str) -> None:
    target, x, y = binary(norm, seed=1)
    made = ATTACKS.load(id)
    hold(made(**BUDGETS[id, norm]), target, ClassAs(1 - y), norm, x)
    values = Linear(target.w[:1], target.b[:1], "values")
    twice = {"queries": 2 * BUDGETS[id, norm]["queries"]}  # half go to each direction
    nearest = 0.6 / float(values.w.abs().sum())
    hold(made(**twice), values, Shift(values.forward(x).values - 0.4, 1.0), norm, x, nearest)


def few(target: Linear, x: Tensor, y: Tensor, places: int) -> Tensor:
    """The largest gain in the margin of a binary model by changing that many positions within the box, `[n]`."""
    slope = (target.w[1 - y] - target.w[y]).view_as(x)
    gain = torch.where(slope > 0, slope * (1 - x), -slope * x)
    return (gain if x.dim() == 2 else gain.flatten(2).sum(1)).topk(places, 1).values.sum(1)


@pytest.mark.parametrize(("shape", "places"), [((D,), 1), ((D,), 3), ((2, 2, 4), 1), ((2, 2, 4), 2)])
def test_one_pixel_finds_the_best_positions_and_values(shape: tuple[int, ...], places: int) -> None:
    """An offset sets the margin that has to be gained: more than can be, or 1 / 1.05 of it."""
    g = torch.Generator().manual_seed(2)
    w, x = torch.randn(2, D, generator=g), torch.rand(N, *shape, generator=g)
    plain = Linear(w, torch.zeros(2))
    y = plain.forward(x).labels
    z, most = plain.forward(x).values, few(plain, x, y, places)
    radius = float(places * (shape[0] if len(shape) > 1 else 1))
    made = ATTACKS.load("evasion.one_pixel")()
    for factor, wanted in ((1 / 0.99, False), (1 / 1.05, True)):
        for i in range(N):
            offset = torch.zeros(2)
            offset[y[i]] = most[i] * factor - (z[i, y[i]] - z[i, 1 - y[i]])
            oracle = attack(
                made, Linear(w, offset), Misclassify(y[i : i + 1]), SPACES["l0"](0.0, 1.0), x[i : i + 1], radius
            )
            assert bool(oracle.best.reached[0]) is wanted, (i, factor)
            assert int((oracle.best.x != x[i : i + 1]).sum()) <= radius


def test_square_shrinks_its_windows_with_the_queries_that_the_threat_allows() -> None:
    """A threat of 200 queries and settings of 200 queries are the same search; 5,000 would never come to small windows."""
    target, x, y = binary("linf")
    found = []
    for settings, budget in ((200, None), (5000, Budget(queries=201))):
        oracle = MeteredOracle(target, Misclassify(y), SPACES["linf"](), x, 0.9, budget=budget)
        oracle.begin()
        made = ATTACKS.load("evasion.square")(queries=settings)
        made(EvasionScene(oracle, x, SPACES["linf"](), 0.9, 2), Rng(0, len(x)))
        found.append((oracle.best.x, oracle.spent.queries.tolist()))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] == [201] * N
