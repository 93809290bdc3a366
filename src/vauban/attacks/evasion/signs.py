"""What label-only attacks in Linf share: a sign for every feature, and how far these signs must be followed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vauban.attacks.evasion.walk import NEARER, SETTLE, Walk, largest
from vauban.core.attack import EvasionScene
from vauban.core.rng import Rng
from vauban.parts.decision import bisect, farthest
from vauban.parts.projections import per_row

SHRINK = 6
"""Queries that measure how much nearer the boundary came."""


class SignWalk(Walk):
    """All rows under way: `z` `[m, ...]` holds signs here, `radius` `[n]` how far they were seen to reach the goal."""

    def __init__(self, scene: EvasionScene, queries: int, rng: Rng) -> None:
        super().__init__(scene, queries, rng)
        self.z = torch.ones_like(self.front.x)
        self.radius = torch.full((len(scene.x),), torch.inf, dtype=torch.float64, device=scene.x.device)
        # less than a single feature can bring, more than rounding
        self.tiny = min(1e-3, 0.1 / self.d)

    def point(self, signs: Tensor, radius: Tensor, at: Tensor | None = None) -> Tensor:
        """That far along the signs, inside the box, for the rows at places `at` (all where None)."""
        x = self.front.x if at is None else self.front.x[at]
        return self.clip(x + signs * per_row(radius, x))

    def begin(self, starts: int) -> bool:
        """Find signs that reach the goal for every row, the nearest of several; False where no row has any."""
        for number in range(starts):
            self.keep(1 + SETTLE)
            if not len(self.front):
                return False
            rows, signs = self.front.rows, self._guess(number)
            reach = torch.minimum(self._reach(number), NEARER * self.radius[rows])
            hit = self.ask(self.point(signs, reach)).nonzero().flatten()
            if len(hit):
                self.z = self.z.index_copy(0, hit, signs[hit])
                self._lower(hit, reach[hit])
        self.front_with_radius()
        return len(self.front) > 0

    def front_with_radius(self) -> None:
        """Go on with the rows that have a start."""
        (self.z,) = self.front.narrow(self.radius[self.front.rows].isfinite(), self.z)

    def _guess(self, number: int) -> Tensor:
        """All up, all down, then those of donors and of smooth noise in turn."""
        x, rows, pool = self.front.x, self.front.rows, self.scene.donors
        if number < 2:
            return torch.full_like(x, 1.0 - 2.0 * number)
        if number % 2 and pool is not None and len(pool):
            way = pool.to(x)[self.rng.integers(rows, len(pool))[:, 0].to(pool.device)] - x
        else:
            way = self.waves.noise(2.0, self.rng, rows).to(x)
        return torch.where(way >= 0, 1.0, -1.0).to(x)

    def _reach(self, number: int) -> Tensor:
        """How far to look for a start: the width of the box, or farther each time where there is none, `[m]`."""
        x, space = self.front.x, self.scene.space
        wide = float((space.high - space.low).max())
        grown = largest(x).double().clamp_min(1.0) * 2.0 ** min(number / 3 - 3, 10)
        return torch.full_like(grown, wide) if wide < float("inf") else grown

    def _lower(self, at: Tensor, reach: Tensor) -> None:
        """Bring the radius of the rows at places `at` from `reach`, where they reach the goal, down to the boundary."""
        signs, rows = self.z[at], self.front.rows[at]
        hits = lambda radius: self.ask(self.point(signs, radius, at), rows)  # noqa: E731
        self.radius[rows] = bisect(hits, torch.zeros_like(reach), reach, SETTLE)[1]

    def shrink(self, at: Tensor) -> None:
        """As `_lower`, from the radius itself, for rows whose boundary came nearer by an unknown little."""
        signs, rows = self.z[at], self.front.rows[at]
        radius = self.radius[rows]
        hits = lambda less: self.ask(self.point(signs, radius * (1 - less), at), rows)  # noqa: E731
        self.radius[rows] = radius * (1 - farthest(hits, torch.full_like(radius, 1 / 32), 1.0, SHRINK))

    def flipped(self, start: int, stop: int) -> Tensor:
        """The signs with those of features `start` to `stop` turned round."""
        signs = self.z.clone()
        signs.flatten(1)[:, start:stop].neg_()
        return signs


def halves(d: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Both halves of every block of features, coarse to fine and then again, without end.

    Blocks are those of RayS: 2, 4, 8, ... of nearly equal size, down to single features; empty halves are left in.
    """
    level = 1
    while True:
        count = 2**level
        for j in range(0, count, 2):
            a, b, c = (i * d // count for i in (j, j + 1, j + 2))
            if c > a:
                yield (a, b), (b, c)
        level = 1 if count >= d else level + 1
