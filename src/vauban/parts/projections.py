"""Balls of the usual norms, cut by a box of valid inputs: the spaces in which inputs are moved continuously."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vauban.core.rng import Rng
from vauban.core.space import Frame, Radius, Validity
from vauban.parts.frames import Plain
from vauban.parts.lp import l1_threshold, l2_scale

Projector = Callable[[Tensor], Tensor]


def per_row(values: Any, x: Tensor) -> Tensor:
    """A number, or one a row `[n]`, as a tensor that broadcasts against `x` `[n, ...]`."""
    values = torch.as_tensor(values, dtype=x.dtype, device=x.device)
    return values.reshape(-1, *(1,) * (x.dim() - 1)) if values.dim() else values


def flat_radius(radius: Radius, x: Tensor) -> Tensor:
    """The radius of every row, `[n]`."""
    return torch.as_tensor(radius, dtype=x.dtype, device=x.device).expand(len(x))


@dataclass(frozen=True, eq=False)
class LpBall(ABC):
    """All inputs within a radius of `x`, and inside a box.

    `low` and `high` broadcast to one row and may be infinite; `x` is taken to be inside them. Distances are measured in
    float64, and every projection is admissible when measured so: it aims at a radius shorter by the rounding error of
    `x`'s own type. Projections are Euclidean, onto ball and box together, not onto one after the other.
    """

    low: Any = -torch.inf
    high: Any = torch.inf

    name: ClassVar[str]
    unit: ClassVar[str] = "input units"
    order: ClassVar[float]
    knobs: ClassVar[tuple[str, ...]] = ()

    def frame(self, x: Tensor, ids: Sequence[int] | np.ndarray | None = None) -> Frame:
        """Points are inputs."""
        return Plain(x)

    def widest(self, low: Tensor, high: Tensor) -> float:
        """From the lowest valid input to the highest; inf where these are no rows, whose size nobody knows."""
        return float(self.distance(high, low)) if low.shape[:1] == (1,) else float("inf")

    def __post_init__(self) -> None:
        low, high = (torch.as_tensor(side, dtype=torch.float32) for side in (self.low, self.high))
        if not bool((low <= high).all()):
            raise ValueError("the smallest valid input lies above the largest, for some feature")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    def distance(self, z: Tensor, x: Tensor) -> Tensor:
        """The norm of the change, float64 `[n]`."""
        return torch.linalg.vector_norm((z.double() - x.double()).flatten(1), ord=self.order, dim=1)

    def allowed(self, z: Tensor, x: Tensor) -> Validity:
        """Finite, and inside the box."""
        low, high = self.box(z)
        inside = ((z >= low) & (z <= high)).flatten(1).all(1)
        return Validity({"finite": z.isfinite().flatten(1).all(1), "box": inside})

    def box(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Lowest and highest inputs, of the type and on the device of `like`."""
        return self.low.to(like), self.high.to(like)

    def clip(self, z: Tensor) -> Tensor:
        """The nearest point inside the box."""
        return torch.clamp(z, *self.box(z))

    def project(self, z: Tensor, x: Tensor, radius: Radius) -> Tensor:
        """The nearest point to `z` within `radius` of `x` and inside the box."""
        return self.within(x, radius)(z)

    @abstractmethod
    def within(self, x: Tensor, radius: Radius) -> Projector:
        """`project` with all that depends on `x` and `radius` alone done once: what loops use."""

    @abstractmethod
    def steepest(self, g: Tensor, x: Tensor, radius: Radius) -> Tensor:
        """The change of size `radius` along which `g` grows most; zero where `g` is zero."""

    @abstractmethod
    def sample(self, x: Tensor, radius: Radius, rng: Rng, rows: Tensor) -> Tensor:
        """A point uniform in the ball (`radius` finite), projected into the box."""

    def _aim(self, x: Tensor, radius: Radius) -> Tensor:
        """The radius `[n]`, shorter by what rounding x + change to x's type can add to its norm."""
        step = torch.finfo(x.dtype).eps
        radius = flat_radius(radius, x)
        size = torch.linalg.vector_norm(x.flatten(1), ord=self.order, dim=1)
        # an infinite radius stays infinite: inf - finite
        return (radius * (1 - 4 * step) - step * size).clamp_min(0)

    def _room(self, change: Tensor, x: Tensor) -> Tensor:
        """How far each coordinate may go the way that `change` points, `[n, d]`."""
        low, high = self.box(x)
        return torch.where(change > 0, high - x, x - low).clamp_min(0).flatten(1)


@dataclass(frozen=True, eq=False)
class Linf(LpBall):
    """The largest change of any coordinate."""

    name: ClassVar[str] = "linf"
    order: ClassVar[float] = torch.inf

    def within(self, x: Tensor, radius: Radius) -> Projector:
        low, high = self.box(x)
        r, exact = per_row(radius, x), per_row(radius, x.double())
        # r, and x + r, are rounded to the nearest number, which may lie outside: then take the next one inwards
        inf = torch.full((), torch.inf, dtype=x.dtype, device=x.device)
        r = torch.where(r.double() > exact, torch.nextafter(r, -inf), r)
        down, up = x - r, x + r
        up = torch.where(up.double() - x.double() > exact, torch.nextafter(up, -inf), up).minimum(high)
        down = torch.where(x.double() - down.double() > exact, torch.nextafter(down, inf), down).maximum(low)
        return lambda z: torch.clamp(z, down, up)

    def steepest(self, g: Tensor, x: Tensor, radius: Radius) -> Tensor:
        return g.sign().mul_(per_row(radius, g))

    def sample(self, x: Tensor, radius: Radius, rng: Rng, rows: Tensor) -> Tensor:
        noise = rng.uniform(rows, x.shape[1:], -1.0, 1.0).to(x)
        return self.project(x + noise * per_row(radius, x), x, radius)


@dataclass(frozen=True, eq=False)
class L2(LpBall):
    """The Euclidean length of the change."""

    name: ClassVar[str] = "l2"
    order: ClassVar[float] = 2.0

    def within(self, x: Tensor, radius: Radius) -> Projector:
        aim = self._aim(x, radius)

        def project(z: Tensor) -> Tensor:
            change = z - x
            length = torch.linalg.vector_norm(change.flatten(1), dim=1)
            over = length > aim
            if not bool(over.any()):
                return self.clip(z)
            share = aim / length.clamp_min(torch.finfo(x.dtype).tiny)
            scaled = torch.where(per_row(over, x).bool(), x + change * per_row(share, x), z)
            clipped = self.clip(scaled)
            # row by row, so that no row's rounding depends on what its neighbours need
            cut = (over & (scaled != clipped).flatten(1).any(1)).nonzero().flatten()
            if len(cut):
                way, origin = change[cut], x[cut]
                scale = l2_scale(way.flatten(1).abs(), self._room(way, origin), aim[cut])
                clipped[cut] = self.clip(origin + way * per_row(scale, origin))
            return clipped

        return project

    def steepest(self, g: Tensor, x: Tensor, radius: Radius) -> Tensor:
        flat = g.flatten(1)
        tiny = torch.finfo(g.dtype).tiny
        # divided by the largest first, for squares of tiny gradients would underflow
        unit = flat / flat.abs().amax(1, keepdim=True).clamp_min(tiny)
        return (unit / unit.norm(dim=1, keepdim=True).clamp_min(tiny)).view_as(g) * per_row(radius, g)

    def sample(self, x: Tensor, radius: Radius, rng: Rng, rows: Tensor) -> Tensor:
        normal = rng.normal(rows, x.shape[1:]).to(x).flatten(1)
        # a power in float64: its float32 kernel rounds the left-over elements of a batch differently
        share = (rng.uniform(rows, (1,)).double() ** (1.0 / normal.shape[1])).to(x)
        noise = normal / normal.norm(dim=1, keepdim=True).clamp_min(1e-12) * share
        return self.project(x + noise.view_as(x) * per_row(radius, x), x, radius)


@dataclass(frozen=True, eq=False)
class L1(LpBall):
    """The sum of the absolute changes.

    `steepest` is a sparse step: the `share` of coordinates (at least one) with the largest slope among those that the
    box does not stop, weighted by the slope. One coordinate alone would be the steepest; several at once make a step
    worth its price, as in SLIDE (Tramer and Boneh 2019, arXiv:1904.13000, section 3), which weights them equally; with
    equal weights the projection could never prefer one to the other, so that the optimum of a linear model was missed.
    """

    share: float = 0.05

    name: ClassVar[str] = "l1"
    order: ClassVar[float] = 1.0

    def within(self, x: Tensor, radius: Radius) -> Projector:
        aim = self._aim(x, radius)

        def project(z: Tensor) -> Tensor:
            clipped = self.clip(z)
            over = ((clipped - x).flatten(1).abs().sum(1) > aim).nonzero().flatten()
            if len(over):
                change, origin = (z - x)[over], x[over]
                size, room = change.flatten(1).abs().double(), self._room(change, origin).double()
                threshold = l1_threshold(size, room, aim[over].double())
                kept = (size - threshold[:, None]).clamp_min_(0).to(x).view_as(change)
                clipped[over] = self.clip(origin + change.sign() * kept)
            return clipped

        return project

    def steepest(self, g: Tensor, x: Tensor, radius: Radius) -> Tensor:
        low, high = self.box(x)
        stuck = ((g > 0) & (x >= high)) | ((g < 0) & (x <= low))
        flat = torch.where(stuck, 0, g).flatten(1)
        count = max(1, round(self.share * flat.shape[1]))
        size, at = flat.abs().topk(count, 1)
        size = size / size.sum(1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)
        step = torch.zeros_like(flat).scatter_(1, at, size * flat.gather(1, at).sign())
        return step.view_as(g) * per_row(radius, g)

    def sample(self, x: Tensor, radius: Radius, rng: Rng, rows: Tensor) -> Tensor:
        d = x[0].numel()
        # d of d + 1 exponentials over their sum are uniform in the simplex and its inside
        spacing = torch.log1p(-rng.uniform(rows, (d + 1,)).double()).neg_().clamp_min_(1e-12)
        share = spacing[:, :d] / spacing.sum(1, keepdim=True)
        noise = (share * rng.signs(rows, (d,))).to(x)
        return self.project(x + noise.view_as(x) * per_row(radius, x), x, radius)


@dataclass(frozen=True, eq=False)
class L0(LpBall):
    """How many features are changed, by however much: every element of an input counts, so a colour pixel counts up to three.

    A radius means its whole part. `project` keeps the changes whose loss would cost the most distance to the point that
    was asked for (the first of equals). `steepest` changes the features where the slope times the way to the box's wall is
    largest, up to the wall. Where the box is open, as far as the largest magnitude of the row's features, and at least 1.
    """

    name: ClassVar[str] = "l0"
    unit: ClassVar[str] = "features"
    order: ClassVar[float] = 0.0

    def within(self, x: Tensor, radius: Radius) -> Projector:
        count = self._count(x, radius)

        def project(z: Tensor) -> Tensor:
            clipped = self.clip(z)
            over = ((clipped != x).flatten(1).sum(1) > count).nonzero().flatten()
            if len(over):
                origin, near = x[over], clipped[over]
                # the squared distance that leaving a feature unchanged would add
                gain = (near.double() - origin.double()) * (2 * z[over].double() - origin.double() - near.double())
                kept = largest(gain.flatten(1), count[over]).view_as(near)
                clipped[over] = torch.where(kept, near, origin)
            return clipped

        return project

    def steepest(self, g: Tensor, x: Tensor, radius: Radius) -> Tensor:
        reach = self._reach(g, x)
        gain = g.flatten(1).abs().double() * reach
        kept = largest(gain, self._count(x, radius)) & (gain > 0)
        return torch.where(kept, g.flatten(1).sign() * reach, 0).to(g).view_as(g)

    def sample(self, x: Tensor, radius: Radius, rng: Rng, rows: Tensor) -> Tensor:
        picked = largest(rng.uniform(rows, (x.shape[1:].numel(),)).to(x.device), self._count(x, radius)).view_as(x)
        far = x.flatten(1).abs().amax(1, keepdim=True).clamp_min(1).view(-1, *(1,) * (x.dim() - 1))
        low, high = (
            torch.where(side.isfinite(), side, x + far * way) for side, way in zip(self.box(x), (-1, 1), strict=True)
        )
        value = low + (high - low) * rng.uniform(rows, x.shape[1:]).to(x)
        return torch.where(picked, self.clip(value), x)

    def _count(self, x: Tensor, radius: Radius) -> Tensor:
        """Features that may change, int64 `[n]`."""
        wide = torch.as_tensor(radius, dtype=torch.float64, device=x.device).expand(len(x))
        return wide.clamp(0, x.shape[1:].numel()).floor().long()

    def _reach(self, change: Tensor, x: Tensor) -> Tensor:
        """`_room`, with an end to it, `[n, d]`."""
        room = self._room(change, x)
        return torch.where(room.isfinite(), room, x.flatten(1).abs().amax(1, keepdim=True).clamp_min(1))


def largest(values: Tensor, count: Tensor) -> Tensor:
    """bool `[n, d]`: the `count` `[n]` largest of each row, the first of equals."""
    order = values.argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(values.shape[1], device=values.device) < count[:, None]
    return torch.zeros_like(chosen).scatter_(1, order, chosen)


SPACES: Mapping[str, type[LpBall]] = {ball.name: ball for ball in (Linf, L2, L1, L0)}
"""Name of a threat -> the space it means."""
