"""What an exact proof says, and the norms it is said in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
ROUNDING = 1e-9
"""Distances are given smaller by this share, more than float64 sums err."""
BLUR_RADIUS, BLUR_COORDINATE = 1e-6, 4e-7
"""What an attack may overrun its radius by: float32 rounding, as shares of the radius and of the largest coordinate."""


@dataclass(frozen=True)
class Nearest:
    """How far the nearest valid input with another answer lies, for `n` rows."""

    distance: Floats
    """`[n]`: no nearer input in the box is answered otherwise; 0 where the row itself is, inf where none is."""
    exact: NDArray[np.bool_]
    """`[n]`: there is one at this distance (up to rounding); False where it is only a lower bound."""


class ExactModel(Protocol):
    """A classifier whose nearest change of answer can be computed."""

    @property
    def classes(self) -> int: ...

    def predict(self, x: Floats) -> NDArray[np.int64]:
        """Classes of `x` `[n, d]`."""
        ...

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
        """For rows `x` `[n, d]` with answers `labels` `[n]`, inside the box `[d]`.

        `space` is `linf`, `l2` or `l1`. Distances above `within` need not be exact. After `deadline` (`time.monotonic`)
        lower bounds are given.
        """
        ...


LENGTHS: Mapping[str, Callable[[Floats], Floats]] = {
    "linf": lambda change: np.abs(change).max(-1, initial=0.0),
    "l2": lambda change: np.sqrt(np.square(change).sum(-1)),
    "l1": lambda change: np.abs(change).sum(-1),
}
"""Name of a space -> the norm over the last axis."""
DUALS: Mapping[str, Callable[[Floats], Floats]] = {"linf": LENGTHS["l1"], "l2": LENGTHS["l2"], "l1": LENGTHS["linf"]}
"""Name of a space -> the dual norm: how fast a linear function can change."""


def certify(
    model: ExactModel,
    x: Tensor,
    labels: Tensor,
    space: str,
    radius: float,
    low: Tensor | float,
    high: Tensor | float,
    deadline: float | None = None,
) -> NDArray[np.bool_]:
    """bool `[n]`: proven that no valid input within `radius` of the row is answered otherwise than `labels`.

    `x` `[n, ...]`; `low` and `high` broadcast to one row and may be infinite. The radius is widened by what attacks may
    overrun it by through float32 rounding, so that a certified row is never found broken.
    """
    if not len(x):
        return np.zeros(0, dtype=bool)
    rows, lows, highs = arrays(x, low, high)
    wide = radius * (1 + BLUR_RADIUS) + BLUR_COORDINATE * float(np.abs(rows).max(initial=0.0))
    truth = labels.detach().cpu().numpy().astype(np.int64)
    found = model.nearest(rows, truth, space, lows, highs, within=wide, deadline=deadline)
    proven: NDArray[np.bool_] = found.distance > wide
    return proven


def arrays(x: Tensor, low: Tensor | float, high: Tensor | float) -> tuple[Floats, Floats, Floats]:
    """Rows `[n, d]` and their box `[d]`, twice, in float64."""
    rows = x.detach().cpu().double().flatten(1).numpy()
    shape = tuple(x.shape[1:])
    sides = []
    for side in (low, high):
        plain = side.detach().cpu().double().numpy() if isinstance(side, Tensor) else np.float64(side)
        sides.append(np.broadcast_to(plain, shape).reshape(-1).astype(np.float64))
    return rows, sides[0], sides[1]
