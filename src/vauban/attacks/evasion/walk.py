"""What label-only attacks share: a budget, a start beyond the boundary, probes of the boundary around a point."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front
from vauban.core.attack import EvasionScene
from vauban.core.oracle import Oracle
from vauban.core.rng import Rng
from vauban.parts.decision import Waves, bisect
from vauban.parts.estimators import boundary_normal, lengths, unit
from vauban.parts.projections import per_row

CUT = 0.3
"""Waves above this share of the fastest frequency are drawn more rarely."""
SETTLE = 6
"""Halvings after a start is found."""
CENTRE = 5
"""Halvings that bring the middle of a row's probes onto the boundary."""
NEARER = 0.97
"""A new start is tried at this share of the distance of the best one so far."""
REACH = 0.1
"""Distance of the probes as a share of the distance from the input."""
LARGEST = 2**23
"""Numbers held at once in an estimate: rows go in groups, with the same result."""


@dataclass(frozen=True)
class Geometry:
    """What differs between the norms."""

    size: Callable[[Tensor], Tensor]
    """Norm of each row, `[m]`."""
    towards: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(clean, far point, share of the way `[m]`) -> the point that near, `[m, ...]`."""
    direction: Callable[[Tensor], Tensor]
    """The step of norm 1 that goes farthest along a slope."""


def largest(change: Tensor) -> Tensor:
    """Largest absolute coordinate of each row, `[m]`."""
    return change.flatten(1).abs().amax(1)


def _blend(x: Tensor, far: Tensor, share: Tensor) -> Tensor:
    return torch.lerp(x, far, per_row(share, x).expand_as(x))


def _clip_to(x: Tensor, far: Tensor, share: Tensor) -> Tensor:
    room = per_row(share.to(x) * largest(far - x), x)
    return torch.maximum(torch.minimum(far, x + room), x - room)


GEOMETRY: Mapping[str, Geometry] = {
    "l2": Geometry(lengths, _blend, unit),
    "linf": Geometry(largest, _clip_to, torch.sign),
}


class Walk:
    """All rows under way: `z` `[m, ...]` on the goal's side of the boundary; `front` says which rows these are."""

    def __init__(self, scene: EvasionScene, queries: int, rng: Rng) -> None:
        self.scene, self.rng, self.queries = scene, rng, queries
        self.oracle: Oracle = scene.oracle
        self.front = Front(scene)
        self.spent_before = scene.oracle.spent.queries.clone()
        self.ways = GEOMETRY[scene.space.name]
        self.waves = Waves.of(scene.x, CUT)
        self.d = scene.x[0].numel() if len(scene.x) else 1
        self.z = self.front.x

    # Metering -------------------------------------------------------------------------------------------------------

    def left(self) -> Tensor:
        """Queries that each row may still make, `[m]`."""
        rows = self.front.rows
        used = self.oracle.spent.queries.to(rows.device)[rows] - self.spent_before.to(rows.device)[rows]
        return torch.minimum(self.oracle.left(rows), self.queries - used)

    def keep(self, queries: int, *state: Tensor) -> tuple[Tensor, ...]:
        """Go on with the rows that are open and can afford that many queries more."""
        stay = self.oracle.open(self.front.rows) & (self.left() >= queries)
        self.z, *state_left = self.front.narrow(stay, self.z, *state)
        return tuple(state_left)

    def ask(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """bool `[m]`: the goal is reached. Rows that were decided meanwhile cost nothing and are answered no."""
        rows = self.front.rows if rows is None else rows
        live = self.oracle.open(rows)
        if bool(live.all()):
            return self.oracle.reaches(points, rows) if len(rows) else live
        out = torch.zeros_like(live)
        if bool(live.any()):
            out[live] = self.oracle.reaches(points[live], rows[live])
        return out

    def clip(self, z: Tensor) -> Tensor:
        """Into the box."""
        return torch.clamp(z, self.scene.space.low.to(z), self.scene.space.high.to(z))

    # Starts ---------------------------------------------------------------------------------------------------------

    def begin(self, starts: int) -> bool:
        """Find the nearest of several starts on the boundary for every row; False where no row has any.

        Once a row has one, another direction costs one query: does it reach the goal a little nearer?
        """
        gap = torch.full((len(self.front),), torch.inf, device=self.front.x.device, dtype=self.front.x.dtype)
        for number in range(starts):
            (gap,) = self.keep(1 + SETTLE, gap)
            if not len(self.front):
                return False
            far = self._candidate(number, gap)
            size = self.ways.size(far - self.front.x)
            hit = (self.ask(far) & (size < gap)).nonzero().flatten()
            if len(hit):
                self.z = self.z.index_copy(0, hit, self.settle(far, hit, SETTLE))
                gap[hit] = self.ways.size(self.z - self.front.x)[hit]
        (self.z,) = self.front.narrow(gap.isfinite(), self.z)
        return len(self.front) > 0

    def settle(self, far: Tensor, at: Tensor, halvings: int, miss: float = 0.0) -> Tensor:
        """From the points `far` `[m, ...]` of the rows at places `at` down the way to the input, to the boundary."""
        x, far, rows = self.front.x[at], far[at], self.front.rows[at]
        low = torch.full((len(at),), miss, dtype=torch.float64, device=x.device)
        hits = lambda share: self.ask(self.ways.towards(x, far, share), rows)  # noqa: E731
        _, share = bisect(hits, low, torch.ones_like(low), halvings)
        # exactly where it was asked; an untouched end is the far point itself
        return torch.where(per_row(share < 1, x).bool(), self.ways.towards(x, far, share), far)

    def _candidate(self, number: int, gap: Tensor) -> Tensor:
        """Where to look for a start: donors and noise in turn, a little nearer than the best so far."""
        x, rows, pool = self.front.x, self.front.rows, self.scene.donors
        if number % 2 and pool is not None and len(pool):
            way = pool.to(x)[self.rng.integers(rows, len(pool))[:, 0].to(pool.device)] - x
            reach = self.ways.size(way)
            way = way / per_row(reach.clamp_min(1e-12), way)
        else:
            way = self.ways.direction(self.waves.noise(0.0 if number % 4 == 3 else 2.0, self.rng, rows).to(x))
            reach = self.ways.size(x).clamp_min(1.0) * 2.0 ** min(number / 3 - 3, 10)
        return self.along(way, torch.minimum(reach, NEARER * gap))

    def along(self, way: Tensor, reach: Tensor) -> Tensor:
        """The point that far along a direction of norm 1, made up for what the box takes away."""
        x, far = self.front.x, reach
        for _ in range(3):
            size = self.ways.size(self.clip(x + way * per_row(far, x)) - x)
            far = far * (reach / size.clamp_min(1e-12)).clamp(1.0, 4.0)
        return self.clip(x + way * per_row(far, x))

    # Probes ---------------------------------------------------------------------------------------------------------

    def normal(self, wanted: int, reserve: int, beside: bool, rng: Rng, reach: float = REACH) -> Tensor:
        """The direction into the goal at every row's point, `[m, ...]`, from at most `wanted` probes and CENTRE more.

        A row near the end of its budget uses only the first few of its probes and leaves `reserve` queries, so that
        another's budget does not matter. With `beside` all probes lie at right angles to the change so far: what is
        found is the way to improve it, and no answer is spent on what is known.
        """
        wanted = min(wanted, self.d)
        counts = (self.left() - reserve - CENTRE).clamp(0, wanted)
        size = max(1, LARGEST // (wanted * self.d))
        parts = torch.arange(len(self.z), device=self.z.device).split(size)
        return torch.cat([self._probe(part, counts[part], wanted, beside, rng, reach) for part in parts])

    def _probe(self, part: Tensor, counts: Tensor, wanted: int, beside: bool, rng: Rng, reach: float) -> Tensor:
        x, z, rows = self.front.x[part], self.z[part], self.front.rows[part]
        ways = self.waves.directions(wanted, rng, rows).to(x)
        axis = unit(z - x)
        if beside:
            ways = (
                ways - (ways * axis[:, None]).flatten(2).sum(2).view(*ways.shape[:2], *per_row_ones(x)) * axis[:, None]
            )
            ways = unit(ways.flatten(0, 1)).view_as(ways)
        rounding = 8 * torch.finfo(x.dtype).eps * lengths(z)
        away = torch.maximum(reach * lengths(z - x), rounding)
        points = self.clip(z[:, None] + ways * per_row(away, ways))
        middle = points.mean(1)
        # where the box cuts probes short, their middle leaves the boundary and most would answer alike
        hits = lambda shift: self.ask(self.clip(middle + axis * per_row(shift * away, x)), rows)  # noqa: E731
        side = torch.full((len(part),), 2.0, dtype=torch.float64, device=x.device)
        miss, hit = bisect(hits, -side, side, CENTRE)
        points = self.clip(points + (axis * per_row((miss + hit) / 2 * away, x))[:, None])
        asked = torch.arange(wanted, device=x.device)[None, :] < counts[:, None]
        reached = torch.zeros_like(asked)
        reached[asked] = self.ask(points[asked], rows.repeat_interleave(counts))
        return boundary_normal((points - z[:, None]) / per_row(away, ways), reached, asked)


def per_row_ones(x: Tensor) -> tuple[int, ...]:
    """The trailing shape that makes `[m, k]` broadcast against `[m, k, ...]`."""
    return (1,) * (x.dim() - 1)


def growth(first: int, number: int) -> int:
    """Probes of the `number`-th estimate: the square root of the number times the first (Chen et al., section IV)."""
    return int(first * math.sqrt(number))
