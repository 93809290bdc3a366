"""The embedded data sets by name."""

from __future__ import annotations

from collections.abc import Callable

from vauban.core.data import Data
from vauban.core.registry import Catalogue
from vauban.parts.samples import breast_cancer, diabetes, digits

__all__ = ["DEMOS", "breast_cancer", "diabetes", "digits"]

DEMOS: Catalogue[Callable[[], Data]] = Catalogue(
    "demo data set",
    "vauban.data",
    {
        "demo:digits": "vauban.parts.samples:digits",
        "demo:breast-cancer": "vauban.parts.samples:breast_cancer",
        "demo:diabetes": "vauban.parts.samples:diabetes",
    },
)
