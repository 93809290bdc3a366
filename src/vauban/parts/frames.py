"""What the points of a space mean: inputs themselves, or knobs that are yet to be turned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Render = Callable[[Tensor, Tensor], Tensor]
"""(points `[m, ...]`, rows `[m]`) -> inputs `[m, ...]`."""


def as_is(z: Tensor, rows: Tensor) -> Tensor:
    """Points that are inputs already."""
    return z


@dataclass(frozen=True)
class Plain:
    """The frame of every space in which a point is an input."""

    start: Tensor

    def render(self, z: Tensor, rows: Tensor) -> Tensor:
        return z
