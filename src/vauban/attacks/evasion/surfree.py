"""SurFree: turning about the input in random planes, without any estimate of a normal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.settings import above, at_least, at_most
from vauban.attacks.evasion.walk import LARGEST, Walk
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.rng import Rng
from vauban.parts.decision import arc, beside, farthest
from vauban.parts.projections import per_row
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

TURNS = 5
"""Queries of the search along an arc whose side is known."""
FINISH = 6
"""Halvings of the last descent."""


@dataclass(frozen=True, kw_only=True)
class SurFree:
    """Turns the change towards random directions, a little to either side, and goes as far as the decision allows.

    Labels only, and strong on few queries: no probes are spent on the boundary's normal. Each try takes a smooth random
    direction at right angles to the change and to the last few directions, looks a certain angle to one side, then to
    the other, and where one of them still reaches the goal searches for the end of the arc.

    Source: Maho, Furon and Le Merrer 2021 (arXiv:2011.12807, algorithm 1).
    Departures: directions are smooth by the spread of their waves instead of a cosine transform cut at a share; the
    search along the arc doubles before it halves and begins with the angle that was asked about, so that its length is
    the same for all; one angle to each side is tried instead of several, and the angle follows each row's own success;
    the change is brought down to the boundary at the end; the start is the nearest of several.

    Args:
        queries: queries a row, at most.
        starts: directions tried for a start, at most.
        angle: the first angle tried to either side, in degrees.
        apart: earlier directions that a new one is at right angles to, at most.
        patience: the angle shrinks by this factor after a direction that helps to neither side, and grows after one
            that does.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.surfree",
        name="SurFree",
        summary="Turns a wrong answer's input towards the clean one in random planes, seeing only answers; quick.",
        needs=Access.LABELS,
        spaces=("l2",),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="SurFree: a fast surrogate-free black-box attack",
                where="Maho, Furon, Le Merrer, CVPR 2021, arXiv:2011.12807, algorithm 1",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"queries": 300}, "deep": {"queries": 10_000}}

    queries: int = 2000
    starts: int = 60
    angle: float = 20.0
    apart: int = 50
    patience: float = 0.95

    def __post_init__(self) -> None:
        at_least("queries", self.queries, 50)
        at_least("starts", self.starts, 1)
        above("angle", self.angle, 0)
        at_most("angle", self.angle, 89)
        at_least("apart", self.apart, 0)
        above("patience", self.patience, 0)
        at_most("patience", self.patience, 1)

    def price(self, classes: int | None) -> Price:
        """`queries`."""
        return Price(queries=self.queries)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]`: within the radius, or the nearest success found where it is infinite."""
        walk = _Planes(scene, self, rng.child("surfree"))
        if walk.begin(self.starts):
            while walk.turn():
                pass
        return Perturbed(scene.oracle.best.x)


class _Planes(Walk):
    def __init__(self, scene: EvasionScene, plan: SurFree, rng: Rng) -> None:
        super().__init__(scene, plan.queries, rng)
        self.plan = plan
        first = math.radians(plan.angle)
        self.angle = torch.full((len(scene.x),), first, dtype=torch.float64, device=scene.x.device)
        # by the size of a row alone, for a row's result must not depend on how many there are
        self.room = max(0, min(plan.apart, self.d - 2, LARGEST // (4 * self.d)))
        self.recent = scene.x.new_zeros(len(scene.x), self.room, self.d)
        self.number = 0

    def turn(self) -> bool:
        """One direction. False once no row can afford another."""
        short = (self.left() < 2 + TURNS + FINISH).nonzero().flatten()
        if len(short):
            self._finish(short)
        self.keep(2 + TURNS + FINISH)
        if not len(self.front):
            return False
        x, rows, change = self.front.x, self.front.rows, self.z - self.front.x
        side = self._direction(change)
        angle = self.angle[rows]
        at = lambda way, angle: self.clip(arc(x, change, way, angle))  # noqa: E731
        right = self.ask(at(side, angle))
        other = (~right).nonzero().flatten()
        left = torch.zeros_like(right)
        left[other] = self.ask(at(-side, angle)[other], rows[other])
        side = torch.where(per_row(left, x).bool(), -side, side)
        works = (right | left).nonzero().flatten()
        self.angle[rows] = (angle * torch.where(right | left, 1 / self.plan.patience, self.plan.patience)).clamp(
            1e-3, math.radians(60)
        )
        if len(works):
            self._follow(works, side, angle, change)
        return True

    def _follow(self, works: Tensor, side: Tensor, angle: Tensor, change: Tensor) -> None:
        """Along the arc of the rows at places `works` as far as the decision allows."""
        x, rows, side, change = self.front.x[works], self.front.rows[works], side[works], change[works]
        at = lambda angle: self.clip(arc(x, change, side, angle))  # noqa: E731
        # known to reach the goal at `angle`: what lies beyond is searched from there
        known = angle[works]
        more = farthest(lambda extra: self.ask(at(known + extra), rows), known / 2, math.pi / 4, TURNS)
        there = at(known + more)
        nearer = self.ways.size(there - x) < self.ways.size(change)
        self.z = self.z.index_copy(0, works, torch.where(per_row(nearer, x).bool(), there, self.z[works]))

    def _direction(self, change: Tensor) -> Tensor:
        """Smooth, random, at right angles to the change and to the latest directions; kept for the next."""
        rows = self.front.rows
        way = self.waves.noise(1.0, self.rng, rows).to(change)
        if not self.room:
            return beside(way, change)
        # those before are almost at right angles to each other, so that all can be taken off at once
        earlier = self.recent[rows]
        part = torch.bmm(torch.bmm(way.flatten(1)[:, None], earlier.transpose(1, 2)), earlier)
        way = beside(way - part.view_as(way), change)
        self.recent[rows, self.number % self.room] = way.flatten(1)
        self.number += 1
        return way

    def _finish(self, short: Tensor) -> None:
        """The last descent of rows near the end of their budget."""
        can = short[self.left()[short] >= FINISH]
        if len(can):
            self.settle(self.z, can, FINISH, miss=0.9)
