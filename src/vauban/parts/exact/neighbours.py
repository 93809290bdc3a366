"""Nearest neighbours: how far to the cell of a neighbour of another class."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog, nnls
from scipy.spatial.distance import cdist

from vauban.parts.exact.base import LENGTHS, ROUNDING, Floats, Nearest

DUAL_NAMES = {"linf": "cityblock", "l2": "euclidean", "l1": "chebyshev"}
"""Name of a space -> what scipy calls its dual norm."""
TOLERANCE = {"linf": 1e-6, "l2": 1e-8, "l1": 1e-6}
"""Distances are given smaller by this share: what the solvers may err by."""
FAR = 1e-9
"""Of the last residual of a least-distance problem: below, the solution is too far away to be told from none."""
NEW = 8
"""Violated rules that are added to a small problem at once."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The vote of the `k` training rows `points` `[m, d]` (of classes `labels` `[m]`) that are nearest in Euclidean distance.

    One neighbour: exact. The row must reach the cell of a point of another class, the set of inputs that are nearer to
    that point than to any point of the row's class; that is a small quadratic (l2) or linear (linf, l1) problem for each
    such point, tried in the order of a lower bound and dropped once the bound exceeds what was found (Wang, Liu, Yi,
    Zhou and Hsieh 2019, arXiv:1906.03972, section 3). The bound of a point is the farthest of its bisectors.

    More neighbours: a lower bound. The answer can only change when enough foreign points come before all but a few of
    the row's class; each bisector gives the distance at which that pair can change places. `weighted` votes (by inverse
    distance) are certain only while all k neighbours are of the row's class.
    """

    points: Floats
    labels: NDArray[np.int64]
    classes: int
    k: int = 1
    weighted: bool = False
    _kept: dict[tuple[int, str], Floats] = field(default_factory=dict, init=False, repr=False)

    def predict(self, x: Floats) -> NDArray[np.int64]:
        answers = np.zeros(len(x), dtype=np.int64)
        for i, row in enumerate(x):
            far = np.sqrt(np.square(self.points - row).sum(1))
            near = np.argsort(far, kind="stable")[: self.k]
            if self.weighted and far[near[0]] == 0:
                near = near[far[near] == 0]
            weights = 1 / np.maximum(far[near], 1e-300) if self.weighted else None
            answers[i] = np.bincount(self.labels[near], weights, self.classes).argmax()
        return answers

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
        # so that a bound beyond `within` is still beyond it once it is rounded down
        within *= 1 + 3 * (ROUNDING + TOLERANCE[space])
        answers = self.predict(x)
        for i in np.flatnonzero(answers == labels):
            own, foreign = self.points[self.labels == labels[i]], self.points[self.labels != labels[i]]
            bounds = self._bounds(x[i], own, foreign, self._apart(int(labels[i]), own, foreign, space))
            if self.k > 1:
                distance[i], exact[i] = self._vote(bounds), False
            else:
                distance[i], exact[i] = _search(x[i], own, foreign, bounds, space, low, high, within, deadline)
        return Nearest(distance * (1 - ROUNDING - TOLERANCE[space]), exact)

    def _apart(self, label: int, own: Floats, foreign: Floats, space: str) -> Floats:
        """`[foreign, own]`: distances of the points in the dual norm."""
        if (label, space) not in self._kept:
            self._kept[label, space] = cdist(foreign, own, DUAL_NAMES[space])
        return self._kept[label, space]

    @property
    def _allowed(self) -> tuple[int, int]:
        """(foreign points that must come forward, own points that may stay before each of them) for a change."""
        if self.weighted:
            return 1, self.k - 1
        return (self.k + 1) // 2, self.k // 2

    def _bounds(self, row: Floats, own: Floats, foreign: Floats, apart: Floats) -> Floats:
        """`[foreign]`: how far to where all own points but the allowed ones can be farther than this foreign one."""
        spare = self._allowed[1]
        if len(own) <= spare:
            return np.zeros(len(foreign))
        gap = np.square(foreign - row).sum(1)[:, None] - np.square(own - row).sum(1)[None]
        with np.errstate(divide="ignore", invalid="ignore"):
            far = np.where(gap > 0, gap / (2 * apart), 0.0)
        bounds: Floats = np.partition(far, len(own) - 1 - spare, axis=1)[:, len(own) - 1 - spare]
        return bounds

    def _vote(self, bounds: Floats) -> float:
        count = self._allowed[0]
        return float(np.partition(bounds, count - 1)[count - 1]) if len(bounds) >= count else np.inf


def _search(
    row: Floats,
    own: Floats,
    foreign: Floats,
    bounds: Floats,
    space: str,
    low: Floats,
    high: Floats,
    within: float,
    deadline: float | None,
) -> tuple[float, bool]:
    """The least distance over the cells of all foreign points, and whether it is exact."""
    best, proven = np.inf, True
    for j in np.argsort(bounds, kind="stable"):
        if bounds[j] >= best or bounds[j] > within:
            return min(best, float(bounds[j])), bounds[j] >= best and proven
        if deadline is not None and time.monotonic() > deadline:
            return min(best, float(bounds[j])), False
        # nearer to the foreign point than to each own one, seen from the row, in units of the way to that point
        unit = max(float(LENGTHS["l2"](foreign[j] - row)), 1e-300)
        slopes, limits = (own - foreign[j]) / unit, (np.square(own - row).sum(1) - unit**2) / (2 * unit**2)
        found, sure = _cell(slopes, limits, (low - row) / unit, (high - row) / unit, space, min(best, within) / unit)
        found *= unit
        if found < best:
            best, proven = max(found, float(bounds[j])), sure
    return best, proven


def _cell(slopes: Floats, limits: Floats, low: Floats, high: Floats, space: str, most: float) -> tuple[float, bool]:
    """The shortest change with slopes @ change <= limits and low <= change <= high, and whether it is exact.

    Rules are added as they are violated; every relaxed optimum is a lower bound, so that one may stop above `most`.
    """
    solve, length = SOLVERS[space], LENGTHS[space]
    scale = np.maximum(np.abs(slopes).max(1, initial=0.0), 1e-300)
    slopes, limits = slopes / scale[:, None], limits / scale
    chosen: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
    change = np.clip(np.zeros(len(low)), low, high)
    best = float(length(change))
    while True:
        over = slopes @ change - limits
        over[chosen] = -np.inf
        worst = np.argsort(-over)[:NEW]
        worst = worst[over[worst] > 1e-9]
        if not len(worst):
            return best, True
        chosen = np.concatenate([chosen, worst])
        solved = solve(slopes[chosen], limits[chosen], low, high)
        if solved is None:
            return np.inf, True
        change, sure = solved
        best = max(best, float(length(change)))
        if not sure or best > most:
            return best, False


Solved = tuple[Floats, bool] | None
Solver = Callable[[Floats, Floats, Floats, Floats], Solved]
"""(slopes, limits, low, high) -> the shortest change and whether it is optimal; None where there is none."""


def _l2(slopes: Floats, limits: Floats, low: Floats, high: Floats) -> Solved:
    """Least-distance programming by non-negative least squares (Lawson and Hanson 1974, chapter 23)."""
    walls = np.eye(len(low))
    up, down = np.isfinite(high), np.isfinite(low)
    rules = np.concatenate([-slopes, -walls[up], walls[down]])
    least = np.concatenate([-limits, -high[up], low[down]])
    target = np.zeros(len(low) + 1)
    target[-1] = 1.0
    system = np.concatenate([rules.T, least[None]])
    try:
        weights, _ = nnls(system, target, maxiter=50 * (len(rules) + 10))
    except RuntimeError:
        return np.zeros(len(low)), False
    rest = system @ weights - target
    return (-rest[:-1] / rest[-1], True) if -rest[-1] > FAR else (np.zeros(len(low)), False)


def _linf(slopes: Floats, limits: Floats, low: Floats, high: Floats) -> Solved:
    """min r with -r <= change <= r."""
    d = len(low)
    walls = np.concatenate([np.eye(d), -np.eye(d)])
    rules = np.concatenate([np.c_[slopes, np.zeros(len(slopes))], np.c_[walls, -np.ones(2 * d)]])
    most = np.concatenate([limits, np.zeros(2 * d)])
    return _program(np.eye(d + 1)[d], rules, most, [*zip(low, high, strict=True), (0.0, np.inf)], d)


def _l1(slopes: Floats, limits: Floats, low: Floats, high: Floats) -> Solved:
    """The change as a rise and a fall, both at least 0."""
    d = len(low)
    bounds = [(0.0, max(side, 0.0)) for side in (*high, *-low)]
    found = _program(np.ones(2 * d), np.c_[slopes, -slopes], limits, bounds, 2 * d)
    return None if found is None else (found[0][:d] - found[0][d:], found[1])


def _program(cost: Floats, rules: Floats, most: Floats, bounds: list[tuple[float, float]], keep: int) -> Solved:
    answer = linprog(cost, A_ub=rules, b_ub=most, bounds=bounds, method="highs")
    if answer.status == 2:
        return None
    if answer.x is None:
        return np.zeros(keep), False
    return answer.x[:keep], answer.status == 0


SOLVERS: Mapping[str, Solver] = {"linf": _linf, "l2": _l2, "l1": _l1}
"""Name of a space -> its solver."""
