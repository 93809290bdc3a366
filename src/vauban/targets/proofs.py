"""Which targets have an exact proof, and the arrays that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from vauban.core.target import Target, TorchBacked
from vauban.parts.affine import affine
from vauban.parts.exact.base import ExactModel, Floats
from vauban.parts.exact.linear import Linear
from vauban.parts.exact.neighbours import Neighbours
from vauban.parts.exact.trees import Ensemble, Tree, leaves
from vauban.targets.callable import CallableTarget
from vauban.targets.sklearn import EstimatorFunction

MOST_POINTS = 5_000
"""Training rows of a nearest-neighbour model: their distances are kept pairwise."""
Reader = Callable[[Any], ExactModel | None]


def exact_model(target: Target) -> ExactModel | None:
    """The arrays behind a classifier for which the nearest change of answer can be computed; None for all others.

    Linear models (scikit-learn's, scalers in front of them included, and torch modules that are one linear layer),
    `KNeighborsClassifier` in Euclidean distance, decision trees, random forests, extra trees, gradient boosting.
    """
    if target.domain.task == "regression":
        return None
    if isinstance(target, TorchBacked):
        return _linear(target.module)
    function = target.function if isinstance(target, CallableTarget) else None
    return estimator_model(function.estimator) if isinstance(function, EstimatorFunction) else None


def estimator_model(estimator: Any) -> ExactModel | None:
    """As `exact_model`, for a fitted estimator of scikit-learn, by its exact class: a subclass may answer otherwise."""
    ours = type(estimator).__module__.startswith("sklearn.")
    reader = READERS.get(type(estimator).__name__) if ours else None
    return None if reader is None else reader(estimator)


def _linear(module: nn.Module) -> Linear | None:
    """A chain of scalers and one linear layer, folded into one; None for anything else."""
    found = affine(module)
    if found is None:
        return None
    weights, bias = found.folded()
    if len(weights) == 1:  # one score, for the second of two classes
        weights, bias = np.concatenate([0 * weights, weights]), np.concatenate([0 * bias, bias])
    return Linear(weights, bias, unit=float(torch.finfo(found.layer.weight.dtype).eps))


def _neighbours(estimator: Any) -> ExactModel | None:
    euclidean = estimator.effective_metric_ == "euclidean"
    if not euclidean or estimator.weights not in ("uniform", "distance") or estimator.outputs_2d_:
        return None
    points = estimator._fit_X
    if hasattr(points, "toarray") or len(points) > MOST_POINTS:
        return None
    return Neighbours(
        np.asarray(points, dtype=np.float64),
        np.asarray(estimator._y, dtype=np.int64),
        len(estimator.classes_),
        int(estimator.n_neighbors),
        estimator.weights == "distance",
    )


def _nodes(tree: Any, values: Floats) -> Tree:
    return leaves(tree.children_left, tree.children_right, tree.feature, tree.threshold, values, int(tree.n_features))


def _shares(tree: Any) -> Floats:
    values = np.asarray(tree.value, dtype=np.float64)[:, 0, :]
    return values / values.sum(1, keepdims=True)


def _tree(estimator: Any) -> ExactModel | None:
    if estimator.n_outputs_ != 1:
        return None
    answers = np.eye(len(estimator.classes_))[_shares(estimator.tree_).argmax(1)]
    return Ensemble((_nodes(estimator.tree_, answers),), np.zeros(len(estimator.classes_)))


def _forest(estimator: Any) -> ExactModel | None:
    if estimator.n_outputs_ != 1:
        return None
    trees = tuple(_nodes(part.tree_, _shares(part.tree_) / len(estimator)) for part in estimator.estimators_)
    return Ensemble(trees, np.zeros(len(estimator.classes_)))


def _spread(values: Floats, column: int, classes: int) -> Floats:
    """Values `[nodes]` of a tree that speaks for one class, `[nodes, classes]`; of two classes for the second."""
    whole = np.zeros((len(values), classes))
    whole[:, column] = values
    return whole


def _boosting(estimator: Any) -> ExactModel | None:
    plain = estimator.init_ == "zero" or type(estimator.init_).__name__ == "DummyClassifier"
    if not plain:
        return None
    classes, columns = len(estimator.classes_), estimator.estimators_.shape[1]
    start = np.asarray(estimator._raw_predict_init(np.zeros((1, estimator.n_features_in_))), dtype=np.float64)[0]
    trees = []
    for stage in estimator.estimators_:
        for column, part in enumerate(stage):
            values = estimator.learning_rate * np.asarray(part.tree_.value, dtype=np.float64)[:, 0, 0]
            trees.append(_nodes(part.tree_, _spread(values, column if columns > 1 else 1, classes)))
    return Ensemble(tuple(trees), start if columns > 1 else np.array([0.0, start[0]]))


def _histogram(estimator: Any) -> ExactModel | None:
    classes, d = len(estimator.classes_), int(estimator.n_features_in_)
    start = np.asarray(estimator._baseline_prediction, dtype=np.float64).reshape(-1)
    trees = []
    for stage in estimator._predictors:
        for column, part in enumerate(stage):
            nodes = part.nodes
            if nodes["is_categorical"].any():
                return None
            left = np.where(nodes["is_leaf"] != 0, -1, nodes["left"].astype(np.int64))
            values = _spread(nodes["value"], column if len(stage) > 1 else 1, classes)
            right, feature = nodes["right"].astype(np.int64), nodes["feature_idx"]
            trees.append(leaves(left, right, feature, nodes["num_threshold"], values, d))
    return Ensemble(tuple(trees), start if len(start) > 1 else np.array([0.0, start[0]]))


READERS: Mapping[str, Reader] = {
    "KNeighborsClassifier": _neighbours,
    "DecisionTreeClassifier": _tree,
    "ExtraTreeClassifier": _tree,
    "RandomForestClassifier": _forest,
    "ExtraTreesClassifier": _forest,
    "GradientBoostingClassifier": _boosting,
    "HistGradientBoostingClassifier": _histogram,
}
"""Class of scikit-learn -> what reads it."""
