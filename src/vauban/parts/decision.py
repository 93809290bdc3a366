"""What attacks that see nothing but decisions are made of: searches along a path, smooth directions, arcs.

Every search asks all rows of a batch at once and keeps a state of its own for each, so that a row ends where it would
end alone. Shares and angles are float64: their kernels round the left-over elements of a float32 batch differently.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vauban.core.rng import Rng
from vauban.parts.estimators import lengths, unit
from vauban.parts.projections import per_row
from vauban.parts.search import Grid

Hits = Callable[[Tensor], Tensor]
"""A place on each row's path, float64 `[m]` -> bool `[m]`: the goal is reached there."""


def bisect(hits: Hits, miss: Tensor, hit: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """`miss` and `hit` `[m]` brought `steps` halvings nearer to each other, one query each."""
    for _ in range(steps):
        middle = (miss + hit) / 2
        there = hits(middle)
        hit, miss = torch.where(there, middle, hit), torch.where(there, miss, middle)
    return miss, hit


def farthest(hits: Hits, first: Tensor, most: float, steps: int) -> Tensor:
    """The farthest hit found on a path from 0, which is a hit, to `most`, `[m]`: doubled until a miss, then halved.

    `first` `[m]` is where to look first: a guess near the answer saves queries. `steps` queries in all.
    """
    trial = first.clamp_max(most)
    hit, miss = torch.zeros_like(trial), torch.full_like(trial, most)
    missed = torch.zeros_like(trial, dtype=torch.bool)
    for _ in range(steps):
        there = hits(trial)
        hit, miss = torch.where(there, trial, hit), torch.where(there, miss, trial)
        missed |= ~there
        middle = (hit + miss) / 2
        trial = torch.where(missed, middle, torch.minimum(2 * trial, middle))
    return hit


def beside(way: Tensor, axis: Tensor) -> Tensor:
    """The part of `way` `[m, ...]` at right angles to `axis` `[m, ...]`, of length 1 (or zero)."""
    axis = unit(axis)
    return unit(way - per_row((way * axis).flatten(1).sum(1), way) * axis)


def arc(x: Tensor, change: Tensor, side: Tensor, angle: Tensor) -> Tensor:
    """The point on the circle with diameter `change` from `x`, seen from `x` at `angle` `[m]` towards `side`.

    `side` has length 1 and is at right angles to `change`. Wherever the boundary is flat, the circle meets it at the
    point nearest to `x` in this plane: Thales. Maho, Furon and Le Merrer 2021 (arXiv:2011.12807, section 4.2); Reza et
    al. 2023 (arXiv:2308.03163, section 3.2).
    """
    cos, sin = torch.cos(angle.double()), torch.sin(angle.double())
    along = per_row(cos * cos, x)
    return x + change * along + side * per_row(cos * sin * lengths(change).double(), x)


def cosines(side: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II), float64 `[frequency, place]`."""
    k = torch.arange(side, dtype=torch.float64)
    rows = torch.cos(math.pi / side * (k[None, :] + 0.5) * k[:, None]) * math.sqrt(2 / side)
    rows[0] /= math.sqrt(2)
    return rows


@dataclass(frozen=True, eq=False)
class Waves:
    """Cosine waves along the last two sides of an input, the slow ones favoured; single features where there is one.

    Models of pictures and series bend slowly from place to place, so that directions made of slow waves tell more
    about the boundary than white noise does (Li et al. 2020, arXiv:2005.14137; Rahmati et al. 2020, arXiv:2003.06468).
    Fast waves are drawn more rarely, never left out, so that every direction can be found in the end.
    """

    shape: tuple[int, ...]
    grid: Grid
    down: Tensor
    across: Tensor
    spread: Tensor
    """float64 `[d]`: standard deviation of each wave's weight, 1 for the slowest."""

    @classmethod
    def of(cls, x: Tensor, cut: float) -> Waves:
        """For inputs like `x` `[n, ...]`. Waves of more than `cut` of the fastest frequency are rarer; inf favours none."""
        shape = tuple(x.shape[1:])
        grid = Grid.of(shape)
        y, z = (torch.arange(side, dtype=torch.float64) / side for side in (grid.height, grid.width))
        pitch = torch.hypot(y[:, None], z[None, :]) if grid.height > 1 else torch.zeros(1, grid.width).double()
        spread = (1 + (pitch / cut).square()).rsqrt().expand(grid.channels, -1, -1).flatten()
        down, across = (cosines(side).to(x) for side in (grid.height, grid.width))
        return cls(shape, grid, down, across, spread.to(x.device))

    def compose(self, weights: Tensor) -> Tensor:
        """Sums of waves: `weights` `[m, k, d]` -> `[m, k, ...]`."""
        m, k, grid = len(weights), weights.shape[1], self.grid
        if grid.height == 1:
            return weights.reshape(m, k, *self.shape)
        # row by row, so that no row's rounding depends on how many there are
        part = torch.bmm(weights.reshape(m, -1, grid.width), self.across.expand(m, -1, -1))
        part = part.reshape(m, -1, grid.height, grid.width).transpose(2, 3).reshape(m, -1, grid.height)
        part = torch.bmm(part, self.down.expand(m, -1, -1))
        return part.reshape(m, -1, grid.width, grid.height).transpose(2, 3).reshape(m, k, *self.shape)

    def directions(self, count: int, rng: Rng, rows: Tensor) -> Tensor:
        """`[m, count, ...]` of length 1 and at right angles to each other; `count` is at most d.

        As many waves as directions, drawn by their spread without replacement (the largest of log(u) / spread^2,
        Efraimidis and Spirakis 2006) and mixed by a cosine transform with random signs. Answers to directions at right
        angles do not tell the same twice: the estimate of a normal from d of them has a cosine of 0.80 with the truth
        where d independent ones give 0.62.
        """
        keys = rng.uniform(rows, (len(self.spread),)).double().log() / self.spread.square()
        at = keys.topk(count, 1).indices
        mixed = cosines(count).to(self.across) * rng.signs(rows, (1, count)).to(self.across)
        weights = mixed.new_zeros(len(rows), count, len(self.spread))
        weights.scatter_(2, at[:, None, :].expand(-1, count, -1), mixed)
        return self.compose(weights)

    def noise(self, power: float, rng: Rng, rows: Tensor) -> Tensor:
        """Random waves `[m, ...]` of length 1, their weights normal with deviation spread^power; 0 is white noise."""
        weights = rng.normal(rows, (1, len(self.spread))).double() * self.spread**power
        return unit(self.compose(weights.to(self.across))[:, 0])
