"""Windows on an input: what block searches are made of.

Any input is seen as `[channels, height, width]`: the last two sides of its shape are height and width, a vector is one
row of one channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vauban.core.rng import Rng


@dataclass(frozen=True)
class Grid:
    """The shape of one input as channels, height, width."""

    channels: int
    height: int
    width: int

    @classmethod
    def of(cls, shape: Sequence[int]) -> Grid:
        *rest, height, width = (1, *shape)
        return cls(math.prod(rest), height, width)

    def view(self, x: Tensor) -> Tensor:
        """`[m, ...]` as `[m, channels, height, width]`."""
        return x.reshape(len(x), self.channels, self.height, self.width)

    def sides(self, share: float) -> tuple[int, int]:
        """Height and width of a window that covers about that share: a square, or a stretch of a vector."""
        if self.height == 1:
            return 1, _within(share * self.width, self.width)
        side = math.sqrt(share * self.height * self.width)
        return _within(side, self.height), _within(side, self.width)

    def window(self, sides: tuple[int, int], rng: Rng, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Top and left `[m]` of a window at a place of each row's own, the last row and column included."""
        top = rng.integers(rows, self.height - sides[0] + 1)[:, 0]
        return top, rng.integers(rows, self.width - sides[1] + 1)[:, 0]

    def mask(self, sides: tuple[int, int], corner: tuple[Tensor, Tensor]) -> Tensor:
        """bool `[m, 1, height, width]`, true inside the window."""
        down = _stretch(self.height, corner[0], sides[0])
        across = _stretch(self.width, corner[1], sides[1])
        return (down[:, :, None] & across[:, None, :])[:, None]

    def cells(self, sides: tuple[int, int], corner: tuple[Tensor, Tensor]) -> Tensor:
        """Places inside the window, numbered row by row over the grid, int64 `[m, cells]`."""
        down = torch.arange(sides[0], device=corner[0].device)[:, None] * self.width
        inside = (down + torch.arange(sides[1], device=corner[0].device)).flatten()
        return (corner[0] * self.width + corner[1])[:, None] + inside

    def placed(self, pattern: Tensor, corner: tuple[Tensor, Tensor]) -> Tensor:
        """`pattern` `[m, sides]` laid at each row's corner on an empty grid, `[m, 1, height, width]`."""
        m, high, wide = pattern.shape
        at = torch.arange(m, device=pattern.device)[:, None, None]
        y = corner[0][:, None, None] + torch.arange(high, device=pattern.device)[None, :, None]
        x = corner[1][:, None, None] + torch.arange(wide, device=pattern.device)[None, None, :]
        out = pattern.new_zeros(m, self.height, self.width)
        out[at, y, x] = pattern
        return out[:, None]


def _within(side: float, most: int) -> int:
    return max(1, min(most, round(side)))


def _stretch(length: int, start: Tensor, size: int) -> Tensor:
    place = torch.arange(length, device=start.device)[None, :]
    return (place >= start[:, None]) & (place < start[:, None] + size)


def bump(high: int, wide: int) -> Tensor:
    """A peak `[high, wide]` of Euclidean norm 1: nested rectangles about the middle, each adding 1 / k^2."""
    y = torch.arange(high) - (high - 1) // 2
    x = torch.arange(wide) - (wide - 1) // 2
    ring = torch.maximum(y.abs()[:, None], x.abs()[None, :])
    heights = 1.0 / torch.arange(1, int(ring.max()) + 2, dtype=torch.float32).square()
    peak = heights.flip(0).cumsum(0).flip(0)[ring]
    return peak / peak.norm()


def dipole(high: int, wide: int) -> Tensor:
    """Two bumps side by side of opposite sign, `[high, wide]`, norm 1; one bump where there is one cell."""
    if high * wide == 1:
        return torch.ones(1, 1)
    axis, side = (0, high) if high > 1 else (1, wide)
    half = side // 2
    parts = [bump(half, wide), -bump(high - half, wide)] if axis == 0 else [bump(1, half), -bump(1, wide - half)]
    both = torch.cat(parts, axis)
    return both / both.norm()


def cosines(length: int) -> torch.Tensor:
    """The orthonormal cosine waves of that many points, `[waves, points]` float64, from the constant to the shortest."""
    wave, point = torch.arange(length)[:, None], torch.arange(length)[None, :]
    table = torch.cos(math.pi * (point.double() + 0.5) * wave / length)
    return table / table.norm(dim=1, keepdim=True)
