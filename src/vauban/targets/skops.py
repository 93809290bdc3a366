"""Estimators from and to `.skops` files: types are checked before anything is built, trees before anything is asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vauban.artifacts.loading import corrupt
from vauban.schema.errors import CorruptFile, MissingExtra, UntrustedFile
from vauban.targets.options import Options

HARMLESS = frozenset(
    {
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.tree._tree.Tree",
    }
)
"""Types of scikit-learn's own that skops asks about and that run nothing: numbers of an optimiser, and nodes of trees. These
hold indices that scikit-learn follows unchecked: they are checked here."""


def load(path: Path, asked: Options) -> Any:
    """The estimator in a skops file whose types are all known to be harmless.

    Raises UntrustedFile naming the others (unless `trust_pickle`), CorruptFile, MissingExtra.
    """
    try:
        from skops import io
    except ImportError:
        raise MissingExtra.of("Reading .skops files", "skops") from None
    try:
        asked_about = io.get_untrusted_types(file=path)
    except Exception:  # damaged archives make it raise nearly anything
        raise corrupt(path, "a .skops file") from None
    unknown = sorted(set(asked_about) - HARMLESS)
    if unknown and not asked.trust_pickle:
        raise UntrustedFile(
            f"{path} holds types that can run code when they are loaded ({', '.join(unknown[:5])}): save a model of "
            "scikit-learn's own types, or say --trust-pickle if you trust where it comes from."
        )
    try:
        found = io.load(path, trusted=asked_about)
    except Exception as error:
        raise corrupt(path, "a .skops file") from error
    if not all(_sound(tree, width) for tree, width in _trees(found)):
        raise CorruptFile(f"{path} holds a tree whose nodes point outside of it: write the file again.")
    return found


def written(estimator: Any) -> dict[str, bytes]:
    """`model.skops`; nothing where skops is not installed, or does not know how to write a part of the estimator."""
    try:
        from skops import io
    except ImportError:
        return {}
    try:
        return {"model.skops": bytes(io.dumps(estimator))}
    except Exception:  # a part of the estimator that is not scikit-learn's may raise anything
        return {}


def _trees(thing: Any, width: int = 0, seen: set[int] | None = None) -> Iterator[tuple[Any, int]]:
    """All trees anywhere in an estimator, and how many features the estimator takes that each is part of."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, str | bytes | int | float | type | None):
        return
    seen.add(id(thing))
    if type(thing).__name__ in ("Tree", "TreePredictor"):
        yield thing, width
    held = getattr(thing, "__dict__", {})
    for part in _inside(thing, held):
        yield from _trees(part, int(held.get("n_features_in_", width)), seen)


def _inside(thing: Any, held: dict[str, Any]) -> list[Any]:
    if isinstance(thing, np.ndarray) and thing.dtype.hasobject:
        return list(thing.flat)
    if isinstance(thing, dict):
        return list(thing.values())
    return list(thing) if isinstance(thing, list | tuple | set) else list(held.values())


def _sound(tree: Any, width: int) -> bool:
    """Whether every node has children behind it and within the tree, and asks for a feature that there is."""
    nodes = getattr(tree, "nodes", None)
    if nodes is None:
        inner, left, right, feature = tree.children_left != -1, tree.children_left, tree.children_right, tree.feature
    else:
        inner, left, right, feature = nodes["is_leaf"] == 0, nodes["left"], nodes["right"], nodes["feature_idx"]
    here = np.flatnonzero(inner)
    children = np.concatenate([left[here], right[here]]).astype(np.int64)
    asked = feature[here].astype(np.int64)
    behind = bool((children > np.concatenate([here, here])).all() and (children < len(inner)).all())
    return len(inner) > 0 and behind and bool((asked >= 0).all() and (asked < width).all())
