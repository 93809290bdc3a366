"""Exact torch copies of scikit-learn models: the same function in float64, with gradients.

Each answers logits whose softmax is the estimator's `predict_proba` (its `decision_function`, where it has no
probabilities), or the values of a regression. Formulas are those of scikit-learn's own prediction code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from vauban.parts.affine import LogSigmoids, Scale

Maker = Callable[[Any], nn.Module | None]


def twin(estimator: Any) -> nn.Module | None:
    """The exact copy of a fitted estimator, for inputs `[n, ...]` that are flattened; None where there is none."""
    inner = _twin(estimator)
    return None if inner is None else nn.Sequential(nn.Flatten(), *_layers(inner)).eval()


def _twin(estimator: Any) -> nn.Module | None:
    maker = _row(TWINS, estimator)
    return None if maker is None else maker(estimator)


def _row(table: Mapping[str, Maker], estimator: Any) -> Maker | None:
    """By the exact class: a subclass may predict otherwise."""
    ours = type(estimator).__module__.startswith("sklearn.")
    return table.get(type(estimator).__name__) if ours else None


def _layers(module: nn.Module) -> list[nn.Module]:
    return list(module) if isinstance(module, nn.Sequential) else [module]


def _linear(weights: Any, intercept: Any) -> nn.Linear:
    """`weights` `[outputs, inputs]`."""
    weights = np.array(weights, dtype=np.float64)
    weights = weights.reshape(-1, weights.shape[-1])
    layer = nn.Linear(weights.shape[1], weights.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weights))
        bias = np.broadcast_to(np.asarray(intercept, dtype=np.float64), weights.shape[:1]).copy()
        layer.bias.copy_(torch.from_numpy(bias))
    return layer


def _dense(matrix: Any) -> Any:
    return matrix.toarray() if hasattr(matrix, "toarray") else matrix


def _decision(estimator: Any) -> nn.Module | None:
    coef = np.asarray(_dense(estimator.coef_))
    rows = 1 if len(estimator.classes_) == 2 else len(estimator.classes_)
    return _linear(coef, estimator.intercept_) if coef.reshape(-1, coef.shape[-1]).shape[0] == rows else None


def _one_against_rest(estimator: Any) -> nn.Module | None:
    layer = _decision(estimator)
    return layer if layer is None or len(estimator.classes_) == 2 else nn.Sequential(layer, LogSigmoids())


def _logistic(estimator: Any) -> nn.Module | None:
    return (_one_against_rest if estimator.solver == "liblinear" else _decision)(estimator)


def _sgd(estimator: Any) -> nn.Module | None:
    return (_one_against_rest if estimator.loss == "log_loss" else _decision)(estimator)


def _regression(estimator: Any) -> nn.Module | None:
    coef = np.asarray(_dense(estimator.coef_))
    one = coef.ndim == 1 or coef.shape[0] == 1
    return _linear(coef, estimator.intercept_) if one else None


ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
}


def _mlp(estimator: Any) -> nn.Module | None:
    outputs = estimator.coefs_[-1].shape[1]
    plain = {"softmax": True, "logistic": outputs == 1, "identity": outputs == 1}
    if not plain[estimator.out_activation_]:
        return None
    layers: list[nn.Module] = []
    for weights, bias in zip(estimator.coefs_, estimator.intercepts_, strict=True):
        layers += [_linear(weights.T, bias), ACTIVATIONS[estimator.activation]()]
    return nn.Sequential(*layers[:-1])


def _pipeline(estimator: Any) -> nn.Module | None:
    *before, (_, last) = [(name, step) for name, step in estimator.steps if step not in (None, "passthrough")]
    makers = [_row(SCALERS, step) for _, step in before]
    end = _twin(last)
    if end is None or any(maker is None for maker in makers):
        return None
    scalers = [maker(step) for maker, (_, step) in zip(makers, before, strict=True) if maker is not None]
    return nn.Sequential(*(s for s in scalers if s is not None), *_layers(end))


def _minmax(scaler: Any) -> nn.Module:
    cut = scaler.feature_range if scaler.clip else (-np.inf, np.inf)
    return Scale(-scaler.min_ / scaler.scale_, 1 / scaler.scale_, *map(float, cut))


def _maxabs(scaler: Any) -> nn.Module:
    cut = (-1.0, 1.0) if getattr(scaler, "clip", False) else (-np.inf, np.inf)
    return Scale(0.0, scaler.scale_, *cut)


SCALERS: Mapping[str, Maker] = {
    "StandardScaler": lambda s: Scale(
        s.mean_ if s.with_mean else 0.0, s.scale_ if s.with_std and s.scale_ is not None else 1.0
    ),
    "MinMaxScaler": _minmax,
    "MaxAbsScaler": _maxabs,
    "RobustScaler": lambda s: Scale(s.center_ if s.with_centering else 0.0, s.scale_ if s.with_scaling else 1.0),
}

TWINS: Mapping[str, Maker] = {
    "LogisticRegression": _logistic,
    "LogisticRegressionCV": _logistic,
    "SGDClassifier": _sgd,
    "LinearSVC": _decision,
    "RidgeClassifier": _decision,
    "Perceptron": _decision,
    "MLPClassifier": _mlp,
    "LinearRegression": _regression,
    "Ridge": _regression,
    "Lasso": _regression,
    "ElasticNet": _regression,
    "MLPRegressor": _mlp,
    "Pipeline": _pipeline,
}
"""Class of scikit-learn -> what copies it."""
