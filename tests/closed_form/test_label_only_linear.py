"""Linear models: label-only attacks come within five percent of the nearest success, each on a budget of its own."""

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
from vauban.schema.access import Access

DUAL = {"linf": 1.0, "l2": 2.0}
ROWS = 5


def two() -> Tensor:
    return torch.randn(2, 16, generator=torch.Generator().manual_seed(0))


def ten() -> Tensor:
    """All classes equally far apart in every norm, so that whichever is walked to, the nearest is the same kind."""
    return torch.kron(torch.eye(10), torch.tensor([[6.0, -3.0]]))


MODELS = {"two": two, "ten": ten}


def scene(w: Tensor, norm: str) -> tuple[Linear, Tensor, Tensor]:
    """A model, rows at distance 1 of their nearest other class, and their classes."""
    target = Linear(w)
    x = torch.randn(ROWS, w.shape[1], generator=torch.Generator().manual_seed(0))
    z = target.forward(x).values
    y = z.argmax(1)
    size = torch.linalg.vector_norm(w[None] - w[y][:, None], ord=DUAL[norm], dim=2)
    away = torch.where(size > 0, (z.gather(1, y[:, None]) - z) / size, torch.inf)
    return target, x / away.amin(1, keepdim=True), y


def attack(id: str, norm: str, target: Linear, goal: Any, x: Tensor, radius: float, **more: Any) -> MeteredOracle:
    space = SPACES[norm]()
    oracle = MeteredOracle(target, goal, space, x, radius, access=Access.LABELS, nearest=radius == float("inf"))
    oracle.begin()
    made = ATTACKS.load(id)(queries=QUERIES[id, norm])
    made(EvasionScene(oracle, x, space, radius, len(target.w), **more), Rng(0, len(x)))
    return oracle


QUERIES = {
    ("evasion.adba", "linf"): 400,
    ("evasion.boundary", "l2"): 1000,
    ("evasion.geoda", "l2"): 600,
    ("evasion.geoda", "linf"): 600,
    ("evasion.hop_skip_jump", "l2"): 300,
    ("evasion.rays", "linf"): 300,
    ("evasion.sign_opt", "l2"): 800,
    ("evasion.surfree", "l2"): 800,
}
"""What each needs for 16 to 20 features."""
CASES = sorted(QUERIES)


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize(("id", "norm"), CASES)
def test_the_nearest_success_is_met_within_five_percent(id: str, norm: str, model: str) -> None:
    target, x, y = scene(MODELS[model](), norm)
    oracle = attack(id, norm, target, Misclassify(y), x, float("inf"))
    assert bool((oracle.best.distance >= 1 - 1e-5).all())
    assert bool((oracle.best.distance <= 1.05).all()), oracle.best.distance
    assert int(oracle.spent.queries.max()) <= QUERIES[id, norm] + 1


@pytest.mark.parametrize(("id", "norm"), CASES)
def test_a_row_ends_once_it_is_within_the_radius(id: str, norm: str) -> None:
    target, x, y = scene(two(), norm)
    assert not bool(attack(id, norm, target, Misclassify(y), x, 0.99).best.reached.any())
    oracle = attack(id, norm, target, Misclassify(y), x, 1.5)
    assert bool(oracle.best.reached.all())
    assert int(oracle.spent.queries.max()) < QUERIES[id, norm] / 2


@pytest.mark.parametrize(("id", "norm"), CASES)
def test_a_wanted_class_is_reached_from_a_donor(id: str, norm: str) -> None:
    target, x, y = scene(two(), norm)
    oracle = attack(id, norm, target, ClassAs(1 - y), x, float("inf"), donors=torch.cat([x, -x]))
    assert bool((oracle.best.distance <= 1.05).all()), oracle.best.distance


@pytest.mark.parametrize(("id", "norm"), CASES)
def test_a_regression_is_shifted(id: str, norm: str) -> None:
    w = two()[:1]
    target, x = Linear(w, kind="values"), torch.randn(ROWS, w.shape[1], generator=torch.Generator().manual_seed(1))
    nearest = 1 / float(torch.linalg.vector_norm(w, ord=DUAL[norm]))
    # an exact prediction: both sides are equally near, for a walk along the boundary stays on the side where it began
    oracle = attack(id, norm, target, Shift(target.forward(x).values, 1.0), x, float("inf"))
    assert bool((oracle.best.distance >= (1 - 1e-4) * nearest).all())
    assert bool((oracle.best.distance <= 1.05 * nearest).all()), oracle.best.distance / nearest
