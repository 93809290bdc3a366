"""Trees of our own put into scikit-learn's `GradientBoostingClassifier`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vauban.parts.boosting import Nodes
from vauban.parts.exact.base import Floats

Booster = Any
"""A fitted `GradientBoostingClassifier`."""


@dataclass(frozen=True, eq=False)
class Grown:
    """Trees by round, one a column of scores."""

    stages: list[list[Nodes]]

    def state(self) -> dict[str, Tensor]:
        """All nodes, tree after tree; `sizes` `[rounds, columns]` is how many each has."""
        trees = [tree for stage in self.stages for tree in stage]
        joined = {name: np.concatenate([getattr(tree, name) for tree in trees]) for name in Nodes._fields}
        sizes = np.array([[len(tree.left) for tree in stage] for stage in self.stages])
        return {name: torch.from_numpy(part) for name, part in {**joined, "sizes": sizes}.items()}

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Grown:
        """The trees of such a state; raises ValueError for anything else."""
        wanted = {*Nodes._fields, "sizes"}
        if not wanted <= set(state) or state["sizes"].dim() != 2:
            raise ValueError(f"these are no trees: {', '.join(sorted(wanted))} were expected, not {', '.join(state)}")
        parts, sizes = {name: state[name].numpy() for name in wanted}, state["sizes"]
        ends = np.concatenate([[0], np.cumsum(sizes.numpy().reshape(-1))])
        if any(len(parts[name]) != ends[-1] for name in Nodes._fields):
            raise ValueError("these are no trees: their nodes are not as many as said")
        trees = [Nodes(*(parts[name][low:high] for name in Nodes._fields)) for low, high in pairwise(ends)]
        columns = sizes.shape[1]
        return cls([trees[at : at + columns] for at in range(0, len(trees), columns)])


@dataclass(frozen=True, eq=False)
class Stub:
    """A booster without trees worth the name."""

    booster: Booster
    start: Floats
    """`[columns]`, what it says before its first tree."""


def plant(labels: Any, features: int, trees: int, depth: int, rate: float) -> Stub:
    """A booster that knows the classes of `labels` `[n]`, their shares, and the number of features."""
    from sklearn.ensemble import GradientBoostingClassifier

    booster = GradientBoostingClassifier(n_estimators=1, max_depth=depth, learning_rate=rate, random_state=0)
    blank = np.zeros((len(labels), features))
    booster.fit(blank, labels)
    booster.n_estimators = trees
    start = np.asarray(booster._raw_predict_init(blank[:1]), dtype=np.float64)[0]
    return Stub(booster, start)


def grafted(stub: Stub, grown: Grown, depth: int) -> Booster:
    """A copy of the stub's booster with these trees. They hold no counts of rows and no impurities."""
    booster = copy.deepcopy(stub.booster)
    like, columns = booster.estimators_[0, 0], len(stub.start)
    if any(len(stage) != columns for stage in grown.stages):
        raise ValueError(f"these are trees for another number of classes: {columns} a round were expected")
    booster.n_estimators = booster.n_estimators_ = len(grown.stages)
    booster.estimators_ = np.empty((len(grown.stages), columns), dtype=object)
    for at, stage in enumerate(grown.stages):
        booster.estimators_[at] = [_regressor(like, tree, depth) for tree in stage]
    del booster.train_score_
    return booster


def _regressor(like: Any, tree: Nodes, depth: int) -> Any:
    """A copy of a fitted `DecisionTreeRegressor` with other nodes."""
    from sklearn.tree._tree import Tree

    state = like.tree_.__getstate__()
    nodes = np.zeros(len(tree.left), dtype=state["nodes"].dtype)
    leaf = tree.left < 0
    for name, part in (("left_child", tree.left), ("right_child", tree.right), ("threshold", tree.threshold)):
        nodes[name] = part
    nodes["feature"] = np.where(leaf, -2, tree.feature)  # as scikit-learn marks leaves
    for name in ("n_node_samples", "weighted_n_node_samples"):
        nodes[name] = 1
    made = copy.copy(like)
    made.tree_ = Tree(like.tree_.n_features, np.ones(1, dtype=np.intp), 1)
    values = np.ascontiguousarray(tree.value).reshape(-1, 1, 1)
    made.tree_.__setstate__({**state, "max_depth": depth, "node_count": len(nodes), "nodes": nodes, "values": values})
    return made
