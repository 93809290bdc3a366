"""Boosted trees that are grown against the worst case in linf: every split and every leaf is chosen as if each row stood
wherever within its interval it hurts most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vauban.parts.exact.base import Floats

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
LEAST = 1e-9
"""A split must gain more."""
SHORTEST = 1e-3
"""Of a step of the leaves' values, before no better one is looked for."""


class Nodes(NamedTuple):
    """A tree node by node, parents before children; left is where x <= threshold."""

    left: Ints
    """`[nodes]`, -1 at leaves, as are `right` and `feature`."""
    right: Ints
    feature: Ints
    threshold: Floats
    value: Floats


@dataclass(frozen=True, kw_only=True)
class Boosting:
    """How trees are grown.

    `penalty`: L2, on the values of the leaves. `least`: curvature (a number of undecided rows times a quarter, at most) that a
    leaf must hold. `bins`: thresholds a feature that are tried, quantiles of those that matter. `rounds`: corrections of the
    leaves' values once a tree stands.
    """

    trees: int = 100
    depth: int = 4
    rate: float = 0.3
    penalty: float = 1.0
    least: float = 1e-3
    bins: int = 128
    rounds: int = 10


@dataclass(frozen=True, eq=False)
class Rows:
    """Training rows as intervals `[low, high]` `[n, d]`, and the thresholds `[d]` lists that tell them apart."""

    low: Floats
    high: Floats
    cuts: list[Floats]
    first: Ints
    """`[d, n]`: number of the first threshold at which the row can be left."""
    sure: Ints
    """`[d, n]`: number of the first threshold at which it cannot be right."""

    @classmethod
    def of(cls, low: Floats, high: Floats, bins: int) -> Rows:
        cuts = [_cuts(np.concatenate([low[:, j], high[:, j]]), bins) for j in range(low.shape[1])]
        first, sure = (
            np.stack([np.searchsorted(cut, side[:, j], "left") for j, cut in enumerate(cuts)]) for side in (low, high)
        )
        return cls(low, high, cuts, first, sure)


def _cuts(ends: Floats, bins: int) -> Floats:
    """Points between neighbouring ends of intervals: at no others do the rows on a side change."""
    ends = np.unique(ends)
    between = (ends[1:] + ends[:-1]) / 2
    if len(between) <= bins:
        return between
    return between[np.linspace(0, len(between) - 1, bins).round().astype(np.int64)]


def reached(tree: Nodes, low: Floats, high: Floats) -> Bools:
    """bool `[n, nodes]`: some point of the row's interval comes to the node."""
    found = np.zeros((len(low), len(tree.left)), dtype=bool)
    found[:, 0] = True
    for node in np.flatnonzero(tree.left >= 0):
        f, cut = tree.feature[node], tree.threshold[node]
        found[:, tree.left[node]] = found[:, node] & (low[:, f] <= cut)
        found[:, tree.right[node]] = found[:, node] & (high[:, f] > cut)
    return found


def worst(values: Floats, leaves: Bools, sign: Floats) -> tuple[Floats, Ints]:
    """The least value (the greatest, where `sign` is negative) among a row's `leaves` `[n, nodes]`, and which it is, `[n]`."""
    told = np.where(leaves, sign[:, None] * values, np.inf)
    at = told.argmin(1)
    return values[at], at


def boosted(
    rows: Rows, y: Ints, start: Floats, how: Boosting, progress: Callable[[int], None] = lambda done: None
) -> list[list[Nodes]]:
    """Trees by round, one a column of `start` `[columns]`: of two classes one, for the second; else one a class.

    Each is a Newton step on an upper bound of the cross-entropy in the worst case: every tree is at its worst for a row by
    itself, which is how the row's scores `[n, columns]` are summed. No tree makes the bound larger.

    Source: Andriushchenko and Hein 2019 (arXiv:1906.03526, sections 3 and 4); Chen, Zhang, Boning and Hsieh 2019 (arXiv:1902.10660).
    Departures: the papers have the exponential loss, or an approximation by four cases of the gradient's sums; here the loss is the
    logistic one to the second order, whose split is the ordinary one of rows that were moved against their labels. Classes beyond two
    are bounded by scores at their worst each. The papers stop at a split's values; here the leaves of a whole tree are corrected
    together, which is a convex problem.

    Args:
        rows: intervals and thresholds.
        y: classes `[n]`, from 0.
        start: `[columns]`, scores before the first tree.
        how: settings.
        progress: told how many rounds are done.
    """
    columns = len(start)
    scores = np.tile(start, (len(y), 1))
    signs = np.where(y[:, None] == (np.arange(columns) if columns > 1 else 1), 1.0, -1.0)
    made = []
    for number in range(how.trees):
        made.append([_step(rows, signs[:, c], scores, c, how) for c in range(columns)])
        progress(number + 1)
    return made


def _step(rows: Rows, sign: Floats, scores: Floats, column: int, how: Boosting) -> Nodes:
    """One tree for one column; the column of `scores` is brought up to date."""
    ahead = scores[:, column] - _others(scores, column)
    tree = grown(rows, sign, ahead, how)
    leaves = reached(tree, rows.low, rows.high) & (tree.left < 0)
    values = how.rate * corrected(tree.value, leaves, sign, ahead, how)
    scores[:, column] += worst(values, leaves, sign)[0]
    return tree._replace(value=values)


def _others(scores: Floats, column: int) -> Floats:
    """What a column's score is measured against: the cross-entropy is the logistic loss of the difference."""
    if scores.shape[1] == 1:
        return np.zeros(len(scores))
    rest = np.delete(scores, column, 1)
    top = rest.max(1)
    return top + np.log(np.exp(rest - top[:, None]).sum(1))


def _share(z: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(z / 2))


def corrected(values: Floats, leaves: Bools, sign: Floats, ahead: Floats, how: Boosting) -> Floats:
    """Values `[nodes]` at which the worst-case loss of the whole tree is smaller than at `values`, and at 0.

    The loss of a row is the largest over its leaves of convex functions, so that there is one least loss: descended by Newton steps
    on the leaves that are the worst just now, halved until the loss falls.
    """

    def judged(tried: Floats) -> tuple[float, Floats, Ints]:
        told, at = worst(tried, leaves, sign)
        loss = np.logaddexp(0, -sign * (ahead + told)).sum() + how.penalty / 2 * np.square(tried).sum()
        return float(loss), told, at

    now = np.zeros(len(values))
    best, told, at = judged(now)
    change = np.where(leaves.any(0), values, 0.0)
    for _ in range(how.rounds + 1):
        size = 1.0
        while size > SHORTEST:
            trial = judged(now + size * change)
            if trial[0] < best:
                break
            size /= 2
        else:
            return now
        now, (best, told, at) = now + size * change, trial
        short = _share(-sign * (ahead + told))
        slope = np.bincount(at, -sign * short, len(now)) + how.penalty * now
        curve = np.bincount(at, np.maximum(short * (1 - short), LEAST), len(now)) + how.penalty + LEAST
        change = -slope / curve
    return now


class _Split(NamedTuple):
    """The best split of each node of a level, `[nodes]`; feature -1 where none gains."""

    feature: Ints
    cut: Ints
    """Its number among the feature's thresholds."""
    gain: Floats


def grown(rows: Rows, sign: Floats, ahead: Floats, how: Boosting) -> Nodes:
    """A tree grown level by level; `sign` `[n]` says which rows are to be raised, `ahead` `[n]` where they stand.

    A row is at every node that some point of its interval comes to.
    """
    share = _share(ahead)
    slope, curve = share - (sign > 0), share * (1 - share)
    links, told = np.full((1, 3), -1), [np.zeros(1)]  # left, right, feature of every node; thresholds and values
    threshold = np.full(1, -2.0)
    at, row, level = np.zeros(len(sign), dtype=np.int64), np.arange(len(sign)), np.zeros(1, dtype=np.int64)
    for depth in range(how.depth + 1):
        sums = _Sums(at, slope[row], curve[row], sign[row] > 0, len(level), how)
        told[-1] = sums.value
        split = sums.best(rows, row) if depth < how.depth else None
        if split is None or not (split.feature >= 0).any():
            break
        parents = np.flatnonzero(split.feature >= 0)
        lefts = len(links) + 2 * np.arange(len(parents))
        links[level[parents]] = np.stack([lefts, lefts + 1, split.feature[parents]], 1)
        threshold[level[parents]] = [rows.cuts[split.feature[p]][split.cut[p]] for p in parents]
        links = np.concatenate([links, np.full((2 * len(parents), 3), -1)])
        threshold = np.concatenate([threshold, np.full(2 * len(parents), -2.0)])
        at, row = _moved(rows, split, at, row)
        level = np.arange(lefts[0], len(links))
        told.append(np.zeros(len(level)))
    return Nodes(links[:, 0], links[:, 1], links[:, 2], threshold, np.concatenate(told))


def _moved(rows: Rows, split: _Split, at: Ints, row: Ints) -> tuple[Ints, Ints]:
    """Who is where on the next level: nodes (numbered by place on it) and rows."""
    on = split.feature[at] >= 0
    at, row = at[on], row[on]
    place = 2 * (np.cumsum(split.feature >= 0) - 1)[at]
    feature, cut = split.feature[at], split.cut[at]
    left, right = rows.first[feature, row] <= cut, rows.sure[feature, row] > cut
    return np.concatenate([place[left], place[right] + 1]), np.concatenate([row[left], row[right]])


@dataclass(frozen=True, eq=False)
class _Sums:
    """Who is where on a level: `[m]` nodes, slopes, curvatures and whether a row is to be raised, once for every node it is at."""

    at: Ints
    slope: Floats
    curve: Floats
    up: Bools
    nodes: int
    how: Boosting

    @property
    def totals(self) -> tuple[Floats, Floats]:
        slope, curve = (np.bincount(self.at, part, self.nodes) for part in (self.slope, self.curve))
        return slope.astype(np.float64), curve.astype(np.float64)

    @property
    def value(self) -> Floats:
        """What a node says as a leaf, `[nodes]`."""
        slope, curve = self.totals
        return -slope / (curve + self.how.penalty + LEAST)

    def best(self, rows: Rows, row: Ints) -> _Split:
        """The split of each node that gains most in the worst case.

        Where the right is to be the higher side, rows that can choose go left if they are to be raised, right if they are to be
        lowered; the other way round where the left is. So each split is the ordinary one of rows moved to an end of their interval, and
        counts where its values are in that order.
        """
        nodes = np.arange(self.nodes)
        found = _Split(np.full(self.nodes, -1), np.zeros(self.nodes, dtype=np.int64), np.full(self.nodes, LEAST))
        totals = self.totals
        for feature, cuts in enumerate(rows.cuts):
            first, sure = rows.first[feature, row], rows.sure[feature, row]
            for rising, place in self._sides(first, sure):
                gain = self._gains(place, len(cuts), totals, rising)
                if not gain.size:
                    continue
                cut = gain.argmax(1)
                better = gain[nodes, cut] > found.gain
                found.feature[better], found.cut[better] = feature, cut[better]
                found.gain[better] = gain[nodes, cut][better]
        return found

    def _sides(self, first: Ints, sure: Ints) -> Iterator[tuple[int, Ints]]:
        """Which side is to be the higher (1: right, -1: left, 0: either), and the threshold from which on each row is left."""
        if (first == sure).all():  # nobody can choose, as in features that are 0 or 1
            yield 0, first
            return
        yield 1, np.where(self.up, first, sure)
        yield -1, np.where(self.up, sure, first)

    def _gains(self, place: Ints, cuts: int, totals: tuple[Floats, Floats], rising: int) -> Floats:
        """`[nodes, cuts]`; -inf where the values would be in the other order, or a side too thin."""
        key, shape = self.at * (cuts + 1) + place, (self.nodes, cuts + 1)
        size = shape[0] * shape[1]
        slope, curve = (
            np.bincount(key, part, size).reshape(shape)[:, :-1].cumsum(1) for part in (self.slope, self.curve)
        )
        rest = [total[:, None] - part for total, part in zip(totals, (slope, curve), strict=True)]
        penalty = self.how.penalty + LEAST
        left, right = -slope / (curve + penalty), -rest[0] / (rest[1] + penalty)
        sound = ((right - left) * rising >= 0) & (np.minimum(curve, rest[1]) > self.how.least)
        whole = np.square(totals[0]) / (totals[1] + penalty)
        return np.where(sound, -slope * left - rest[0] * right - whole[:, None], -np.inf)
