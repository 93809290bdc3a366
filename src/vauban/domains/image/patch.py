"""The space of patches: a rectangle of the picture, filled at will."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vauban.core.rng import Rng
from vauban.core.space import Radius
from vauban.parts import windows
from vauban.parts.frames import Plain
from vauban.parts.projections import LpBall, flat_radius
from vauban.parts.windows import upright
from vauban.schema.errors import BadThreat


@dataclass(frozen=True, eq=False)
class Patch(LpBall):
    """The share of the picture that the smallest rectangle around all changed pixels covers.

    Inside it every pixel may take any valid value. `project` leaves unchanged what lies outside the rectangle that keeps
    most of the squared change; `steepest` fills the rectangle whose pixels gain most on the way to the box's walls (in
    pictures with sides above 64 pixels, the best of thirteen heights).
    """

    name: ClassVar[str] = "patch"
    unit: ClassVar[str] = "share of the area"
    order: ClassVar[float] = 0.0

    def frame(self, x: Tensor, ids: Sequence[int] | np.ndarray | None = None) -> Plain:
        """Points are pictures. Raises BadThreat where rows are none, or no pixel fits under a patch."""
        if x.dim() not in (3, 4):
            raise BadThreat(
                "The space patch covers a part of pictures [rows, channels, height, width], and the rows here have shape "
                f"{tuple(x.shape[1:])}: use l0 with a number of features, such as l0:3."
            )
        return Plain(x)

    def widest(self, low: Tensor, high: Tensor) -> float:
        """The whole picture."""
        return 1.0

    def distance(self, z: Tensor, x: Tensor) -> Tensor:
        h, w = upright(x)[0].shape[2:]
        return windows.bounding(upright(z != x)[0].any(1)).double() / (h * w)

    def within(self, x: Tensor, radius: Radius) -> Callable[[Tensor], Tensor]:
        sizes = flat_radius(radius, x.double())

        def project(z: Tensor) -> Tensor:
            near = self.clip(z)
            over = (self.distance(near, x) > sizes).nonzero().flatten()
            if len(over):
                origin, wanted, kept = x[over].double(), z[over].double(), near[over].double()
                # the squared distance that leaving a pixel unchanged would add
                gain = upright((kept - origin) * (2 * wanted - origin - kept))[0].sum(1)
                near[over] = torch.where(self._chosen(gain, sizes[over], x[over]), near[over], x[over])
            return near

        return project

    def steepest(self, g: Tensor, x: Tensor, radius: Radius) -> Tensor:
        step = windows.walls(g, x, *self.box(x))
        gain = upright(g.double() * step.double())[0].sum(1)
        inside = self._chosen(gain, flat_radius(radius, x.double()), x)
        return torch.where(inside & (g != 0), step, 0)

    def sample(self, x: Tensor, radius: Radius, rng: Rng, rows: Tensor) -> Tensor:
        """A rectangle of any shape at any place, and pixels uniform in the box (noise of size 1 where that is open)."""
        h, w = upright(x)[0].shape[2:]
        low, high = (side.expand_as(x[:1]) for side in self.box(x))
        drawn = rng.uniform(rows, x.shape[1:]).to(x)
        wide = low.isfinite() & high.isfinite()
        value = torch.where(wide, low + (high - low) * drawn, x + 2 * drawn - 1)
        pick = rng.uniform(rows, (3,)).double()
        boxes = torch.zeros(len(x), 4, dtype=torch.int64)
        for row, share in enumerate(flat_radius(radius, x.double()).tolist()):
            sizes = windows.shapes(h, w, share)
            if sizes:
                a, b = sizes[int(float(pick[row, 0]) * len(sizes))]
                down, right = int(float(pick[row, 1]) * (h - a + 1)), int(float(pick[row, 2]) * (w - b + 1))
                boxes[row] = torch.tensor([down, right, a, b])
        return torch.where(windows.spread(windows.covered(boxes.to(x.device), h, w), x), self.clip(value), x)

    def _chosen(self, gain: Tensor, share: Tensor, x: Tensor) -> Tensor:
        """bool, as `x`: inside each row's best rectangle."""
        h, w = gain.shape[1:]
        inside = torch.zeros(len(gain), h, w, dtype=torch.bool, device=gain.device)
        for size in share.unique().tolist():
            rows, sizes = (share == size).nonzero().flatten(), windows.shapes(h, w, size)
            if sizes:
                inside[rows] = windows.covered(windows.best(gain[rows], sizes)[0], h, w)
        return windows.spread(inside, x)
