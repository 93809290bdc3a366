"""What Square tries, norm by norm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vauban.core.rng import Rng
from vauban.parts.projections import per_row
from vauban.parts.search import Grid, dipole

Frame = tuple[Tensor, ...]
"""What is known of every row from the start, each `[m, ...]`."""


@dataclass(frozen=True)
class Moves(ABC):
    """Where the search starts and what it tries, in one norm."""

    grid: Grid
    radius: float
    donors: Tensor | None = None
    """Other inputs `[k, ...]` whose content may be tried."""
    borrow: float = 0.0
    """Share of the proposals that try it."""

    @property
    def pool(self) -> int:
        """How many donors there are."""
        return 0 if self.donors is None else len(self.donors)

    exact: ClassVar[bool] = False
    """True where proposals are admissible as they are; otherwise they have to be projected."""

    def frame(self, x: Tensor, project: Callable[[Tensor], Tensor]) -> Frame:
        """What steps need to know of each row besides its input."""
        return ()

    @abstractmethod
    def start(self, x: Tensor, rng: Rng, rows: Tensor) -> Tensor:
        """The first point of each row, to be projected."""

    @abstractmethod
    def step(
        self, z: Tensor, x: Tensor, frame: Frame, share: float, step: int, scale: Tensor, rng: Rng, rows: Tensor
    ) -> Tensor:
        """A proposal for each row: `z` is its best point, `scale` `[m]` the length of its refining steps."""

    def refines(self, step: int) -> bool:
        """Whether that step is one whose length adapts."""
        return False


class LinfMoves(Moves):
    """Windows moved to one corner of the ball, channel by channel, or as far as that goes towards another input."""

    exact: ClassVar[bool] = True

    def frame(self, x: Tensor, project: Callable[[Tensor], Tensor]) -> Frame:
        """The lowest and the highest admissible value of every coordinate."""
        return self.grid.view(project(x - self.radius)), self.grid.view(project(x + self.radius))

    def start(self, x: Tensor, rng: Rng, rows: Tensor) -> Tensor:
        signs = rng.signs(rows, (self.grid.channels, 1, self.grid.width)).to(x)
        return (self.grid.view(x) + self.radius * signs).view_as(x)

    def step(
        self, z: Tensor, x: Tensor, frame: Frame, share: float, step: int, scale: Tensor, rng: Rng, rows: Tensor
    ) -> Tensor:
        grid, sides = self.grid, self.grid.sides(share)
        # one draw for all that a row needs: top, left, whether to borrow, from whom, and a sign a channel
        draws = rng.uniform(rows, (4 + grid.channels,))
        high, wide = grid.height - sides[0] + 1, grid.width - sides[1] + 1
        # windows are small most of the time: only what is in them is looked at
        cells = grid.cells(sides, (_floor(draws[:, 0], high), _floor(draws[:, 1], wide)))
        spot = cells[:, None, :].expand(-1, grid.channels, -1)
        now, low, top = (_flat(part).gather(2, spot) for part in (grid.view(z), *frame))
        up = (draws[:, 4:] < 0.5)[:, :, None]
        fill = torch.where(up, top, low)
        lent = draws[:, 2] < (self.borrow if self.pool else 0.0)
        some = lent.nonzero().flatten()
        if len(some):
            clean = _flat(grid.view(x)).gather(2, spot)[some]
            gap = self._lent(_floor(draws[some, 3], self.pool), cells[some], clean) - clean
            there = torch.where(gap < -self.radius / 8, low[some], now[some])
            fill[some] = torch.where(gap > self.radius / 8, top[some], there)
        idle = (fill == now).flatten(1).all(1).nonzero().flatten()
        if len(idle):  # a query would teach nothing
            fill[idle] = _turned(up[idle] ^ ~lent[idle, None, None], now[idle], low[idle], top[idle])
        return _flat(grid.view(z)).scatter(2, spot, fill).view_as(z)

    def _lent(self, who: Tensor, cells: Tensor, like: Tensor) -> Tensor:
        """What donors number `who` `[m]` have at the places `cells` `[m, k]`, `[m, channels, k]`."""
        assert self.donors is not None, "asked only where there are donors"
        pool = _flat(self.grid.view(self.donors))
        channels = torch.arange(self.grid.channels, device=pool.device)[None, :, None]
        return pool[who.to(pool.device)[:, None, None], channels, cells.to(pool.device)[:, None, :]].to(like)


def _flat(x: Tensor) -> Tensor:
    """`[m, channels, height, width]` as `[m, channels, places]`."""
    return x.flatten(2)


def _floor(draw: Tensor, high: int) -> Tensor:
    """Whole numbers in [0, high) from numbers in [0, 1)."""
    return (draw.double() * high).to(torch.int64)


def _turned(up: Tensor, now: Tensor, low: Tensor, top: Tensor) -> Tensor:
    """Windows moved `up`, or the other way where that changes nothing."""
    fill = torch.where(up, top, low)
    idle = (fill == now).flatten(1).all(1)[:, None, None]
    return torch.where(idle, torch.where(up, low, top), fill)


class L2Moves(Moves):
    """Mass carried from one window to another in the shape of two opposite bumps; between them, small normal steps."""

    def start(self, x: Tensor, rng: Rng, rows: Tensor) -> Tensor:
        grid = self.grid
        high, wide = max(1, grid.height // 5), max(1, grid.width // 5)
        down, across = -(-grid.height // high), -(-grid.width // wide)
        signs = rng.signs(rows, (grid.channels, down, across)).to(x)
        tiles = dipole(high, wide).to(x).repeat(down, across)
        change = signs.repeat_interleave(high, 2).repeat_interleave(wide, 3) * tiles
        return self._outwards(change[:, :, : grid.height, : grid.width].reshape_as(x), x)

    def step(
        self, z: Tensor, x: Tensor, frame: Frame, share: float, step: int, scale: Tensor, rng: Rng, rows: Tensor
    ) -> Tensor:
        change = self.grid.view(z - x)
        # now and then everywhere: where the margin has an edge (two other classes level), single features get stuck on it
        share = 1.0 if step % 8 == 0 else share
        moved = (self._refine if self.refines(step) else self._carry)(change, share, scale, rng, rows)
        return self._outwards(moved.reshape_as(x), x)

    def refines(self, step: int) -> bool:
        return step % 2 == 0

    def _refine(self, change: Tensor, share: float, scale: Tensor, rng: Rng, rows: Tensor) -> Tensor:
        sides = self.grid.sides(share)
        mask = self.grid.mask(sides, self.grid.window(sides, rng, rows))
        noise = rng.normal(rows, change.shape[1:]).to(change) * mask
        length = noise.flatten(1).norm(dim=1).clamp_min(1e-12)
        return change + noise * per_row(self.radius * scale / length, noise)

    def _carry(self, change: Tensor, share: float, scale: Tensor, rng: Rng, rows: Tensor) -> Tensor:
        grid = self.grid
        sides = grid.sides(share)
        to, off = grid.window(sides, rng, rows), grid.window(sides, rng, rows)
        into, out_of = grid.mask(sides, to), grid.mask(sides, off)
        pattern = dipole(*sides).to(change).expand(len(change), -1, -1)
        if sides[0] == sides[1]:
            turned = rng.integers(rows, 2)[:, :, None] == 0
            pattern = torch.where(turned, pattern, pattern.transpose(1, 2))
        signs = rng.signs(rows, (grid.channels, 1, 1)).to(change)
        here = change * into
        direction = signs * grid.placed(pattern, to) + here / self._lengths(here).clamp_min(1e-12)
        direction = direction / self._lengths(direction).clamp_min(1e-12)
        mass = self._mass(change, into | out_of)
        return change * ~(into | out_of) + direction * mass

    def _mass(self, change: Tensor, windows: Tensor) -> Tensor:
        """Length that the windows may have together, and the radius leaves unused, `[m, channels, 1, 1]`."""
        unused = (self.radius**2 - change.square().sum((1, 2, 3), keepdim=True)).clamp_min(0)
        return (self._lengths(change * windows).square() + unused / self.grid.channels).sqrt()

    def _lengths(self, part: Tensor) -> Tensor:
        """Norm of each channel, `[m, channels, 1, 1]`."""
        return part.square().sum((2, 3), keepdim=True).sqrt()

    def _outwards(self, change: Tensor, x: Tensor) -> Tensor:
        length = change.flatten(1).norm(dim=1).clamp_min(1e-12)
        return x + change * per_row(self.radius / length, x)


class L1Moves(L2Moves):
    """As in L2, with absolute sums for lengths; no normal steps, whose mass the projection would take away again."""

    def refines(self, step: int) -> bool:
        return False

    def _mass(self, change: Tensor, windows: Tensor) -> Tensor:
        unused = (self.radius - change.abs().sum((1, 2, 3), keepdim=True)).clamp_min(0)
        return self._lengths(change * windows) + unused / self.grid.channels

    def _lengths(self, part: Tensor) -> Tensor:
        return part.abs().sum((2, 3), keepdim=True)

    def _outwards(self, change: Tensor, x: Tensor) -> Tensor:
        length = change.flatten(1).abs().sum(1).clamp_min(1e-12)
        return x + change * per_row(self.radius / length, x)


MOVES: Mapping[str, type[Moves]] = {"linf": LinfMoves, "l2": L2Moves, "l1": L1Moves}
