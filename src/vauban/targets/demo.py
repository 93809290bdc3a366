"""Models trained on the embedded data sets, in seconds, always the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from torch import nn

from vauban.core.registry import Catalogue
from vauban.core.target import Domain, Target
from vauban.data.demo import digits
from vauban.targets.torch import TorchTarget, Training

SEED = 0


def digits_cnn() -> Target:
    """Two convolutions and two linear layers on `demo:digits`, trained until it knows its 1,000 rows by heart."""
    return _digits("demo:digits-cnn", _cnn, Training(factory=_cnn, epochs=30, batch_size=32, rate=2e-3))


def digits_mlp() -> Target:
    """64-64-32-10 with ReLU on `demo:digits`."""
    return _digits("demo:digits-mlp", _mlp, Training(factory=_mlp, epochs=60, batch_size=32, rate=2e-3))


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
    },
)
