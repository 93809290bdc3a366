"""Trees and small ensembles of trees: every leaf is a box, and every answer a sum over boxes that meet."""

from __future__ import annotations

import heapq
import itertools
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vauban.parts.exact.base import LENGTHS, ROUNDING, Floats, Nearest

GROWTH, SMALLEST = 1.25, 1e-3
"""Each search goes this much further than the one before; the first at least this share of the whole way."""
MOST = 20_000
"""Partial choices of leaves that are looked at for a row and a class, before a lower bound must do."""
JOINED = 2**21
"""Numbers that joining two trees may take."""


class Tree(NamedTuple):
    """The leaves of a tree: inputs with low < x <= high get `values`."""

    low: Floats
    """`[leaves, d]`"""
    high: Floats
    values: Floats
    """`[leaves, classes]`"""


def leaves(left: Any, right: Any, feature: Any, threshold: Any, values: Floats, d: int) -> Tree:
    """The boxes of a tree given node by node; `left` is negative at leaves, and left is where x <= threshold."""
    lows, highs, at = [], [], []
    stack = [(0, np.full(d, -np.inf), np.full(d, np.inf))]
    while stack:
        node, low, high = stack.pop()
        if left[node] < 0:
            lows.append(low)
            highs.append(high)
            at.append(node)
            continue
        f, cut = feature[node], threshold[node]
        below, above = high.copy(), low.copy()
        below[f], above[f] = min(high[f], cut), max(low[f], cut)
        stack += [(right[node], above, high), (left[node], low, below)]
    return Tree(np.array(lows), np.array(highs), np.asarray(values, dtype=np.float64)[at])


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Answers with the largest of `base` `[classes]` plus the values of the leaves that a row falls into, one a tree.

    One tree: exact in every space, the nearest leaf of another class. Several: leaves of different trees that meet form a
    clique, a smaller box in which the sum is constant (Chen, Zhang, Si, Li, Boning and Hsieh 2019, arXiv:1906.03849,
    section 3). Here cliques are grown tree by tree, the nearest first, and dropped as soon as the best leaves that are
    left in reach cannot change the answer: the first whole clique that does is the nearest. Exact in every space; a
    lower bound where `most` partial cliques or the deadline do not suffice.

    Departures: the paper joins groups of trees level by level and has a bound at each; here trees are joined while that
    stays small, leaves that cannot take part in a change are dropped, and a search over what is left is exact.

    Trees compare float32 or float64 inputs with float64 thresholds; distances are to the boxes' faces, and so err by less
    than the spacing of float32 numbers.
    """

    trees: tuple[Tree, ...]
    base: Floats
    most: int = MOST

    @property
    def classes(self) -> int:
        return len(self.base)

    def predict(self, x: Floats) -> NDArray[np.int64]:
        scores = np.tile(self.base, (len(x), 1))
        for tree in self.trees:
            inside = ((x[:, None] > tree.low) & (x[:, None] <= tree.high)).all(2)
            scores += tree.values[inside.argmax(1)]
        return scores.argmax(1)

    def nearest(
        self,
        x: Floats,
        labels: NDArray[np.int64],
        space: str,
        low: Floats,
        high: Floats,
        *,
        within: float = np.inf,
        deadline: float | None = None,
    ) -> Nearest:
        distance, exact = np.zeros(len(x)), np.ones(len(x), dtype=bool)
        answers = self.predict(x) if len(x) else labels
        for i in np.flatnonzero(answers == labels):
            search = _Search(self, x[i], int(labels[i]), space, low, high, deadline)
            # so that a bound beyond `within` is still beyond it once it is rounded down
            distance[i], exact[i] = search.all_classes(within * (1 + 3 * ROUNDING))
        return Nearest(distance * (1 - ROUNDING), exact)

    @cached_property
    def stacked(self) -> tuple[Floats, Floats, Floats, NDArray[np.int64]]:
        """All leaves, tree by tree: low, high `[leaves, d]`, values `[leaves, classes]`, and the tree's number."""
        owner = np.repeat(np.arange(len(self.trees)), [len(tree.low) for tree in self.trees])
        low, high, values = (np.concatenate(parts) for parts in zip(*self.trees, strict=True))
        return low, high, values, owner


class _Node(NamedTuple):
    """A partial clique: one leaf is chosen of some trees, and these meet in a box."""

    low: Floats
    high: Floats
    alive: NDArray[np.int64]
    """Leaves of the other trees that meet the box within reach, tree by tree."""
    total: float
    """What the chosen leaves say, for the label and against the other class."""


_Group = tuple[Floats, Floats, Floats]
"""Of one tree, or of several that were joined: low, high `[leaves, d]`, margin `[leaves]`."""


class _Cliques(NamedTuple):
    """The leaves that a search is over, tree by tree."""

    low: Floats
    high: Floats
    margin: Floats
    owner: NDArray[np.int64]

    def branch(self, node: _Node) -> NDArray[np.int64]:
        """The leaves of the tree that matters most: whose leaves differ most in what they say."""
        owner, margin = self.owner[node.alive], self.margin[node.alive]
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        spread = np.maximum.reduceat(margin, starts) - np.minimum.reduceat(margin, starts)
        return node.alive[owner == owner[starts[int(spread.argmax())]]]

    def chosen(self, node: _Node, leaf: NDArray[np.int64] | int) -> _Node:
        """The node with these leaves chosen, of different trees."""
        leaf = np.atleast_1d(leaf)
        low = np.maximum(node.low, self.low[leaf].max(0))
        high = np.minimum(node.high, self.high[leaf].min(0))
        others = ~np.isin(self.owner[node.alive], self.owner[leaf])
        return _Node(low, high, node.alive[others], node.total + float(self.margin[leaf].sum()))


class _Search:
    """The search for one row."""

    def __init__(
        self, model: Ensemble, row: Floats, label: int, space: str, low: Floats, high: Floats, deadline: float | None
    ) -> None:
        self.model, self.row, self.label, self.length, self.deadline = model, row, label, LENGTHS[space], deadline
        self.low, self.high, self.values, self.owner = model.stacked
        self.box = (low, high)
        self.far = self.distances(self.low, self.high)
        inside = np.isfinite(self.far)
        change = self._nearest(self.low[inside], self.high[inside]) - row
        self.widest = float(self.length(np.abs(change).max(0, initial=0.0))) * (1 + ROUNDING)
        """No clique is farther."""

    def _nearest(self, low: Floats, high: Floats) -> Floats:
        return np.clip(self.row, np.maximum(low, self.box[0]), np.minimum(high, self.box[1]))

    def distance(self, node: _Node) -> float:
        return float(self.distances(node.low, node.high))

    def distances(self, low: Floats, high: Floats) -> Floats:
        """From the row to boxes low < z <= high cut by the box of valid inputs; inf where nothing is left."""
        empty = ((low >= self.box[1]) | (high < self.box[0]) | (low >= high)).any(-1)
        return np.where(empty, np.inf, self.length(self._nearest(low, high) - self.row))

    def all_classes(self, within: float) -> tuple[float, bool]:
        best, exact = np.inf, True
        rivals = [_Rival(self, other) for other in range(self.model.classes) if other != self.label]
        for rival in sorted(rivals, key=lambda rival: rival.bound):
            if rival.bound > best:
                break
            found, sure = rival.nearest(min(best, within))
            if found < best or (found == best and sure):
                best, exact = found, sure
        return best, exact


class _Rival:
    """The search for the nearest input at which one other class is at least as good."""

    def __init__(self, search: _Search, other: int) -> None:
        self.search, base = search, search.model.base
        self.margin = search.values[:, search.label] - search.values[:, other]
        self.base = float(base[search.label] - base[other])
        sizes = np.zeros(len(search.model.trees))
        np.maximum.at(sizes, search.owner, np.abs(self.margin))
        # sums this near to zero are not told from it: the model adds in another order
        self.doubt = 1e-9 * (abs(self.base) + float(sizes.sum()))
        self.bound = self._bound()
        self.left = search.model.most

    def _bound(self) -> float:
        """Before this distance no choice of reachable leaves, whether they meet or not, changes the answer."""
        far, starts = self.search.far, np.flatnonzero(np.diff(self.search.owner, prepend=-1))
        steps = np.unique(far[np.isfinite(far)])
        below, above = 0, len(steps)
        while below < above:
            middle = (below + above) // 2
            least = np.minimum.reduceat(np.where(far <= steps[middle], self.margin, np.inf), starts)
            below, above = (below, middle) if self.base + least.sum() <= self.doubt else (middle + 1, above)
        return float(steps[below]) if below < len(steps) else np.inf

    def nearest(self, within: float) -> tuple[float, bool]:
        """Ever wider searches, for a narrow one drops most leaves; each starts anew."""
        widest = self.search.widest
        reach = max(self.bound, SMALLEST * widest)
        while True:
            if self.bound > min(within, widest):
                return self.bound, np.isinf(self.bound)
            reach = max(self.bound, min(reach * GROWTH, within, widest))
            found, sure = self._grow(reach)
            if found <= reach or not sure:
                return found, sure
            if reach >= widest:
                return np.inf, True
            self.bound = float(np.nextafter(reach, np.inf))

    def _grow(self, reach: float) -> tuple[float, bool]:
        """The distance of the nearest clique within `reach` that changes the answer, inf where none is; and if that is sure.

        Partial cliques are taken up nearest first. One that cannot end in another answer, with whatever leaves are left,
        is dropped.
        """
        cliques = self._merged(reach)
        if cliques is None:
            return np.inf, True
        order = itertools.count()
        everywhere = np.full(len(self.search.row), np.inf)
        start = _Node(-everywhere, everywhere, np.arange(len(cliques.margin)), self.base)
        first = self._settled(cliques, start, reach)
        heap = [] if first is None else [(self.search.distance(first), next(order), first)]
        while heap:
            far, _, node = heapq.heappop(heap)
            if not len(node.alive):
                return far, node.total < -self.doubt
            for leaf in cliques.branch(node):
                if self.left <= 0 or self._late():
                    return max(far, self.bound), False
                self.left -= 1
                child = self._settled(cliques, cliques.chosen(node, leaf), reach)
                if child is not None:
                    heapq.heappush(heap, (self.search.distance(child), next(order), child))
        return np.inf, True

    def _late(self) -> bool:
        return self.search.deadline is not None and time.monotonic() > self.search.deadline

    def _merged(self, reach: float) -> _Cliques | None:
        """Leaves within reach, trees joined two by two while that stays small; None where no answer can change.

        A leaf (of one tree or of several that were joined) is dropped where even the others' best cannot make up for it.
        """
        search = self.search
        near = search.far <= reach
        parts = [near & (search.owner == tree) for tree in range(len(search.model.trees))]
        groups = [(search.low[at], search.high[at], self.margin[at]) for at in parts]
        while True:
            groups = self._pruned(groups)
            if not groups:
                return None
            groups.sort(key=lambda group: len(group[2]))
            if len(groups) == 1 or len(groups[0][2]) * len(groups[1][2]) * len(search.row) > JOINED or self._late():
                break
            (low, high, margin), (low2, high2, margin2) = groups[:2]
            lows = np.maximum(low[:, None], low2[None]).reshape(-1, low.shape[1])
            highs = np.minimum(high[:, None], high2[None]).reshape(-1, low.shape[1])
            met = search.distances(lows, highs) <= reach
            groups[:2] = [(lows[met], highs[met], (margin[:, None] + margin2[None]).reshape(-1)[met])]
        owner = np.repeat(np.arange(len(groups)), [len(group[2]) for group in groups])
        lows, highs, margins = (np.concatenate(part) for part in zip(*groups, strict=True))
        return _Cliques(lows, highs, margins, owner)

    def _pruned(self, groups: list[_Group]) -> list[_Group]:
        """Without leaves that cannot be part of a change; empty where some tree has none left."""
        while True:
            if any(not len(group[2]) for group in groups):
                return []
            least = np.array([group[2].min() for group in groups])
            rest = self.base + least.sum() - least
            kept = [group[2] + others <= self.doubt for group, others in zip(groups, rest, strict=True)]
            if all(part.all() for part in kept):
                return groups
            groups = [(g[0][at], g[1][at], g[2][at]) for g, at in zip(groups, kept, strict=True)]

    def _settled(self, cliques: _Cliques, node: _Node, reach: float) -> _Node | None:
        """The node without leaves that are out of reach, single ones chosen; None where no change of answer is left."""
        search = self.search
        while True:
            if search.distance(node) > reach:
                return None
            alive = node.alive
            if not len(alive):
                return node if node.total <= self.doubt else None
            lows = np.maximum(cliques.low[alive], node.low)
            kept = alive[search.distances(lows, np.minimum(cliques.high[alive], node.high)) <= reach]
            owner = cliques.owner[kept]
            starts = np.flatnonzero(np.diff(owner, prepend=-1))
            if len(starts) < len(np.unique(cliques.owner[alive])):
                return None
            if node.total + float(np.minimum.reduceat(cliques.margin[kept], starts).sum()) > self.doubt:
                return None
            counts = np.diff([*starts, len(kept)])
            node = node._replace(alive=kept)
            if not (counts == 1).any():
                return node
            node = cliques.chosen(node, kept[starts[counts == 1]])
