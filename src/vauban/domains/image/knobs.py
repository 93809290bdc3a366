"""Spaces in which an attacker turns a few knobs of a picture, and does not touch its pixels one by one."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vauban.core.rng import Rng
from vauban.core.space import Radius
from vauban.parts.projections import Linf, per_row
from vauban.parts.windows import upright
from vauban.schema.errors import BadThreat

FINEST = 101
"""Settings of one knob that a lattice holds at most."""


@dataclass(frozen=True, eq=False)
class Knobs(Linf):
    """Knobs at most `radius` from zero, each; the distance is that of the knob turned furthest.

    A point holds the knobs, `frame` makes pictures of it: exactly the clean picture where all are zero, and never outside
    the picture's box.

    Args:
        low, high: how far each knob can be turned at all.
        dark, bright: smallest and largest valid value of a pixel, broadcastable to one picture.
    """

    dark: Any = -torch.inf
    bright: Any = torch.inf

    limits: ClassVar[tuple[float, float]]
    smooth: ClassVar[bool] = True
    bounded: ClassVar[bool] = False
    """Needs to know the smallest and the largest value of a pixel."""
    colours: ClassVar[bool] = False
    """Needs red, green and blue."""

    @classmethod
    def between(cls, dark: Tensor, bright: Tensor) -> Knobs:
        """The space for pictures in that box."""
        return cls(*cls.limits, dark=dark, bright=bright)

    def frame(self, x: Tensor, ids: Sequence[int] | np.ndarray | None = None) -> Turned:
        """Raises BadThreat where rows are no pictures, or lack what the knobs work on."""
        if x.dim() not in (3, 4):
            raise BadThreat(
                f"The space {self.name} turns pictures [rows, channels, height, width], and the rows here have shape "
                f"{tuple(x.shape[1:])}: use linf, l2, l1 or l0, such as linf:0.1."
            )
        if self.colours and upright(x)[0].shape[1] != 3:
            raise BadThreat(
                f"The space {self.name} needs pictures of three channels, and these have {upright(x)[0].shape[1]}: use "
                "brightness, contrast or gamma, which any picture has."
            )
        dark, bright = (torch.as_tensor(side).to(x) for side in (self.dark, self.bright))
        if self.bounded and not bool((dark.isfinite() & bright.isfinite()).all()):
            raise BadThreat(
                f"The space {self.name} needs to know the range of a pixel: declare it, such as --bounds 0,1."
            )
        # the range of every pixel, laid out as upright pictures are
        dark, bright = (
            upright(side.expand(x.shape[1:])[None])[0][0] if side.dim() else side for side in (dark, bright)
        )
        return Turned(replace(self, dark=dark, bright=bright), x, np.arange(len(x)) if ids is None else np.asarray(ids))

    def range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest pixels, of the type of upright pictures `x`: those of a row `[c, h, w]`, or one number."""
        dark, bright = (torch.as_tensor(side, dtype=x.dtype, device=x.device) for side in (self.dark, self.bright))
        return dark, bright

    def widest(self, low: Tensor, high: Tensor) -> float:
        """As far as a knob can be turned."""
        return float(torch.maximum(self.high.abs(), self.low.abs()).max())

    def shape(self, x: Tensor) -> tuple[int, ...]:
        """The shape of one row's knobs, for upright pictures `x`."""
        return (len(self.knobs),)

    @abstractmethod
    def draw(self, z: Tensor, x: Tensor, ids: np.ndarray) -> Tensor:
        """Upright pictures `x` `[m, c, h, w]` of rows `ids` after turning knobs `z` `[m, ...]`."""

    def sample(self, x: Tensor, radius: Radius, rng: Rng, rows: Tensor) -> Tensor:
        """Every knob uniform between where it may be turned down and up."""
        down, up = self.reach(x, radius)
        return down + (up - down) * rng.uniform(rows, x.shape[1:]).to(x)

    def reach(self, x: Tensor, radius: Radius) -> tuple[Tensor, Tensor]:
        """How far each knob may be turned down and up."""
        low, high = self.box(x)
        size = per_row(radius, x)
        return torch.maximum(x - size, low), torch.minimum(x + size, high)

    def lattice(self, start: Tensor, radius: float, most: int) -> Tensor:
        """All combinations of evenly spaced settings, as many of each knob; what turns one knob alone comes first."""
        count = len(self.knobs)
        down, up = (side.flatten(1) for side in self.reach(start[:1], radius))
        steps = max(3, min(FINEST, int(most ** (1 / count) + 1e-9)))
        steps -= 1 - steps % 2
        axes = [self.settings(float(d), float(u), steps) for d, u in zip(down[0], up[0], strict=True)]
        points = np.array(list(itertools.product(*axes)))
        points = np.where(np.abs(points) < 1e-9 * radius, 0.0, points)
        turned, far = (points != 0).sum(1), np.abs(points).max(1)
        points = points[np.lexsort((-far, turned > 1))]
        found = torch.as_tensor(points[np.abs(points).max(1) > 0], dtype=start.dtype, device=start.device)
        return self.project(
            found.reshape(-1, *start.shape[1:]), torch.zeros_like(found).reshape(-1, *start.shape[1:]), radius
        )

    def settings(self, down: float, up: float, most: int) -> np.ndarray:
        """At most so many settings of one knob between `down` and `up`, both among them."""
        return np.linspace(down, up, most)

    def told(self, z: Tensor) -> list[str]:
        turned = (z.flatten(1) != 0).tolist()
        return [" and ".join(name for name, on in zip(self.knobs, row, strict=True) if on) for row in turned]


@dataclass(frozen=True, eq=False)
class Turned:
    """The frame of pictures `x` `[n, ...]` in a space of knobs."""

    space: Knobs
    x: Tensor
    ids: np.ndarray

    @property
    def start(self) -> Tensor:
        """All knobs at zero."""
        shape = self.space.shape(upright(self.x[:1])[0])
        return torch.zeros(len(self.x), *shape, dtype=self.x.dtype, device=self.x.device)

    def render(self, z: Tensor, rows: Tensor) -> Tensor:
        """The pictures `[m, ...]` for knobs `z` `[m, ...]` of rows `[m]`."""
        clean = self.x[rows]
        pictures, back = upright(clean)
        drawn = self.space.draw(z.to(clean), pictures, self.ids[rows.cpu().numpy()])
        low, high = self.space.range(pictures)
        changed = back(torch.clamp(drawn, low, high))
        # resampling a picture onto itself rounds: knobs at zero give the very picture, and the slope there all the same
        still = per_row((z.detach() == 0).flatten(1).all(1), clean).bool()
        value = torch.where(still, clean, changed.detach())
        return value + (changed - changed.detach()) if changed.requires_grad else value
