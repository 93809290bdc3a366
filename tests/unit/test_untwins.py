"""Weights put back into estimators, and estimators as files."""

from __future__ import annotations

import copy
import io
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LinearRegression,
    LogisticRegression,
    Perceptron,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn

from vauban.core.target import Portable
from vauban.schema.errors import CorruptFile
from vauban.targets.digest import digest
from vauban.targets.load import load_target, target
from vauban.targets.options import Options
from vauban.targets.skops import load, written
from vauban.targets.twins import TWINS, twin
from vauban.targets.untwins import WRITERS, untwinned

MLP = MLPClassifier((5,), max_iter=3, random_state=0)
CLASSIFIERS: list[Any] = [
    LogisticRegression(),
    LogisticRegression(fit_intercept=False),
    SGDClassifier(loss="log_loss", random_state=0),
    LinearSVC(),
    RidgeClassifier(),
    RidgeClassifier(fit_intercept=False),
    Perceptron(),
    MLP,
    MLPClassifier((4, 3), activation="tanh", solver="lbfgs", max_iter=3, random_state=0),
    make_pipeline(StandardScaler(), MLP),
    make_pipeline(MinMaxScaler(), "passthrough", make_pipeline(StandardScaler(), LogisticRegression())),
]
REGRESSORS: list[Any] = [
    LinearRegression(), Ridge(fit_intercept=False), Lasso(), ElasticNet(), MLPRegressor(hidden_layer_sizes=(4,), max_iter=3, random_state=0)
]  # fmt: skip
TREES: list[Any] = [
    GradientBoostingClassifier(n_estimators=3),
    HistGradientBoostingClassifier(max_iter=3),
    RandomForestClassifier(3),
    ExtraTreesClassifier(3),
    DecisionTreeClassifier(),
]


def fitted(estimator: Any, x: np.ndarray, y: np.ndarray) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return copy.deepcopy(estimator).fit(x, y)


def changed(estimator: Any) -> nn.Module:
    module = twin(estimator)
    assert module is not None
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=g, dtype=parameter.dtype))
    return module


def name(estimator: Any) -> str:
    return type(estimator).__name__


def two_columns(z: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(z), z], 1) if z.shape[1] == 1 else z


def test_whatever_has_a_twin_can_be_written() -> None:
    assert set(WRITERS) | {"Pipeline"} == set(TWINS)


@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=name)
@pytest.mark.parametrize("rows", [load_breast_cancer, load_iris])
def test_a_classifier_says_what_its_changed_twin_says(estimator: Any, rows: Any) -> None:
    x, y = rows(return_X_y=True)
    x = x / np.abs(x).max(0)
    first = fitted(estimator, x, np.array(["a", "b", "c"])[y])
    module, before = changed(first), digest(first)
    made = untwinned(first, module)
    z = module(torch.from_numpy(x)).detach()
    if hasattr(made, "predict_proba"):
        assert np.allclose(made.predict_proba(x), two_columns(z).softmax(1), rtol=0, atol=1e-12)
    else:
        assert np.allclose(made.decision_function(x).reshape(len(x), -1), z, rtol=0, atol=1e-12)
    assert list(made.classes_) == ["a", "b", "c"][: len(set(y))]
    assert digest(first) == before
    again, wanted = twin(made).state_dict(), module.state_dict()  # type: ignore[union-attr]
    assert again.keys() == wanted.keys()
    assert all(torch.equal(again[k], wanted[k]) for k in again)


@pytest.mark.parametrize("estimator", REGRESSORS, ids=name)
def test_a_regressor_says_what_its_changed_twin_says(estimator: Any) -> None:
    x, y = load_diabetes(return_X_y=True)
    first = fitted(estimator, x, y)
    module = changed(first)
    told = untwinned(first, module).predict(x)
    assert np.allclose(told, module(torch.from_numpy(x)).detach().reshape(-1), rtol=1e-12, atol=1e-10)


def test_a_module_that_is_no_longer_a_twin_is_not_written() -> None:
    x, y = load_iris(return_X_y=True)
    first = fitted(make_pipeline(StandardScaler(), LogisticRegression()), x, y)
    module = changed(first)
    assert untwinned(first, module) is not None
    assert untwinned(first, nn.Sequential(nn.Tanh(), module)) is None
    module[1].shift += 1.0  # type: ignore[index,operator]  # the scaler stays as it was
    assert untwinned(first, module) is None


@pytest.mark.parametrize("estimator", [*CLASSIFIERS[:8], *TREES], ids=name)
def test_an_estimator_is_the_same_after_saving(estimator: Any, tmp_path: Path) -> None:
    pytest.importorskip("skops")
    x, y = load_iris(return_X_y=True)
    first = target(fitted(estimator, x, y))
    assert isinstance(first, Portable)
    (tmp_path / "model.skops").write_bytes(first.files()["model.skops"])
    again = load_target(tmp_path / "model.skops")
    assert again.sha256() == first.sha256()
    rows = torch.from_numpy(x)
    assert torch.equal(again.forward(rows).values, first.forward(rows).values)
    assert fitted(estimator, x[10:], y[10:]) is not None
    assert target(fitted(estimator, x[:, ::-1], y)).sha256() != first.sha256()


def test_without_skops_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skops", None)
    assert written(LogisticRegression()) == {}


@pytest.mark.parametrize("change", ["child", "loop", "feature"])
@pytest.mark.parametrize("estimator", TREES[:3], ids=name)
def test_trees_that_point_outside_are_refused(estimator: Any, change: str, tmp_path: Path) -> None:
    """scikit-learn follows such indices unchecked."""
    pytest.importorskip("skops")
    x, y = load_iris(return_X_y=True)
    bad = fitted(estimator, x, y)
    trees = bad._predictors[0][0] if hasattr(bad, "_predictors") else np.asarray(bad.estimators_).flat[0].tree_
    names = ("left", "feature_idx") if hasattr(trees, "nodes") else ("left_child", "feature")
    values = {"child": (names[0], 10_000), "loop": (names[0], 0), "feature": (names[1], 17)}
    field, value = values[change]
    if hasattr(trees, "nodes"):
        trees.nodes[field][0] = value
    else:
        state = trees.__getstate__()
        nodes = state["nodes"].copy()
        nodes[field][0] = value
        trees.__setstate__({**state, "nodes": nodes})
    (tmp_path / "m.skops").write_bytes(written(bad)["model.skops"])
    with pytest.raises(CorruptFile, match="nodes point outside"):
        load(tmp_path / "m.skops", Options())


def test_a_digest_tells_contents_and_not_objects() -> None:
    shared = [1.0, "a"]
    assert digest({"x": shared, "y": shared}) == digest({"y": [1.0, "a"], "x": [1.0, "a"]})
    assert len({digest(thing) for thing in ([1], [1.0], (1,), [[1]], [1, 1], "1", b"1", {1: 1}, {1}, None, True)}) == 11
    assert digest(np.arange(4)) != digest(np.arange(4).reshape(2, 2))
    assert digest(np.random.RandomState(0)) == digest(np.random.RandomState(1)), "no answer depends on it"
    endless: list[Any] = []
    endless.append(endless)
    assert digest(endless) == digest(endless)


def test_an_exported_program_is_written_with_its_new_weights(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3)).eval()
    batch = torch.export.Dim("batch", min=1)
    torch.export.save(torch.export.export(net, (torch.zeros(2, 4),), dynamic_shapes=({0: batch},)), tmp_path / "m.pt2")
    first: Any = load_target(tmp_path / "m.pt2")
    module = first.clone()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.3)
    changed_ = first.around(module, "+x")
    x = torch.randn(7, 4)
    kept = first.forward(x).values
    files = changed_.files()
    assert list(files) == ["model.pt2"]
    again = load_target(_placed(tmp_path / "n.pt2", files["model.pt2"]))
    assert torch.equal(again.forward(x).values, changed_.forward(x).values)
    assert again.sha256() == changed_.sha256()
    assert torch.equal(first.forward(x).values, kept)
    assert not torch.equal(kept, again.forward(x).values)
    assert torch.equal(torch.export.load(io.BytesIO(first.files()["model.pt2"])).module()(x), kept)
    assert first.around(nn.Sequential(nn.Tanh(), module), "+y").files() == {}


def _placed(path: Path, written_: bytes) -> Path:
    path.write_bytes(written_)
    return path
