"""Data sets that come with scikit-learn, in fixed parts: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import numpy as np

from vauban.core.data import Data

SPLIT_SEED = 7


def digits() -> Data:
    """Handwritten digits, 8 x 8 pixels of 17 grey levels (Alpaydin and Kaynak, UCI 1998), scaled to [0, 1].

    1,000 training and 797 test rows `[n, 1, 8, 8]`, in the shares of the ten classes.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = (raw.images / 16).astype(np.float32)[:, None]
    return Data(*split(x, raw.target, train=1000), id="demo:digits", step=1 / 16, kind="image", label_names=_digits())


def breast_cancer() -> Data:
    """Measurements of cell nuclei, 30 features, malignant or benign (Street et al. 1993): 398 training, 171 test rows."""
    from sklearn.datasets import load_breast_cancer

    raw = load_breast_cancer()
    return Data(
        *split(raw.data, raw.target, train=0.7),
        id="demo:breast-cancer",
        kind="tabular",
        label_names=_words(raw.target_names),
        feature_names=_words(raw.feature_names),
    )


def diabetes() -> Data:
    """Disease progression after one year from ten standardised features (Efron et al. 2004): 309 training, 133 test rows."""
    from sklearn.datasets import load_diabetes

    raw = load_diabetes()
    parts = split(raw.data, raw.target, train=0.7)
    return Data(*parts, id="demo:diabetes", kind="tabular", feature_names=_words(raw.feature_names))


def split(x: np.ndarray, y: np.ndarray, train: float | int = 0.7) -> tuple[Any, Any, Any, Any]:
    """x_train, y_train, x_test, y_test: always the same rows; classes keep their shares where each has two rows."""
    from sklearn.model_selection import train_test_split

    classes = y.dtype.kind in "iub"
    enough = classes and np.unique(y, return_counts=True)[1].min() >= 2 and len(np.unique(y)) < len(y) * 0.3
    rows = np.arange(len(x))
    first, second = train_test_split(rows, train_size=train, random_state=SPLIT_SEED, stratify=y if enough else None)
    return x[first], y[first], x[second], y[second]


def _digits() -> tuple[str, ...]:
    return tuple(str(digit) for digit in range(10))


def _words(names: Any) -> tuple[str, ...]:
    return tuple(str(name) for name in names)
