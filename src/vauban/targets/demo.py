"""Models trained on the embedded data sets, in seconds, always the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import nn

from vauban.core.data import Data
from vauban.core.registry import Catalogue
from vauban.core.target import Domain, Target
from vauban.parts.samples import breast_cancer, diabetes, digits
from vauban.targets.options import Options
from vauban.targets.sklearn import sklearn_target
from vauban.targets.torch import TorchTarget, Training

SEED = 0


def digits_cnn() -> Target:
    """Two convolutions and two linear layers on `demo:digits`, trained until it knows its 1,000 rows by heart."""
    return _digits("demo:digits-cnn", _cnn, Training(factory=_cnn, epochs=30, batch_size=32, rate=2e-3))


def digits_mlp() -> Target:
    """64-64-32-10 with ReLU on `demo:digits`."""
    return _digits("demo:digits-mlp", _mlp, Training(factory=_mlp, epochs=60, batch_size=32, rate=2e-3))


def digits_softmax() -> Target:
    """Multinomial logistic regression on `demo:digits`."""
    from sklearn.linear_model import LogisticRegression

    return _estimator("demo:digits-softmax", LogisticRegression(max_iter=2000), digits())


def breast_cancer_mlp() -> Target:
    """Standardised features and one hidden layer of 32 on `demo:breast-cancer`."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    network = MLPClassifier((32,), max_iter=150, random_state=SEED)
    return _estimator("demo:breast-cancer", make_pipeline(StandardScaler(), network), breast_cancer())


def diabetes_ridge() -> Target:
    """Ridge regression on `demo:diabetes`."""
    from sklearn.linear_model import Ridge

    return _estimator("demo:diabetes", Ridge(alpha=0.1), diabetes())


def _estimator(id: str, estimator: Any, data: Data) -> Target:
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator.fit(data.x_train.flatten(1).double().numpy(), data.y_train.numpy())
    low, high = (0.0, 1.0) if data.kind == "image" else (None, None)
    domain = Domain(
        kind=data.kind,
        low=low,
        high=high,
        step=data.step,
        label_names=data.label_names,
        feature_names=data.feature_names,
    )
    return sklearn_target(estimator, Options(id=id, domain=domain))


@cache
def _trained(id: str, make: Callable[[], nn.Module], training: Training) -> TorchTarget:
    data = digits()
    domain = Domain(
        kind="image",
        task="classification",
        classes=10,
        low=0.0,
        high=1.0,
        step=data.step,
        label_names=data.label_names,
    )
    blank = TorchTarget(make(), id=id, domain=domain, output="logits", training=training)
    assert blank.recipe is not None
    trained = blank.recipe.fit(data.x_train, data.y_train, SEED)
    assert isinstance(trained, TorchTarget)
    return blank.around(trained.module, "")


def _digits(id: str, make: Callable[[], nn.Module], training: Training) -> Target:
    """Trained once a process; everybody gets a copy of his own."""
    trained = _trained(id, make, training)
    return trained.around(trained.clone(), "")


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


DEMOS: Catalogue[Callable[[], Target]] = Catalogue(
    "demo model",
    "vauban.demos",
    {
        "demo:digits-cnn": "vauban.targets.demo:digits_cnn",
        "demo:digits-mlp": "vauban.targets.demo:digits_mlp",
        "demo:digits-softmax": "vauban.targets.demo:digits_softmax",
        "demo:breast-cancer": "vauban.targets.demo:breast_cancer_mlp",
        "demo:diabetes": "vauban.targets.demo:diabetes_ridge",
    },
)
