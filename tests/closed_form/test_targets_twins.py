"""Twins of scikit-learn models are the same function; recipes and access are as promised."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_diabetes, load_iris, load_wine
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
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
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, PolynomialFeatures, RobustScaler, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from vauban.core.target import Outputs
from vauban.schema.access import Access
from vauban.schema.errors import BadData, BadTarget
from vauban.targets.load import target

THREE = load_iris(return_X_y=True)
TWO = (THREE[0][:100], THREE[1][:100])
VALUES = tuple(part[:200] for part in load_diabetes(return_X_y=True))


def fitted(estimator: Any, data: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(*data)


def answer(estimator: Any, x: np.ndarray) -> Outputs:
    return target(estimator).forward(torch.from_numpy(x))


PROBABILISTIC = [
    LogisticRegression(max_iter=50),
    LogisticRegression(max_iter=50, fit_intercept=False),
    SGDClassifier(loss="log_loss", random_state=0),
    *(
        MLPClassifier((6, 5), activation=a, max_iter=20, random_state=0)
        for a in ("identity", "logistic", "tanh", "relu")
    ),
    make_pipeline(StandardScaler(), LogisticRegression()),
    make_pipeline(MinMaxScaler(clip=True), RobustScaler(), MLPClassifier((4,), max_iter=20, random_state=0)),
    make_pipeline(MaxAbsScaler(), "passthrough", LogisticRegression()),
    make_pipeline(
        StandardScaler(with_mean=False), make_pipeline(RobustScaler(with_scaling=False), LogisticRegression())
    ),
]


@pytest.mark.parametrize("data", [TWO, THREE], ids=["binary", "three"])
@pytest.mark.parametrize("estimator", PROBABILISTIC, ids=lambda e: str(e)[:60])
def test_softmax_of_the_twin_is_predict_proba(estimator: Any, data: Any) -> None:
    estimator = fitted(estimator, data)
    x = data[0] * 1.3 - 0.2  # outside the training range too
    outputs = answer(estimator, x)
    assert outputs.kind == "logits"
    np.testing.assert_allclose(outputs.values.softmax(1).detach().numpy(), estimator.predict_proba(x), atol=1e-10)


@pytest.mark.parametrize("data", [TWO, THREE], ids=["binary", "three"])
@pytest.mark.parametrize(
    "estimator",
    [
        LinearSVC(),
        RidgeClassifier(),
        Perceptron(),
        SGDClassifier(random_state=0),
        SGDClassifier(loss="modified_huber", random_state=0),
    ],
    ids=lambda e: str(e),
)
def test_scores_of_the_twin_are_decision_values(estimator: Any, data: Any) -> None:
    estimator = fitted(estimator, data)
    scores = answer(estimator, data[0]).values.detach().numpy()
    wanted = estimator.decision_function(data[0])
    np.testing.assert_allclose(scores[:, 1] if wanted.ndim == 1 else scores, wanted, atol=1e-10)
    np.testing.assert_array_equal(scores.argmax(1), estimator.predict(data[0]))


@pytest.mark.parametrize(
    "estimator",
    [
        LinearRegression(),
        LinearRegression(fit_intercept=False),
        Ridge(),
        Lasso(alpha=0.1),
        ElasticNet(alpha=0.1),
        MLPRegressor(hidden_layer_sizes=(5,), max_iter=20, random_state=0),
        make_pipeline(RobustScaler(), Ridge()),
    ],
    ids=lambda e: str(e)[:60],
)
def test_values_of_the_twin_are_predictions(estimator: Any) -> None:
    estimator = fitted(estimator, VALUES)
    outputs = answer(estimator, VALUES[0])
    assert outputs.kind == "values"
    np.testing.assert_allclose(outputs.values.detach().numpy(), estimator.predict(VALUES[0]), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize(
    ("estimator", "kind"),
    [
        (RandomForestClassifier(5, random_state=0), "probabilities"),
        (KNeighborsClassifier(), "probabilities"),
        (GaussianNB(), "probabilities"),
        (make_pipeline(PolynomialFeatures(), LogisticRegression(max_iter=50)), "probabilities"),
        (SVC(), "logits"),
        (SVC(decision_function_shape="ovo"), "labels"),
    ],
    ids=str,
)
def test_others_are_black_boxes(estimator: Any, kind: str) -> None:
    estimator = fitted(estimator, THREE)
    found = target(estimator)
    outputs = found.forward(torch.from_numpy(THREE[0]))
    assert outputs.kind == kind
    assert Access.GRADIENTS not in found.offers
    assert (Access.SCORES in found.offers) == (kind != "labels")
    np.testing.assert_array_equal(outputs.labels.numpy(), estimator.predict(THREE[0]))


def test_a_black_box_regressor_gives_values() -> None:
    forest = fitted(RandomForestRegressor(5, random_state=0), VALUES)
    outputs = answer(forest, VALUES[0])
    assert outputs.kind == "values"
    np.testing.assert_allclose(outputs.values.numpy(), forest.predict(VALUES[0].astype(np.float64)))


def test_classes_are_numbered_by_position() -> None:
    words = np.array(["a", "b", "c"])[THREE[1]]
    for estimator in (LogisticRegression(max_iter=200), DecisionTreeClassifier(), SVC(decision_function_shape="ovo")):
        estimator.fit(THREE[0], words)
        found = target(estimator)
        labels = found.forward(torch.from_numpy(THREE[0])).labels.numpy()
        np.testing.assert_array_equal(np.array(["a", "b", "c"])[labels], estimator.predict(THREE[0]))
        assert found.domain.label_names == ("a", "b", "c")


def test_a_subclass_that_predicts_otherwise_has_no_twin() -> None:
    class Odd(LogisticRegression):
        def predict_proba(self, x: Any) -> Any:
            return super().predict_proba(x)[:, ::-1]

    odd = Odd().fit(*TWO)
    found = target(odd)
    assert Access.GRADIENTS not in found.offers
    np.testing.assert_allclose(found.forward(torch.from_numpy(TWO[0])).values.numpy(), odd.predict_proba(TWO[0]))


def test_only_a_hidden_layer_offers_features() -> None:
    linear = target(fitted(LogisticRegression(max_iter=50), THREE))
    mlp = fitted(MLPClassifier((7,), max_iter=20, random_state=0), THREE)
    deep = target(mlp)
    assert Access.FEATURES not in linear.offers
    assert Access.FEATURES in deep.offers
    x = torch.from_numpy(THREE[0])
    _, features = deep.forward_features(x)  # type: ignore[attr-defined]
    hidden = np.maximum(THREE[0] @ mlp.coefs_[0] + mlp.intercepts_[0], 0)
    np.testing.assert_allclose(features.detach().numpy(), hidden, atol=1e-10)


@pytest.mark.parametrize("estimator", [MLPClassifier((4,), max_iter=20), RandomForestClassifier(5)], ids=str)
def test_recipes_depend_on_the_seed_alone(estimator: Any) -> None:
    found = target(fitted(estimator, THREE))
    x, y = torch.from_numpy(THREE[0]).float(), torch.from_numpy(THREE[1])
    assert found.recipe is not None
    one, same, other = (found.recipe.fit(x, y, seed) for seed in (1, 1, 2))
    assert one.sha256() == same.sha256() != other.sha256()
    assert torch.equal(one.forward(x).values, same.forward(x).values)
    with pytest.raises(BadData, match="2 of the model's 3 classes"):
        found.recipe.fit(x[:100], y[:100], 0)


def test_unusable_estimators_are_refused() -> None:
    with pytest.raises(BadTarget, match="not fitted"):
        target(LogisticRegression())
    with pytest.raises(BadTarget, match="neither classifies"):
        target(KMeans(2, n_init=1, random_state=0).fit(THREE[0]), id="clusters")
    with pytest.raises(BadTarget, match="several questions"):
        target(DecisionTreeClassifier().fit(THREE[0], np.stack([THREE[1], THREE[1]], 1)))


def test_wine_pictures_are_flattened() -> None:
    x, y = load_wine(return_X_y=True)
    estimator = fitted(make_pipeline(StandardScaler(), LogisticRegression()), (x[:, :12], y))
    shaped = torch.from_numpy(x[:, :12]).reshape(-1, 1, 3, 4)
    np.testing.assert_allclose(
        target(estimator).forward(shaped).values.softmax(1).detach().numpy(),
        estimator.predict_proba(x[:, :12]),
        atol=1e-10,
    )
