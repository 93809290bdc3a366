"""Linear models: the nearest point on a hyperplane, inside a box."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vauban.parts.exact.base import ROUNDING, Floats, Nearest

PART = 2**21
"""Numbers worked on at once."""


@dataclass(frozen=True, eq=False)
class Linear:
    """Answers with the largest of `weights @ x + bias`; `weights` `[classes, d]`, `bias` `[classes]`.

    Exact in every space, with the box: per pair of classes, the least change that brings their scores together moves
    coordinates against the slope, each as far as the box allows (a continuous knapsack), which is solved by sorting.
    `unit` is the rounding unit of the model's own arithmetic: margins count as gone that it cannot tell from zero.
    """

    weights: Floats
    bias: Floats
    unit: float = 2.0**-52

    @property
    def classes(self) -> int:
        return len(self.bias)

    def predict(self, x: Floats) -> NDArray[np.int64]:
        return (x @ self.weights.T + self.bias).argmax(1)

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
        solve = SOLVERS[space]
        distance = np.full(len(x), np.inf)
        size = max(1, PART // max(1, x.shape[1]))
        for start in range(0, len(x), size):
            cut = slice(start, start + size)
            for other in range(self.classes):
                slope = self.weights[labels[cut]] - self.weights[other]
                offset = self.bias[labels[cut]] - self.bias[other]
                # against the slope: down where it is positive, up where it is negative
                room = np.where(slope > 0, x[cut] - low, high - x[cut]).clip(min=0)
                margin = (slope * x[cut]).sum(1) + offset
                doubt = 4 * self.unit * ((np.abs(slope) * np.abs(x[cut])).sum(1) + np.abs(offset))
                far = solve(np.abs(slope), room, (margin - doubt).clip(min=0))
                distance[cut] = np.where(labels[cut] == other, distance[cut], np.minimum(distance[cut], far))
        return Nearest(distance * (1 - ROUNDING), np.ones(len(x), dtype=bool))


Solver = Callable[[Floats, Floats, Floats], Floats]
"""(slopes >= 0 `[n, d]`, rooms >= 0 `[n, d]`, margin `[n]`) -> least length of a change that takes the margin away."""


def _linf(slope: Floats, room: Floats, margin: Floats) -> Floats:
    """All coordinates move alike until the box stops them: sum slope min(r, room) = margin."""
    return _level(slope, slope, room, margin)[0]


def _l2(slope: Floats, room: Floats, margin: Floats) -> Floats:
    """Coordinates move in proportion to their slope until the box stops them: sum slope min(t slope, room) = margin."""
    with np.errstate(divide="ignore", invalid="ignore"):
        knee = np.where(slope > 0, room / slope, np.inf)
    level, reached = _level(slope**2, slope, knee, margin)
    level = np.where(reached, level, 0.0)
    steps = np.where(slope > 0, np.minimum(level[:, None] * slope, room), 0.0)
    return np.where(reached, np.sqrt(np.square(steps).sum(1)), np.inf)


def _l1(slope: Floats, room: Floats, margin: Floats) -> Floats:
    """The steepest coordinate first, to the wall; then the next."""
    order = np.argsort(-slope, axis=1, kind="stable")
    slope, room = np.take_along_axis(slope, order, 1), np.take_along_axis(room, order, 1)
    gain = np.where(slope > 0, slope * np.where(slope > 0, room, 0), 0)
    before = np.concatenate([np.zeros((len(gain), 1)), np.cumsum(gain, 1)[:, :-1]], 1)
    missing = np.maximum(margin[:, None] - before, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        used = np.where(slope > 0, np.minimum(missing / slope, room), 0.0)
    reached = (slope > 0) & (missing <= gain * (1 + ROUNDING))
    return np.where(reached.any(1) | (margin <= 0), np.where(margin[:, None] > 0, used, 0).sum(1), np.inf)


def _level(rate: Floats, slope: Floats, knee: Floats, margin: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """The least t `[n]` with sum rate min(t, knee) = margin, and whether there is one; inf where not."""
    live = slope > 0
    knee = np.where(live, knee, np.inf)
    rate = np.where(live, rate, 0.0)
    order = np.argsort(knee, axis=1, kind="stable")
    knee, rate = np.take_along_axis(knee, order, 1), np.take_along_axis(rate, order, 1)
    total = rate.sum(1, keepdims=True)
    running = total - np.cumsum(rate, 1) + rate
    width = np.diff(np.where(np.isfinite(knee), knee, 0.0), axis=1, prepend=0.0)
    gained = np.cumsum(np.where(np.isfinite(knee), running * width, 0.0), 1)
    before = np.concatenate([np.zeros((len(knee), 1)), gained[:, :-1]], 1)
    start = np.concatenate([np.zeros((len(knee), 1)), knee[:, :-1]], 1)
    tiny = np.finfo(np.float64).eps * len(knee[0]) * total
    with np.errstate(divide="ignore", invalid="ignore"):
        t = start + np.maximum(margin[:, None] - before, 0) / running
    fits = np.isfinite(start) & (running > tiny) & (t <= knee * (1 + ROUNDING))
    first = fits.argmax(1)
    found = np.where(margin <= 0, 0.0, np.take_along_axis(t, first[:, None], 1)[:, 0])
    reached = fits.any(1) | (margin <= 0)
    return np.where(reached, found, np.inf), reached


SOLVERS: Mapping[str, Solver] = {"linf": _linf, "l2": _l2, "l1": _l1}
"""Name of a space -> its solver."""
