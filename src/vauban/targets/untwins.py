"""Weights that were trained in a twin, put back into the estimator that it is the twin of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from vauban.targets.skops import written
from vauban.targets.twins import twin

Writer = Callable[[Any, list[nn.Linear]], None]
"""(fitted estimator to be changed, linear layers in their order)."""


def untwinned(estimator: Any, module: nn.Module) -> Any:
    """A copy of the estimator that answers as `module` does, a twin of it with other weights; None where there is none.

    The twin of the copy has the weights of `module`, bit for bit. What the estimator's own training left behind and would go on
    from (an optimiser's moments) is not in the copy.
    """
    like = twin(estimator)
    if like is None or [type(part) for part in like.modules()] != [type(part) for part in module.modules()]:
        return None
    made = copy.deepcopy(estimator)
    last = _last(made)
    if type(last).__name__ not in WRITERS:
        return None
    WRITERS[type(last).__name__](last, [part for part in module.modules() if isinstance(part, nn.Linear)])
    again, wanted = twin(made), module.state_dict()
    held = {} if again is None else again.state_dict()
    same = held.keys() == wanted.keys() and all(torch.equal(held[name], wanted[name].cpu()) for name in held)
    return made if same else None


def untwinned_files(estimator: Any, module: nn.Module) -> dict[str, bytes]:
    """`model.skops` with the estimator of `untwinned`; nothing where there is none, or where skops is not installed."""
    made = untwinned(estimator, module)
    return {} if made is None else written(made)


def _last(estimator: Any) -> Any:
    """What answers at the end of a pipeline; the estimator itself where it is none."""
    steps = getattr(estimator, "steps", None)
    if steps is None:
        return estimator
    return _last(next(step for _, step in reversed(steps) if step not in (None, "passthrough")))


def _array(tensor: torch.Tensor) -> np.ndarray:
    return np.array(tensor.detach().cpu().numpy())


def _linear(estimator: Any, layers: list[nn.Linear]) -> None:
    (layer,) = layers
    weights, bias = _array(layer.weight), _array(layer.bias)
    estimator.coef_ = weights.reshape(np.shape(_dense(estimator.coef_)))
    one = np.ndim(estimator.intercept_) == 0 and len(bias) == 1
    estimator.intercept_ = float(bias[0]) if one else bias


def _dense(matrix: Any) -> Any:
    return matrix.toarray() if hasattr(matrix, "toarray") else matrix


def _mlp(estimator: Any, layers: list[nn.Linear]) -> None:
    estimator.coefs_ = [np.ascontiguousarray(_array(layer.weight).T) for layer in layers]
    estimator.intercepts_ = [_array(layer.bias) for layer in layers]
    vars(estimator).pop("_optimizer", None)


WRITERS: Mapping[str, Writer] = {
    "LogisticRegression": _linear,
    "LogisticRegressionCV": _linear,
    "SGDClassifier": _linear,
    "LinearSVC": _linear,
    "RidgeClassifier": _linear,
    "Perceptron": _linear,
    "MLPClassifier": _mlp,
    "LinearRegression": _linear,
    "Ridge": _linear,
    "Lasso": _linear,
    "ElasticNet": _linear,
    "MLPRegressor": _mlp,
}
"""Class of scikit-learn at the end -> what puts weights into it."""
