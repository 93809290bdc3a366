"""Robust trees against slow and obvious ways to the same thing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.datasets import load_iris
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeRegressor

from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.defences.train.grafts import Grown, grafted, plant
from vauban.defences.train.robust_trees import RobustTrees
from vauban.engine.context import HouseContext
from vauban.parts.boosting import Boosting, Nodes, Rows, boosted, corrected, grown, reached, worst
from vauban.parts.projections import L2, Linf
from vauban.schema.errors import BadData, BadThreat, NotOffered
from vauban.targets.load import target as load
from vauban.targets.proofs import estimator_model

STUMP = Boosting(depth=1, penalty=0.5, least=0.0)


def cloud(seed: int, n: int = 25, d: int = 3) -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(seed)
    x = g.uniform(0, 1, (n, d))
    return x, np.where(x[:, 0] + 0.3 * g.normal(size=n) > 0.5, 1.0, -1.0)


def answers(tree: Nodes, x: np.ndarray) -> np.ndarray:
    """Row by row, node by node."""
    out = []
    for row in x:
        node = 0
        while tree.left[node] >= 0:
            node = tree.left[node] if row[tree.feature[node]] <= tree.threshold[node] else tree.right[node]
        out.append(tree.value[node])
    return np.array(out)


@pytest.mark.parametrize(("seed", "radius"), [(0, 0.0), (1, 0.07), (2, 0.07), (3, 0.2)])
def test_a_stump_is_the_best_of_all_splits_in_the_worst_case(seed: int, radius: float) -> None:
    """The quadratic model of the loss, each row at the worse side wherever it can choose, minimised for every split by itself."""
    x, sign = cloud(seed)
    rows = Rows.of(x - radius, x + radius, 1000)
    ahead = np.random.default_rng(seed).normal(size=len(x))
    share = 1 / (1 + np.exp(-ahead))
    slope, curve = share - (sign > 0), share * (1 - share)
    tree = grown(rows, sign, ahead, STUMP)

    def loss(values: np.ndarray, j: int, cut: float) -> float:
        left, right = x[:, j] - radius <= cut, x[:, j] + radius > cut
        told = np.where(
            left & right, sign * np.minimum(sign * values[0], sign * values[1]), values[np.where(left, 0, 1)]
        )
        return float((slope * told + curve / 2 * told**2).sum() + 0.25 * (values**2).sum())

    def least(j: int, cut: float) -> float:
        starts = ([1.0, -1.0], [-1.0, 1.0])
        tried = [minimize(loss, s, (j, cut), "Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}) for s in starts]
        return min(float(found.fun) for found in tried)

    # all splits is too slow: some, and the one that was taken
    some = [(j, cut) for j in range(3) for cut in rows.cuts[j][:: max(1, len(rows.cuts[j]) // 6)]]
    best = min(least(j, cut) for j, cut in some)
    assert least(int(tree.feature[0]), float(tree.threshold[0])) <= best + 1e-7
    assert best < -0.25


def test_without_a_threat_a_tree_is_the_ordinary_one() -> None:
    """With rows that are points and equal curvatures it is the least-squares tree of scikit-learn."""
    x, sign = cloud(1, 60)
    tree = grown(Rows.of(x, x, 1000), sign, np.zeros(60), Boosting(depth=3, penalty=0.0, least=0.0))
    other = DecisionTreeRegressor(max_depth=3, random_state=0).fit(x, sign)
    assert np.allclose(answers(tree, x), 2 * other.predict(x), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_worst_of_a_row_is_the_worst_of_its_box(seed: int) -> None:
    x, sign = cloud(seed)
    tree = grown(Rows.of(x - 0.1, x + 0.1, 50), sign, np.zeros(len(x)), Boosting(depth=3, least=0.0))
    assert (tree.left >= 0).sum() > 2
    leaves = reached(tree, x - 0.1, x + 0.1) & (tree.left < 0)
    told = worst(tree.value, leaves, sign)[0]
    # every cell that thresholds cut a box into has a point in this lattice
    for row, label, value in zip(x, sign, told, strict=True):
        sides = []
        for j in range(3):
            cuts = tree.threshold[tree.feature == j]
            inside = cuts[(cuts >= row[j] - 0.1) & (cuts < row[j] + 0.1)]
            sides.append(np.concatenate([[row[j] - 0.1, row[j] + 0.1], inside, np.nextafter(inside, 2)]))
        found = answers(tree, np.array(list(itertools.product(*sides))))
        assert value == label * (label * found).min()


@pytest.mark.parametrize("seed", range(3))
def test_corrected_leaves_are_nearly_the_best_that_there_are(seed: int) -> None:
    x, sign = cloud(seed, 40)
    how = Boosting(depth=3, rounds=30)
    ahead = 0.3 * np.random.default_rng(seed).normal(size=40)
    tree = grown(Rows.of(x - 0.1, x + 0.1, 50), sign, ahead, how)
    leaves = reached(tree, x - 0.1, x + 0.1) & (tree.left < 0)

    def loss(values: np.ndarray) -> float:
        told = worst(values, leaves, sign)[0]
        return float(np.logaddexp(0, -sign * (ahead + told)).sum() + how.penalty / 2 * (values**2).sum())

    found = corrected(tree.value, leaves, sign, ahead, how)
    assert loss(found) <= min(loss(tree.value), loss(0 * tree.value))
    best = min(loss(minimize(loss, start, method="Powell").x) for start in (found, tree.value))
    nothing = loss(0 * tree.value)
    assert nothing - loss(found) >= 0.9 * (nothing - best)


@pytest.mark.parametrize("columns", [1, 3])
def test_no_tree_makes_the_bound_larger(columns: int) -> None:
    x, sign = cloud(5, 60)
    y = (sign > 0).astype(int) if columns == 1 else np.digitize(x[:, 0] + 0.2 * x[:, 1], [0.4, 0.8])
    low, high = x - 0.08, x + 0.08
    signs = np.where(y[:, None] == (np.arange(columns) if columns > 1 else 1), 1.0, -1.0)
    found = boosted(Rows.of(low, high, 64), y, np.zeros(columns), Boosting(trees=15, depth=2, rate=0.3))
    scores, losses = np.zeros((60, columns)), []
    for stage in found:
        for c, tree in enumerate(stage):
            scores[:, c] += worst(tree.value, reached(tree, low, high) & (tree.left < 0), signs[:, c])[0]
            whole = np.concatenate([np.zeros((60, 1)), scores], 1) if columns == 1 else scores
            losses.append(float((np.logaddexp.reduce(whole, 1) - whole[np.arange(60), y]).sum()))
    assert np.all(np.diff(losses) <= 1e-9)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("classes", [2, 3])
def test_the_booster_of_scikit_learn_says_the_sum_of_the_trees(classes: int) -> None:
    g = np.random.default_rng(0)
    x, y = g.uniform(0, 1, (80, 4)).astype(np.float32), g.integers(0, classes, 80)
    stub = plant(np.array(["a", "b", "c"])[y], 4, 5, 3, 0.3)
    stages = boosted(Rows.of(x.astype(float), x.astype(float), 64), y, stub.start, Boosting(trees=5, depth=3))
    made = grafted(stub, Grown([[t._replace(value=t.value / 0.3) for t in stage] for stage in stages]), 3)
    scores = np.tile(stub.start, (80, 1))
    for stage in stages:
        for c, tree in enumerate(stage):
            scores[:, c] += answers(tree, x)
    assert np.allclose(made.decision_function(x).reshape(80, -1), scores, atol=1e-12)
    assert type(made) is GradientBoostingClassifier
    assert list(made.classes_) == ["a", "b", "c"][:classes]
    again = Grown.of(Grown(stages).state())
    assert all(np.array_equal(a, b) for s, t in zip(stages, again.stages, strict=True)
               for u, v in zip(s, t, strict=True) for a, b in zip(u, v, strict=True))  # fmt: skip


@pytest.fixture(scope="module")
def irises() -> Data:
    x, y = load_iris(return_X_y=True)
    x = ((x - x.min(0)) / np.ptp(x, 0)).astype(np.float32)
    order = np.random.default_rng(0).permutation(150)
    return Data(x[order[:100]], y[order[:100]], x[order[100:]], y[order[100:]])


SCENE = HouseContext(0.06, Linf(0.0, 1.0))


def robust_errors(estimator: object, data: Data, radius: float) -> np.ndarray:
    """bool `[n]`, exactly."""
    model = estimator_model(estimator)
    assert model is not None
    x, y = data.x_test.double().numpy(), data.y_test.numpy()
    found = model.nearest(x, y, "linf", np.zeros(4), np.ones(4), within=radius)
    assert found.exact[found.distance <= radius].all()
    return found.distance <= radius


@pytest.mark.parametrize("binary", [True, False])
def test_the_exact_robust_error_falls_and_lies_within_the_bound(irises: Data, binary: bool) -> None:
    keep = (irises.y_train > 0, irises.y_test > 0) if binary else (slice(None), slice(None))
    data = Data(irises.x_train[keep[0]], irises.y_train[keep[0]] - int(binary), irises.x_test[keep[1]],
                irises.y_test[keep[1]] - int(binary))  # fmt: skip
    plain = GradientBoostingClassifier(n_estimators=15, max_depth=3, random_state=0)
    plain.fit(data.x_train.numpy(), data.y_train.numpy())
    hardened = RobustTrees(trees=15, depth=3)(load(plain, bounds=(0, 1)), data, Rng(0), SCENE)
    ours = hardened.target.estimator  # type: ignore[attr-defined]
    before, after = (robust_errors(e, data, 0.06).mean() for e in (plain, ours))
    assert after <= 0.7 * before
    taught = Data(data.x_train, data.y_train, data.x_train, data.y_train)
    assert robust_errors(ours, taught, 0.06).mean() <= hardened.facts["training_error_bound"] + 1e-12
    price = (ours.predict(data.x_test.numpy()) != data.y_test.numpy()).mean()
    assert price <= (plain.predict(data.x_test.numpy()) != data.y_test.numpy()).mean() + 0.05


def test_what_stands_in_a_pipeline_is_replaced_in_the_datas_own_units(irises: Data) -> None:
    forest = make_pipeline(StandardScaler(), RandomForestClassifier(5, random_state=0))
    target = load(forest.fit(irises.x_train.numpy(), irises.y_train.numpy()), bounds=(0, 1))
    bare = load(forest[-1].fit(irises.x_train.numpy(), irises.y_train.numpy()), bounds=(0, 1))
    made = [RobustTrees(trees=3)(t, irises, Rng(0), SCENE).target for t in (target, bare)]
    assert made[0].sha256() == made[1].sha256()


def test_less_of_the_radius_is_the_smaller_radius(irises: Data) -> None:
    target = load(RandomForestClassifier(2, random_state=0).fit(irises.x_train.numpy(), irises.y_train.numpy()))
    half = RobustTrees(trees=3, share=0.5)(target, irises, Rng(0), SCENE).target.sha256()
    assert half == RobustTrees(trees=3)(target, irises, Rng(0), HouseContext(0.03, Linf(0.0, 1.0))).target.sha256()
    assert half != RobustTrees(trees=3)(target, irises, Rng(0), SCENE).target.sha256()


def test_what_it_is_not_made_for_is_told(irises: Data) -> None:
    target = load(RandomForestClassifier(2, random_state=0).fit(irises.x_train.numpy(), irises.y_train.numpy()), id="f")
    with pytest.raises(BadThreat, match="in linf, and this one is in l2"):
        RobustTrees()(target, irises, Rng(0), HouseContext(1.0, L2()))
    with pytest.raises(BadThreat, match="none was given"):
        RobustTrees()(target, irises, Rng(0), HouseContext(None, None))
    some = irises.y_train > 0
    with pytest.raises(BadData, match="lack class 0"):
        RobustTrees()(
            target, Data(irises.x_train[some], irises.y_train[some], irises.x_test, irises.y_test), Rng(0), SCENE
        )
    net = load(torch.nn.Linear(4, 3), id="net")
    with pytest.raises(NotOffered, match="net is none: give a fitted tree, forest or booster"):
        RobustTrees()(net, irises, Rng(0), SCENE)
