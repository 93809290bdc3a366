"""Boundary: a random walk along the decision boundary, a little nearer at every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from vauban.attacks.evasion.settings import above, at_least
from vauban.attacks.evasion.walk import Walk
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.rng import Rng
from vauban.parts.decision import beside
from vauban.parts.estimators import lengths, unit
from vauban.parts.projections import per_row
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

SIDEWAYS = 1.1
"""The step to the side grows by this factor after a success and shrinks by it after a failure: every second succeeds."""
INWARDS = 1.5
"""So for the step towards the input, shrinking by its fourth root: every fifth succeeds."""
SMALLEST = 1e-4
"""Shortest steps, as a share of the distance: below, rounding decides."""


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """Steps at random to the side and a little towards the input, and keeps what still reaches the goal.

    Labels only; simple, and the slowest of its kind: it learns nothing about the boundary but how long its steps may be.
    Two queries a step: the step to the side, on the sphere about the input, and where it holds, the one towards the
    input.

    Source: Brendel, Rauber and Bethge 2018 (arXiv:1712.04248, algorithm 1, section 2.4).
    Departures: step lengths follow each row's every answer instead of a success rate over a window; random steps favour
    slow waves where the shape has two sides; the start is the nearest of several and lies on the boundary.

    Args:
        queries: queries a row, at most; many.
        starts: directions tried for a start, at most.
        sideways: first step to the side, as a share of the distance.
        inwards: first step towards the input, as a share of the distance.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.boundary",
        name="Boundary",
        summary="Walks at random along the border of the model's decision and keeps what comes nearer; slow.",
        needs=Access.LABELS,
        spaces=("l2",),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="Decision-based adversarial attacks: reliable attacks against black-box machine learning models",
                where="Brendel, Rauber, Bethge, ICLR 2018, arXiv:1712.04248, algorithm 1",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"queries": 500}, "deep": {"queries": 25_000}}

    queries: int = 5000
    starts: int = 60
    sideways: float = 0.1
    inwards: float = 0.02

    def __post_init__(self) -> None:
        at_least("queries", self.queries, 50)
        at_least("starts", self.starts, 1)
        above("sideways", self.sideways, 0)
        above("inwards", self.inwards, 0)

    def price(self, classes: int | None) -> Price:
        """`queries`."""
        return Price(queries=self.queries)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]`: within the radius, or the nearest success found where it is infinite."""
        walk = _Random(scene, self, rng.child("boundary"))
        if walk.begin(self.starts):
            while walk.step():
                pass
        return Perturbed(scene.oracle.best.x)


class _Random(Walk):
    def __init__(self, scene: EvasionScene, plan: Boundary, rng: Rng) -> None:
        super().__init__(scene, plan.queries, rng)
        full = torch.ones(len(scene.x), dtype=torch.float64, device=scene.x.device)
        self.sideways, self.inwards = full * plan.sideways, full * plan.inwards

    def step(self) -> bool:
        """One step of every row. False once no row can afford another."""
        self.keep(2)
        if not len(self.front):
            return False
        x, rows, change = self.front.x, self.front.rows, self.z - self.front.x
        size = lengths(change)
        noise = beside(self.waves.noise(1.0, self.rng, rows).to(x), change)
        way = unit(unit(change) + noise * per_row(self.sideways[rows], x))
        round_about = self.clip(x + way * per_row(size, x))
        held = self.ask(round_about)
        self.sideways[rows] = (self.sideways[rows] * torch.where(held, SIDEWAYS, 1 / SIDEWAYS)).clamp(SMALLEST, 1.0)
        at = held.nonzero().flatten()
        if len(at):
            share = per_row(1 - self.inwards[rows[at]], x)
            nearer = x[at] + (round_about[at] - x[at]) * share
            hit = self.ask(nearer, rows[at])
            factor = torch.where(hit, INWARDS, INWARDS**-0.25)
            self.inwards[rows[at]] = (self.inwards[rows[at]] * factor).clamp(SMALLEST, 0.5)
            kept = hit & (lengths(nearer - x[at]) < size[at])
            self.z = self.z.index_copy(0, at[kept], nearer[kept])
        return True
