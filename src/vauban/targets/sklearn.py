"""scikit-learn estimators: linear models and MLPs by their exact torch copies, everything else as a black box."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
from torch import Tensor

from vauban.core.target import Domain, OutputKind, Recipe, Target
from vauban.schema.errors import BadData, BadTarget
from vauban.targets.callable import CallableTarget
from vauban.targets.digest import digest
from vauban.targets.options import Options, merged
from vauban.targets.skops import written
from vauban.targets.torch import TorchTarget
from vauban.targets.twins import twin
from vauban.targets.untwins import untwinned_files

METHODS: tuple[tuple[str, OutputKind], ...] = (
    ("predict_proba", "probabilities"),
    ("decision_function", "logits"),
    ("predict", "labels"),
)
"""What is asked of a classifier: the first that it has."""
CALIBRATED_APART = ("SVC", "NuSVC")
"""Their probabilities are fitted afterwards and can contradict `predict`: they are not asked."""


def sklearn_target(estimator: Any, asked: Options) -> Target:
    """A target around a fitted estimator.

    Linear models, MLPs and pipelines of scalers in front of them give gradients, weights and (with a hidden layer)
    features, through a torch module of the same function in float64. All others give probabilities, decision values,
    or labels; regressors give values. Classes are numbered by their position in `classes_`.

    Raises BadTarget for an estimator that is not fitted, or that neither classifies nor predicts values.
    """
    domain = merged(_domain(estimator, asked.id), asked.domain)
    recipe = EstimatorRecipe(estimator, replace(asked, domain=domain))
    module = twin(estimator)
    if module is not None:
        kind: OutputKind = "values" if domain.task == "regression" else "logits"
        form = partial(untwinned_files, estimator)
        return TorchTarget(module, id=asked.id, domain=domain, output=kind, own_recipe=recipe, form=form)
    method, output = _method(estimator, domain)
    function = EstimatorFunction(estimator, method)
    return EstimatorTarget(function, id=asked.id, domain=domain, output=output, recipe=recipe)


@dataclass(frozen=True, eq=False)
class EstimatorTarget(CallableTarget):
    """An estimator without a twin."""

    @property
    def estimator(self) -> Any:
        return cast(EstimatorFunction, self.function).estimator

    def refitted(self, estimator: Any, suffix: str, recipe: Recipe | None) -> EstimatorTarget:
        method, output = _method(estimator, self.domain)
        function = EstimatorFunction(estimator, method)
        return replace(self, function=function, id=f"{self.id}{suffix}", output=output, recipe=recipe)

    def files(self) -> dict[str, bytes]:
        """A `.skops` file; none where skops is not installed."""
        return written(self.estimator)


@dataclass(frozen=True, eq=False)
class EstimatorFunction:
    """One method of an estimator as a function of inputs `[n, ...]`, flattened to `[n, d]`."""

    estimator: Any
    method: str

    def __call__(self, x: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():  # an estimator fitted on a named table warns at every nameless array
            warnings.filterwarnings("ignore", message="X does not have valid feature names")
            answer = np.asarray(getattr(self.estimator, self.method)(x.reshape(len(x), -1)))
        classes = getattr(self.estimator, "classes_", None)
        return answer if self.method != "predict" or classes is None else np.searchsorted(classes, answer)

    def sha256(self) -> str:
        """Over parameters and fitted attributes: the same before and after saving."""
        return digest(self.estimator)


@dataclass(frozen=True, eq=False)
class EstimatorRecipe:
    """`sklearn.base.clone`, every `random_state` seeded, `fit`."""

    estimator: Any
    asked: Options

    def fit(self, x: Tensor, y: Tensor, seed: int) -> Target:
        """Raises BadData where the training rows lack a class that the target knows."""
        from sklearn.base import clone
        from sklearn.exceptions import ConvergenceWarning
        from threadpoolctl import threadpool_limits

        fresh = clone(self.estimator)
        states = [name for name in fresh.get_params(deep=True) if name.split("__")[-1] == "random_state"]
        fresh.set_params(**dict.fromkeys(states, seed % 2**32))
        rows, truth = x.detach().cpu().numpy().reshape(len(x), -1).astype(np.float64), y.detach().cpu().numpy()
        known = getattr(self.estimator, "classes_", None)
        # small matrices: one thread is no slower, and gives the same weights whatever the number of cores
        with threadpool_limits(1, "blas"), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fresh.fit(rows, truth if known is None else known[truth])
        if known is not None and len(fresh.classes_) != len(known):
            raise BadData(
                f"The training rows hold {len(fresh.classes_)} of the model's {len(known)} classes: give rows of each."
            )
        return sklearn_target(fresh, replace(self.asked, id=f"{self.asked.id}+seed{seed}"))


def _domain(estimator: Any, id: str) -> Domain:
    from sklearn.base import is_classifier, is_regressor
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(estimator)
    except NotFittedError:
        raise BadTarget(f"{id}: this {type(estimator).__name__} is not fitted: call fit on it first.") from None
    if is_regressor(estimator):
        return Domain(task="regression")
    classes = getattr(estimator, "classes_", None)
    if not is_classifier(estimator) or classes is None:
        raise BadTarget(
            f"{id}: a {type(estimator).__name__} neither classifies nor predicts values: give one that does."
        )
    if isinstance(classes, list):
        raise BadTarget(f"{id}: this {type(estimator).__name__} answers several questions at once: give one for each.")
    names = () if np.array_equal(classes, np.arange(len(classes))) else tuple(str(name) for name in classes)
    return Domain(task="classification", classes=len(classes), label_names=names)


def _method(estimator: Any, domain: Domain) -> tuple[str, OutputKind]:
    if domain.task == "regression":
        return "predict", "values"
    # one decision value for each pair of classes is no score of a class
    pairwise = getattr(estimator, "decision_function_shape", "ovr") == "ovo" and (domain.classes or 0) > 2
    shunned = {"decision_function"} if pairwise else set()
    shunned |= {"predict_proba"} if type(estimator).__name__ in CALIBRATED_APART else set()
    return next(row for row in METHODS if row[0] not in shunned and hasattr(estimator, row[0]))
