"""SimBA: one coordinate after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import finite_radius
from vauban.attacks.evasion.queried import Run, pick, runs
from vauban.attacks.evasion.settings import above, at_least, at_most, one_of
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.rng import Rng
from vauban.parts.losses import LOSSES
from vauban.parts.projections import per_row
from vauban.parts.search import Grid, cosines
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class SimBA:
    """Moves the input along one direction of a fixed basis at a time, there or back, and keeps what helps.

    The directions are single features, or cosine waves from long to short (on a vector along its one side), in an order
    of each row's own. Once all were tried they are tried again, with shorter steps.

    Source: Guo, Gardner, You, Wilson and Weinberger 2019 (arXiv:1905.07484, algorithm 1).
    Departures: the published attack bounds nothing but the number of steps; here every step is projected onto ball and
    box, and its length is a share of the radius, measured in the space's own norm: in Linf twice the radius, so that a
    feature goes to one end of its range at once; once all waves were tried, single features are; a step that the projection would undo is not asked about; in a
    regression half the queries go to each direction.

    Args:
        queries: queries a row, at most.
        basis: `pixel` (single features) or `dct` (cosine waves).
        step: length of the first steps as a share of the radius; where None 2 in Linf, and otherwise 1 over the square root
            of a quarter of the number of features, or of the queries if fewer.
        decay: factor on the step after each time through the basis, above 0, at most 1.
        loss: `margin` (difference of logits), `ce` (cross-entropy) or `dlr`.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.simba",
        name="SimBA",
        summary="Tries one feature, or one wave over the input, at a time, seeing only the scores.",
        needs=Access.LABELS | Access.SCORES,
        spaces=("linf", "l2", "l1"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="Simple black-box adversarial attacks",
                where="Guo et al., ICML 2019, arXiv:1905.07484, algorithm 1",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"queries": 300}, "deep": {"queries": 10_000}}

    queries: int = 2000
    basis: str = "pixel"
    step: float | None = None
    decay: float = 0.8
    loss: str = "margin"

    def __post_init__(self) -> None:
        at_least("queries", self.queries, 2)
        one_of("basis", self.basis, BASES)
        above("step", 1.0 if self.step is None else self.step, 0)
        above("decay", self.decay, 0)
        at_most("decay", self.decay, 1)
        one_of("loss", self.loss, LOSSES)

    def price(self, classes: int | None) -> Price:
        """`queries`."""
        return Price(queries=self.queries)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        finite_radius(scene, self.card.name)
        basis = BASES[self.basis](Grid.of(scene.x.shape[1:]))
        for run in runs(scene, self.queries, self.loss):
            self._run(scene, run, basis, rng.child("simba", run.number))
        return Perturbed(scene.oracle.best.x)

    def first(self, scene: EvasionScene) -> float:
        """Length of the first steps."""
        if self.step is not None:
            return self.step * scene.radius
        few = max(1, min(scene.x[0].numel(), self.queries) // 4)
        return scene.radius * (2.0 if scene.space.name == "linf" else few**-0.5)

    def _run(self, scene: EvasionScene, run: Run, basis: Basis, rng: Rng) -> None:
        oracle, front, left = scene.oracle, run.front, run.left
        z, value = front.x, oracle.values(run.loss, front.x, front.rows)
        left, size = left - 1, torch.full_like(value, self.first(scene))
        # the place in the order of directions, twice: every direction is tried forwards, then backwards
        turn, order = torch.zeros_like(left), basis.order(rng, front.rows).to(left.device)
        while True:
            stay = oracle.open(front.rows) & (left > 0)
            z, value, left, size, turn, order = front.narrow(stay, z, value, left, size, turn, order)
            if not len(front):
                return
            way = basis.direction(order.gather(1, (turn // 2)[:, None])[:, 0], z)
            length = torch.linalg.vector_norm(way.flatten(1), ord=_ORDER[scene.space.name], dim=1)
            sign = 1 - 2 * (turn % 2)
            trial = front.project(z + way * per_row(size * sign / length, z))
            moved = (trial != z).flatten(1).any(1)
            some = moved.nonzero().flatten()
            found = value.clone()
            if len(some):
                found[some] = oracle.values(run.loss, trial[some], front.rows[some])
            better = found > value
            z, value, left = pick(better, trial, z), torch.where(better, found, value), left - moved.to(left)
            # after a success on to the next direction, otherwise back along this one, and then on
            turn = torch.where(better, turn // 2 * 2 + 2, turn + 1)
            over = (turn >= 2 * basis.count).nonzero().flatten()
            if len(over):
                turn[over], size[over] = 0, size[over] * self.decay
                order[over] = basis.again(rng, front.rows[over]).to(order)
                # a row that no direction moves is done
                left = torch.where(size > 1e-6 * scene.radius, left, 0)


_ORDER = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}


@dataclass(frozen=True)
class Basis(ABC):
    """Orthogonal directions of an input."""

    grid: Grid

    @property
    def count(self) -> int:
        return self.grid.channels * self.grid.height * self.grid.width

    @abstractmethod
    def order(self, rng: Rng, rows: Tensor) -> Tensor:
        """An order of the directions for each row, int64 `[m, count]`."""

    def again(self, rng: Rng, rows: Tensor) -> Tensor:
        """The order once all were tried."""
        return self.order(rng, rows)

    @abstractmethod
    def direction(self, which: Tensor, like: Tensor) -> Tensor:
        """Directions number `which` `[m]`, in the shape of `like` `[m, ...]`."""


class Pixels(Basis):
    """Single features, in any order."""

    def order(self, rng: Rng, rows: Tensor) -> Tensor:
        return _shuffled(rng, rows, self.count)

    def direction(self, which: Tensor, like: Tensor) -> Tensor:
        way = torch.zeros_like(like).flatten(1)
        way[torch.arange(len(way), device=way.device), which] = 1
        return way.view_as(like)


class Waves(Basis):
    """Cosine waves over height and width of one channel; long ones come first, those of about one length at random.

    Once all were tried, single features follow (as numbers from `count` on): in Linf and L1, waves alone can stop short
    of an optimum at a corner.
    """

    def again(self, rng: Rng, rows: Tensor) -> Tensor:
        return _shuffled(rng, rows, self.count) + self.count

    def order(self, rng: Rng, rows: Tensor) -> Tensor:
        grid = self.grid
        down, across = torch.arange(grid.height)[:, None], torch.arange(grid.width)[None, :]
        length = torch.maximum(down, across).expand(grid.channels, -1, -1).flatten().to(rows.device)
        return (length + rng.uniform(rows, (self.count,))).argsort(dim=1, stable=True)

    def direction(self, which: Tensor, like: Tensor) -> Tensor:
        grid, single = self.grid, which >= self.count
        pixels = Pixels(grid).direction(which % self.count, like)
        which = which % self.count
        area = grid.height * grid.width
        channel, place = which // area, which % area
        down = cosines(grid.height).to(like)[place // grid.width]
        across = cosines(grid.width).to(like)[place % grid.width]
        wave = torch.zeros_like(grid.view(like))
        wave[torch.arange(len(wave), device=wave.device), channel] = down[:, :, None] * across[:, None, :]
        return pick(single, pixels, wave.view_as(like))


def _shuffled(rng: Rng, rows: Tensor, count: int) -> Tensor:
    return rng.uniform(rows, (count,)).argsort(dim=1, stable=True)


BASES: Mapping[str, type[Basis]] = {"pixel": Pixels, "dct": Waves}
