"""Square: random search in windows of shrinking size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front, finite_radius
from vauban.attacks.evasion.settings import above, at_least, one_of
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.parts.losses import LOSSES
from vauban.parts.projections import per_row
from vauban.parts.schedules import square_share
from vauban.parts.search import Grid, dipole
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class Square:
    """Changes a window at a random place to extreme values, and keeps the change if the loss grew: no gradients.

    One query a row and step. Every row has its own windows and signs, so that its result does not depend on its
    neighbours. Windows lie anywhere, the last row and column included; on a vector a window is a stretch of features.

    Source: Andriushchenko, Croce, Flammarion and Hein 2020 (arXiv:1912.00049; Linf: algorithm 2, L2: algorithm 3).
    Departures: a Linf proposal that would change nothing is turned round; in L2 every second proposal is a normal
    step inside the window, of a length that adapts to a success rate of one in five, for the paper's moves alone
    cannot approach an optimum whose weight is spread unevenly; in a regression half the queries go to each direction.

    Args:
        queries: queries a row, at most.
        share: part of the input that the first windows cover.
        loss: `margin` (difference of logits), `ce` (cross-entropy) or `dlr`.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.square",
        name="Square",
        summary="Tries random blocks of change and keeps those that help, seeing only the scores.",
        needs=Access.LABELS | Access.SCORES,
        spaces=("linf", "l2"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="Square Attack: a query-efficient black-box adversarial attack via random search",
                where="Andriushchenko et al., ECCV 2020, arXiv:1912.00049, algorithms 2 and 3",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"queries": 200}, "deep": {"queries": 5000}}

    queries: int = 1000
    share: float = 0.8
    loss: str = "margin"

    def __post_init__(self) -> None:
        at_least("queries", self.queries, 2)
        above("share", self.share, 0)
        at_least("1 - share", 1 - self.share, 0)
        one_of("loss", self.loss, LOSSES)

    def price(self, classes: int | None) -> Price:
        """`queries`."""
        return Price(queries=self.queries)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        radius = finite_radius(scene, self.card.name)
        moves = MOVES[scene.space.name](Grid.of(scene.x.shape[1:]), radius)
        sides = scene.oracle.goal.objectives(self.loss)
        for number, loss in enumerate(sides):
            self._run(scene, moves, loss, rng.child("square", number), self.queries // len(sides))
        return Perturbed(scene.oracle.best.x)

    def _run(self, scene: EvasionScene, moves: Moves, loss: Loss, rng: Rng, steps: int) -> None:
        front = Front(scene)
        if not len(front):
            return
        z = front.project(moves.start(front.x, rng, front.rows))
        value = scene.oracle.values(loss, z, front.rows)
        scale = torch.full_like(value, 0.5)
        for step in range(1, steps):
            z, value, scale = front.narrow(scene.oracle.open(front.rows), z, value, scale)
            if not len(front):
                return
            share = square_share(self.share, step, steps)
            trial = front.project(moves.step(z, front.x, share, step, scale, rng, front.rows))
            found = scene.oracle.values(loss, trial, front.rows)
            better = found > value
            z = torch.where(per_row(better, z).bool(), trial, z)
            value = torch.where(better, found, value)
            if moves.refines(step):
                scale = scale * torch.where(better, 1.5, 1.5**-0.25)


@dataclass(frozen=True)
class Moves(ABC):
    """Where the search starts and what it tries, in one norm. Proposals need not be admissible."""

    grid: Grid
    radius: float

    @abstractmethod
    def start(self, x: Tensor, rng: Rng, rows: Tensor) -> Tensor:
        """The first point of each row."""

    @abstractmethod
    def step(self, z: Tensor, x: Tensor, share: float, step: int, scale: Tensor, rng: Rng, rows: Tensor) -> Tensor:
        """A proposal for each row: `z` is its best point, `scale` `[m]` the length of its refining steps."""

    def refines(self, step: int) -> bool:
        """Whether that step is one whose length adapts."""
        return False


class LinfMoves(Moves):
    """Windows moved to one corner of the ball, channel by channel."""

    def start(self, x: Tensor, rng: Rng, rows: Tensor) -> Tensor:
        signs = rng.signs(rows, (self.grid.channels, 1, self.grid.width)).to(x)
        return (self.grid.view(x) + self.radius * signs).view_as(x)

    def step(self, z: Tensor, x: Tensor, share: float, step: int, scale: Tensor, rng: Rng, rows: Tensor) -> Tensor:
        sides = self.grid.sides(share)
        mask = self.grid.mask(sides, self.grid.window(sides, rng, rows))
        signs = rng.signs(rows, (self.grid.channels, 1, 1)).to(x)
        at, clean = self.grid.view(z), self.grid.view(x)
        # what already moved that way in every channel: a query would teach nothing
        idle = ((at - clean) * signs >= 0.99 * self.radius).logical_or(~mask).flatten(1).all(1)
        signs = torch.where(per_row(idle, signs).bool(), -signs, signs)
        return torch.where(mask, clean + self.radius * signs, at).view_as(z)


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

    def step(self, z: Tensor, x: Tensor, share: float, step: int, scale: Tensor, rng: Rng, rows: Tensor) -> Tensor:
        change = self.grid.view(z - x)
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
        direction = signs * grid.placed(pattern, to) + here / _lengths(here).clamp_min(1e-12)
        direction = direction / _lengths(direction).clamp_min(1e-12)
        unused = (self.radius**2 - change.square().sum((1, 2, 3), keepdim=True)).clamp_min(0)
        mass = _lengths(change * (into | out_of)).square() + unused / grid.channels
        return change * ~(into | out_of) + direction * mass.sqrt()

    def _outwards(self, change: Tensor, x: Tensor) -> Tensor:
        length = change.flatten(1).norm(dim=1).clamp_min(1e-12)
        return x + change * per_row(self.radius / length, x)


def _lengths(part: Tensor) -> Tensor:
    """Euclidean length of each channel, `[m, channels, 1, 1]`."""
    return part.square().sum((2, 3), keepdim=True).sqrt()


MOVES: Mapping[str, type[Moves]] = {"linf": LinfMoves, "l2": L2Moves}
