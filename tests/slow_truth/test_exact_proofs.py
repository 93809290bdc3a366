"""Exact distances against the slow and obvious: every cell of a tree, a fine grid, a general solver."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.parts.exact.base import LENGTHS, ExactModel, Nearest, certify
from vauban.parts.exact.linear import Linear
from vauban.parts.exact.neighbours import Neighbours
from vauban.parts.exact.trees import Ensemble
from vauban.parts.projections import SPACES
from vauban.schema.access import Access
from vauban.targets.options import Options
from vauban.targets.proofs import estimator_model, exact_model
from vauban.targets.sklearn import sklearn_target
from vauban.targets.torch import TorchTarget

NAMES = ("linf", "l2", "l1")
LOW, HIGH = np.zeros(2), np.ones(2)


def blobs(n: int = 60, classes: int = 3, d: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    x = (rng.uniform(0.15, 0.85, (classes, d))[y] + 0.18 * rng.normal(size=(n, d))).clip(0, 1)
    return x.astype(np.float32).astype(np.float64), y


def near(model: ExactModel, x: np.ndarray, space: str, box: tuple[Any, Any] = (LOW, HIGH), **more: Any) -> Nearest:
    return model.nearest(
        x, model.predict(x), space, *(np.broadcast_to(s, x.shape[1]).astype(float) for s in box), **more
    )


# Linear models --------------------------------------------------------------------------------------------------


def pair_truth(slope: np.ndarray, offset: float, x: np.ndarray, low: float, high: float, space: str) -> float:
    """The least change with slope.(x + change) + offset <= 0 in the box, by a general solver."""
    d = len(x)
    if space == "l2":
        rule = {"type": "ineq", "fun": lambda z: -(slope @ (x + z) + offset), "jac": lambda z: -slope}
        bounds = list(zip(low - x, high - x, strict=True))
        start = np.where(slope > 0, low - x, high - x) * 0.9
        found = minimize(lambda z: z @ z, start, jac=lambda z: 2 * z, bounds=bounds, constraints=[rule], options={"ftol": 1e-14, "maxiter": 500})  # fmt: skip
        return float(np.sqrt(found.fun)) if found.success else np.inf
    # change = up - down; linf: both below r
    cost = np.r_[np.zeros(2 * d), 1.0] if space == "linf" else np.r_[np.ones(2 * d), 0.0]
    rules = [np.r_[slope, -slope, 0.0]]
    most = [-(slope @ x + offset)]
    if space == "linf":
        for i in range(2 * d):
            row = np.zeros(2 * d + 1)
            row[i], row[-1] = 1.0, -1.0
            rules.append(row)
            most.append(0.0)
    bounds = [*((0, h) for h in high - x), *((0, v) for v in x - low), (0, None)]
    found = linprog(cost, A_ub=np.array(rules), b_ub=np.array(most), bounds=bounds)
    return float(found.fun) if found.status == 0 else np.inf


@pytest.mark.parametrize("space", NAMES)
def test_linear_models_against_a_general_solver(space: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(12):
        model = Linear(rng.normal(size=(3, 5)) * (rng.random((3, 5)) > 0.2), 0.3 * rng.normal(size=3))
        x = rng.uniform(0, 1, 5).round(1)[None]
        y = int(model.predict(x)[0])
        pairs = [
            pair_truth(model.weights[y] - model.weights[j], model.bias[y] - model.bias[j], x[0], 0.0, 1.0, space)
            for j in range(3)
            if j != y
        ]
        found = near(model, x, space, (0.0, 1.0))
        assert found.exact.all()
        if np.isinf(min(pairs)):
            assert np.isinf(found.distance[0])
        else:
            assert found.distance[0] == pytest.approx(min(pairs), rel=2e-5, abs=2e-6)


@pytest.mark.parametrize(("space", "dual"), [("linf", 1), ("l2", 2), ("l1", np.inf)])
def test_without_a_box_the_distance_is_the_margin_over_the_dual_norm(space: str, dual: float) -> None:
    rng = np.random.default_rng(2)
    model = Linear(rng.normal(size=(2, 7)), rng.normal(size=2))
    x = rng.normal(size=(20, 7))
    slope = model.weights[1] - model.weights[0]
    expected = np.abs(x @ slope + model.bias[1] - model.bias[0]) / np.linalg.norm(slope, dual)
    found = near(model, x, space, (-np.inf, np.inf))
    np.testing.assert_allclose(found.distance, expected, rtol=1e-8)
    assert (found.distance <= expected).all()


# Trees ----------------------------------------------------------------------------------------------------------


def by_cells(estimator: Any, model: Ensemble, x: np.ndarray, space: str) -> np.ndarray:
    """The nearest cell of the grid of all thresholds with another answer of the estimator itself."""
    edges = []
    for f in range(x.shape[1]):
        cuts = np.concatenate([tree.low[:, f] for tree in model.trees])
        cuts = np.unique(cuts[(cuts > 0) & (cuts < 1)])
        edges.append(np.concatenate([[0.0], cuts, [1.0]]))
    cells = list(itertools.product(*[list(itertools.pairwise(e)) for e in edges]))
    low = np.array([[side[0] for side in cell] for cell in cells])
    high = np.array([[side[1] for side in cell] for cell in cells])
    answers = estimator.predict((low + high) / 2)
    own = estimator.predict(x)
    away = LENGTHS[space](np.clip(x[:, None], low, high) - x[:, None])
    return np.where(answers[None] != own[:, None], away, np.inf).min(1)


FORESTS = [
    DecisionTreeClassifier(max_depth=5, random_state=0),
    RandomForestClassifier(n_estimators=5, max_depth=3, random_state=0),
    ExtraTreesClassifier(n_estimators=4, max_depth=3, random_state=0),
    GradientBoostingClassifier(n_estimators=4, max_depth=2, random_state=0),
    HistGradientBoostingClassifier(max_iter=4, max_leaf_nodes=5, min_samples_leaf=4, random_state=0),
]


@pytest.mark.parametrize("space", NAMES)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("estimator", FORESTS, ids=lambda e: type(e).__name__)
def test_trees_against_every_cell(estimator: Any, classes: int, space: str) -> None:
    x, y = blobs(classes=classes)
    estimator.fit(x, y)
    model = estimator_model(estimator)
    assert isinstance(model, Ensemble)
    np.testing.assert_array_equal(model.predict(x), estimator.predict(x))
    found = near(model, x[:25], space)
    truth = by_cells(estimator, model, x[:25], space)
    assert (found.distance <= truth + 1e-7).all()
    np.testing.assert_allclose(found.distance[found.exact], truth[found.exact], rtol=1e-6, atol=1e-7)
    assert found.exact.mean() > 0.9
    assert np.isfinite(truth).any()


def test_a_larger_forest_stays_sound_when_time_is_short() -> None:
    x, y = blobs(n=300, d=6, classes=2)
    estimator = RandomForestClassifier(n_estimators=10, max_depth=4, random_state=0).fit(x, y)
    model = estimator_model(estimator)
    assert isinstance(model, Ensemble)
    rows = x[:6]
    whole = near(model, rows, "linf", (0.0, 1.0))
    none = near(model, rows, "linf", (0.0, 1.0), deadline=time.monotonic() - 1)
    assert (none.distance <= whole.distance + 1e-9).all()
    assert (none.distance > 0).any()
    assert not none.exact[whole.distance > none.distance].any()


@pytest.mark.parametrize("estimator", [FORESTS[1], KNeighborsClassifier(1)], ids=["forest", "neighbour"])
def test_a_bounded_search_agrees_with_the_whole_one(estimator: Any) -> None:
    x, y = blobs(classes=2)
    model = estimator_model(estimator.fit(x, y))
    assert model is not None
    for space in NAMES:
        whole = near(model, x[:20], space)
        for within in (0.02, 0.05, 0.1):
            rows, labels = torch.from_numpy(x[:20]), torch.from_numpy(model.predict(x[:20]))
            proven = certify(model, rows, labels, space, within, 0.0, 1.0)
            np.testing.assert_array_equal(proven, whole.distance > within * (1 + 1e-6) + 4e-7 * x[:20].max())
            part = near(model, x[:20], space, within=within)
            inside = whole.distance <= within
            np.testing.assert_allclose(part.distance[inside], whole.distance[inside], rtol=1e-5)
            assert (part.distance[~inside] > within).all()
            assert (part.distance <= whole.distance * (1 + 1e-5)).all()


# Neighbours -----------------------------------------------------------------------------------------------------


def by_grid(answer: Any, x: np.ndarray, space: str, side: int = 500) -> np.ndarray:
    """The nearest point of a fine grid of the unit square with another answer."""
    line = np.linspace(0, 1, side + 1)
    points = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    answers, own = answer(points), answer(x)
    return np.array([LENGTHS[space](points[answers != label] - row).min() for row, label in zip(x, own, strict=True)])


@pytest.mark.parametrize("space", NAMES)
def test_one_neighbour_against_a_fine_grid(space: str) -> None:
    x, y = blobs(n=40)
    estimator = KNeighborsClassifier(1).fit(x, y)
    model = estimator_model(estimator)
    assert isinstance(model, Neighbours)
    rows = np.random.default_rng(5).uniform(0, 1, (25, 2))
    np.testing.assert_array_equal(model.predict(rows), estimator.predict(rows))
    found = near(model, rows, space)
    truth = by_grid(estimator.predict, rows, space)
    assert found.exact.all()
    assert (found.distance <= truth).all()
    assert (truth - found.distance <= 4 / 500).all()


@pytest.mark.parametrize("weights", ["uniform", "distance"])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_bound_of_many_neighbours_holds_and_is_worth_something(k: int, weights: str) -> None:
    x, y = blobs(n=60, classes=2)
    estimator = KNeighborsClassifier(k, weights=weights).fit(x, y)
    model = estimator_model(estimator)
    assert isinstance(model, Neighbours)
    rows = np.random.default_rng(6).uniform(0, 1, (30, 2))
    for space in NAMES:
        found = near(model, rows, space)
        truth = by_grid(estimator.predict, rows, space, side=200)
        assert (found.distance <= truth).all()
        assert not found.exact[found.distance > 0].any()
        assert (found.distance > 0.2 * truth).mean() > (0.3 if weights == "uniform" else 0.1)


def test_the_box_keeps_cells_out_of_reach() -> None:
    """One foreign point lies outside the box: its cell begins at 0.5 of the way, and the box ends before."""
    model = Neighbours(np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([0, 1]), 2)
    x = np.zeros((1, 2))
    for space in NAMES:
        assert near(model, x, space, (-3.0, 3.0)).distance[0] == pytest.approx(1.0, rel=1e-5)
        assert near(model, x, space, (-0.9, 0.9)).distance[0] > 0.9


# All together ---------------------------------------------------------------------------------------------------

ALL = [
    make_pipeline(StandardScaler(), LogisticRegression()),
    make_pipeline(MinMaxScaler(), LogisticRegression(solver="liblinear")),
    KNeighborsClassifier(1),
    KNeighborsClassifier(3),
    *FORESTS,
]


@settings(max_examples=18, deadline=None)
@given(
    which=st.integers(0, len(ALL) - 1),
    space=st.sampled_from(NAMES),
    seed=st.integers(0, 9),
    radius=st.floats(0.005, 0.3),
)
def test_nothing_drawn_within_the_radius_breaks_a_certified_row(
    which: int, space: str, seed: int, radius: float
) -> None:
    estimator = ALL[which]
    x, y = blobs(seed=seed, classes=2)
    target = sklearn_target(estimator.fit(x, y), Options())
    model = exact_model(target)
    assert model is not None
    rows = torch.from_numpy(x[:12]).float()
    labels = target.forward(rows).labels
    proven = certify(model, rows, labels, space, radius, 0.0, 1.0)
    ball = SPACES[space](0.0, 1.0)
    rng = Rng(seed, 12)
    for _ in range(40):
        z = ball.sample(rows, radius, rng, torch.arange(12))
        edge = ball.project(rows + 3 * (z - rows), rows, radius)
        for moved in (z, edge):
            kept = target.forward(moved).labels == labels
            assert bool(kept[torch.from_numpy(proven)].all())


@pytest.mark.parametrize("estimator", ALL, ids=lambda e: type(e).__name__)
def test_rows_that_are_answered_otherwise_are_at_no_distance(estimator: Any) -> None:
    x, y = blobs(classes=2)
    model = estimator_model(estimator.fit(x, y))
    model = model or exact_model(sklearn_target(estimator, Options()))
    assert model is not None
    wrong = 1 - model.predict(x[:5])
    found = model.nearest(x[:5], wrong, "l2", LOW, HIGH)
    assert (found.distance == 0).all()
    assert not certify(model, torch.from_numpy(x[:5]), torch.from_numpy(wrong), "l2", 1e-6, 0.0, 1.0).any()
    assert certify(model, torch.zeros(0, 2), torch.zeros(0), "l2", 0.1, 0.0, 1.0).shape == (0,)


def test_what_has_no_exact_proof_is_none() -> None:
    domain = Domain(task="classification", classes=2)
    assert exact_model(TorchTarget(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), domain=domain)) is None
    assert exact_model(TorchTarget(nn.Sequential(nn.Softmax(1), nn.Linear(2, 2)), domain=domain)) is None
    assert exact_model(TorchTarget(nn.Linear(2, 1), domain=Domain(task="regression"))) is None
    found = exact_model(TorchTarget(nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.Softmax(1)), domain=domain))
    assert isinstance(found, Linear)
    x, y = blobs(classes=2)
    assert estimator_model(KNeighborsClassifier(1, metric="manhattan").fit(x, y)) is None
    init = GradientBoostingClassifier(n_estimators=2, init=LogisticRegression()).fit(x, y)
    assert estimator_model(init) is None
    assert Access.GRADIENTS not in sklearn_target(init, Options()).offers
