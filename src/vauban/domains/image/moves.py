"""Pictures moved as a whole, or bent a little: rotation, translation, both, and a smooth flow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vauban.domains.image.knobs import Knobs
from vauban.parts.projections import per_row

SHARE = 1 / 300
"""Of a picture's side, the shift that goes with one degree in `rigid`: ten per cent with thirty degrees."""
COARSE, SPACING = 8, 4
"""Control points of a flow along a side at most, and the pixels between two of them at least."""


def resampled(x: Tensor, down: Tensor, right: Tensor, floor: Tensor) -> Tensor:
    """Pictures `[m, c, h, w]` whose every pixel comes from `down`, `right` `[m, h, w]` pixels away; `floor` from outside.

    Bilinear between pixels. Smallest values stand outside where they are finite, zeros otherwise.
    """
    h, w = x.shape[2:]
    rows = torch.arange(h, dtype=x.dtype, device=x.device)[:, None]
    columns = torch.arange(w, dtype=x.dtype, device=x.device)[None, :]
    grid = torch.stack([(2 * (columns + right) + 1) / w - 1, (2 * (rows + down) + 1) / h - 1], 3)
    outside = torch.where(floor.isfinite(), floor, 0.0)
    return F.grid_sample(x - outside, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + outside


def turned(x: Tensor, degrees: Tensor, down: Tensor, right: Tensor, floor: Tensor) -> Tensor:
    """Pictures turned about their middle, then shifted by pixels; all `[m]`."""
    h, w = x.shape[2:]
    # in float64, whose last bits differ between vectorised and left-over elements, and are then rounded away
    angle = degrees.double() * (math.pi / 180)
    cosine, sine = (per_row(part, x[:, 0]) for part in (angle.cos().to(x), angle.sin().to(x)))
    rows = torch.arange(h, dtype=x.dtype, device=x.device)[None, :, None] - (h - 1) / 2 - per_row(down, x[:, 0])
    columns = torch.arange(w, dtype=x.dtype, device=x.device)[None, None, :] - (w - 1) / 2 - per_row(right, x[:, 0])
    # where each pixel comes from, less where it is
    from_row = cosine * rows - sine * columns - rows - per_row(down, x[:, 0])
    from_column = sine * rows + cosine * columns - columns - per_row(right, x[:, 0])
    return resampled(x, from_row, from_column, floor)


@dataclass(frozen=True, eq=False)
class Rotation(Knobs):
    """The picture turned about its middle, either way, by at most the radius in degrees.

    As in Engstrom et al. 2019 (arXiv:1712.02779), what comes in from outside has the smallest valid value.
    """

    name: ClassVar[str] = "rotation"
    unit: ClassVar[str] = "degrees"
    knobs: ClassVar[tuple[str, ...]] = ("rotation",)
    limits: ClassVar[tuple[float, float]] = (-180.0, 180.0)

    def draw(self, z: Tensor, x: Tensor, ids: np.ndarray) -> Tensor:
        none = torch.zeros_like(z[:, 0])
        return turned(x, z[:, 0], none, none, self.range(x)[0])


@dataclass(frozen=True, eq=False)
class Translation(Knobs):
    """The picture shifted down or up, and right or left, by at most the radius in pixels along each side."""

    name: ClassVar[str] = "translation"
    unit: ClassVar[str] = "pixels"
    knobs: ClassVar[tuple[str, ...]] = ("vertical shift", "horizontal shift")
    limits: ClassVar[tuple[float, float]] = (-4096.0, 4096.0)

    def settings(self, down: float, up: float, most: int) -> np.ndarray:
        """Whole pixels are among them, if they are not too many: between two, nothing but a mean of both is seen."""
        parts = int((most - 3) // (up - down))
        if parts < 1:
            return super().settings(down, up, most)
        inside = np.arange(math.ceil(down * parts), math.floor(up * parts) + 1) / parts
        return np.unique(np.concatenate([[down], inside, [up]]))

    def draw(self, z: Tensor, x: Tensor, ids: np.ndarray) -> Tensor:
        h, w = x.shape[2:]
        down, right = (per_row(part, x[:, 0]).expand(-1, h, w) for part in (z[:, 0], z[:, 1]))
        return resampled(x, -down, -right, self.range(x)[0])


@dataclass(frozen=True, eq=False)
class Rigid(Knobs):
    """The picture turned and shifted at once (Engstrom et al. 2019, arXiv:1712.02779).

    The radius is that of the rotation in degrees, and a shift along each side goes with it: a three-hundredth of the side
    for every degree. `rigid:30` allows thirty degrees and a tenth of each side, which for digits of 28 pixels is about
    Engstrom's room of three pixels.
    """

    name: ClassVar[str] = "rigid"
    unit: ClassVar[str] = "degrees"
    knobs: ClassVar[tuple[str, ...]] = ("rotation", "vertical shift", "horizontal shift")
    limits: ClassVar[tuple[float, float]] = (-180.0, 180.0)

    def draw(self, z: Tensor, x: Tensor, ids: np.ndarray) -> Tensor:
        h, w = x.shape[2:]
        return turned(x, z[:, 0], z[:, 1] * (h * SHARE), z[:, 2] * (w * SHARE), self.range(x)[0])


@dataclass(frozen=True, eq=False)
class Flow(Knobs):
    """Every pixel taken from a place a little off, by a displacement that varies smoothly.

    Displacements along both sides are given at control points, at least four pixels apart and at most eight along a side,
    with bilinear ones between; none exceeds the radius, in pixels, along either side. Xiao et al. 2018
    (arXiv:1801.02612) instead displace every pixel freely and pay for roughness in the loss.
    """

    name: ClassVar[str] = "flow"
    unit: ClassVar[str] = "pixels"
    knobs: ClassVar[tuple[str, ...]] = ("displacements",)
    limits: ClassVar[tuple[float, float]] = (-64.0, 64.0)

    def shape(self, x: Tensor) -> tuple[int, ...]:
        return 2, *(min(COARSE, max(2, 1 + side // SPACING)) for side in x.shape[2:])

    def draw(self, z: Tensor, x: Tensor, ids: np.ndarray) -> Tensor:
        h, w = x.shape[2:]
        field = between(between(z, h, 2), w, 3)
        return resampled(x, field[:, 0], field[:, 1], self.range(x)[0])

    def told(self, z: Tensor) -> list[str]:
        return ["displacements"] * len(z)


def between(values: Tensor, size: int, dim: int) -> Tensor:
    """Evenly spaced values along an axis, linearly interpolated to `size` places; the ends stay."""
    count = values.shape[dim]
    place = torch.linspace(0, count - 1, size, dtype=torch.float64)
    before = place.floor().clamp(max=count - 2).long()
    shape = [1] * values.dim()
    shape[dim] = size
    share = (place - before).to(values).reshape(shape)
    before = before.to(values.device)
    # written out, for the interpolating kernels round the left-over elements of a batch differently
    return values.index_select(dim, before) * (1 - share) + values.index_select(dim, before + 1) * share
