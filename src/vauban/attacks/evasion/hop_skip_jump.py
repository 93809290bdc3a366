"""HopSkipJump: walking along the decision boundary with labels alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.settings import above, at_least
from vauban.attacks.evasion.walk import CENTRE, REACH, Walk, growth
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.rng import Rng
from vauban.parts.decision import arc, beside, farthest
from vauban.parts.estimators import unit
from vauban.parts.projections import per_row
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

JUMPS = 12
"""Step sizes tried in a jump, at most (Linf)."""
HALVINGS = 10
"""Halvings on the way down from a jump (Linf)."""
TURNS = 8
"""Queries of the search along an arc (L2)."""
FINISH = 6
"""Halvings of the last descent."""
FEWEST = 8
"""Probes below which an estimate is not worth making."""


@dataclass(frozen=True, kw_only=True)
class HopSkipJump:
    """Finds a point beyond the boundary, then walks along the boundary to the point nearest to the input.

    Needs labels only. Each round estimates the boundary's normal from random probes, moves along it, and searches for
    the boundary anew. Where the goal lies on several sides, a walk stays on the side of its start. All rows go through
    a round together, but each has its own points, probes, step and count of queries. With a finite radius a row ends
    as soon as it is within it.

    Source: Chen, Jordan and Wainwright 2020 (arXiv:1904.02144, algorithms 1 and 2).
    Departures: a row ends at its own budget; the start is the nearest of several, among donors, smooth noise and white
    noise; probes are smooth where the shape has two sides (QEBA, arXiv:2005.14137), at right angles to each other, and
    centred on the boundary where the box cuts them short. In L2 they are also at right angles to the change so far, and
    the jump and its way down are one search along an arc (CGBA, arXiv:2308.03163, section 3.2), which can only come
    nearer; in Linf the jump is the paper's, is kept only if it comes nearer, and each estimate is added to those before
    it, for the boundary bends little from one round to the next.

    Args:
        queries: queries a row, at most.
        probes: of the first estimate; grows with the square root of the rounds.
        starts: directions tried for a start, at most.
        gamma: scale of the probes' distance; larger suits rougher boundaries.
        memory: weight of earlier estimates of the normal in Linf; 0 is the published attack.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.hop_skip_jump",
        name="HopSkipJump",
        summary="Walks along the border of the model's decision, seeing nothing but its final answers.",
        needs=Access.LABELS,
        spaces=("linf", "l2"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="HopSkipJumpAttack: a query-efficient decision-based attack",
                where="Chen, Jordan, Wainwright, IEEE S&P 2020, arXiv:1904.02144",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"queries": 400, "probes": 20},
        "deep": {"queries": 10_000},
    }

    queries: int = 2000
    probes: int = 30
    starts: int = 60
    gamma: float = 1.0
    memory: float = 1.0

    def __post_init__(self) -> None:
        at_least("queries", self.queries, 100)
        at_least("probes", self.probes, FEWEST)
        at_least("starts", self.starts, 1)
        above("gamma", self.gamma, 0)
        at_least("memory", self.memory, 0)

    def price(self, classes: int | None) -> Price:
        """`queries`."""
        return Price(queries=self.queries)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]`: within the radius, or the nearest success found where it is infinite."""
        walk = WALKS[scene.space.name](scene, self, rng.child("hop_skip_jump"))
        if walk.begin(self.starts):
            while walk.hop():
                pass
        return Perturbed(scene.oracle.best.x)


class _Hop(Walk):
    """What both norms share: when to stop, and an estimate with more probes each round."""

    def __init__(self, scene: EvasionScene, plan: HopSkipJump, rng: Rng) -> None:
        super().__init__(scene, plan.queries, rng)
        self.plan, self.round = plan, 0

    def estimate(self, reserve: int, beside: bool) -> Tensor:
        self.round += 1
        wanted = max(FEWEST, growth(self.plan.probes, self.round))
        return self.normal(wanted, reserve, beside, self.rng.child(self.round), REACH * self.plan.gamma)


class _Arcs(_Hop):
    """L2: turn about the input, in the plane of the change so far and the estimated normal."""

    def __init__(self, scene: EvasionScene, plan: HopSkipJump, rng: Rng) -> None:
        super().__init__(scene, plan, rng)
        self.turn = torch.full((len(scene.x),), math.pi / 8, dtype=torch.float64, device=scene.x.device)

    def hop(self) -> bool:
        """One round. False once no row can afford another."""
        self.keep(FINISH)
        short = (self.left() < FEWEST + CENTRE + TURNS + FINISH).nonzero().flatten()
        if len(short):
            self.settle(self.z, short, FINISH, miss=0.9)
        self.keep(FEWEST + CENTRE + TURNS + FINISH)
        if not len(self.front):
            return False
        side = beside(self.estimate(TURNS + FINISH, beside=True), self.z - self.front.x)
        (side,) = self.keep(TURNS, side)
        if not len(self.front):
            return False
        x, rows, change = self.front.x, self.front.rows, self.z - self.front.x
        at = lambda angle: self.clip(arc(x, change, side, angle))  # noqa: E731
        angle = farthest(lambda angle: self.ask(at(angle)), self.turn[rows], math.pi / 2, TURNS)
        self.turn[rows] = torch.where(angle > 0, angle, self.turn[rows] / 4).clamp_min(1e-3)
        there = at(angle)
        nearer = (angle > 0) & (self.ways.size(there - x) < self.ways.size(change))
        self.z = torch.where(per_row(nearer, x).bool(), there, self.z)
        return True


class _Jumps(_Hop):
    """Linf: jump along the signs of the estimated normal, and come down by halving."""

    def __init__(self, scene: EvasionScene, plan: HopSkipJump, rng: Rng) -> None:
        super().__init__(scene, plan, rng)
        self.heading = torch.zeros_like(scene.x)

    def hop(self) -> bool:
        """One round: estimate, jump, come down. False once no row can afford another."""
        self.keep(FEWEST + CENTRE + JUMPS + HALVINGS)
        if not len(self.front):
            return False
        estimate = self.estimate(JUMPS + HALVINGS, beside=False)
        (estimate,) = self.keep(JUMPS + HALVINGS, estimate)
        if not len(self.front):
            return False
        rows = self.front.rows
        normal = unit(unit(estimate) + self.plan.memory * self.heading[rows])
        self.heading[rows] = normal
        far = self._jump(normal)
        (far,) = self.keep(HALVINGS, far)
        if not len(self.front):
            return False
        down = self.settle(far, torch.arange(len(far), device=far.device), HALVINGS)
        nearer = self.ways.size(down - self.front.x) < self.ways.size(self.z - self.front.x)
        self.z = torch.where(per_row(nearer, self.z).bool(), down, self.z)
        return True

    def _jump(self, normal: Tensor) -> Tensor:
        """Points in the goal: along the normal as far as the paper says, or half as far until there."""
        step, far = self.ways.direction(normal), self.z
        size = self.ways.size(self.z - self.front.x) / math.sqrt(self.round)
        todo = torch.arange(len(size), device=size.device)
        for _ in range(JUMPS):
            trial = self.clip(self.z[todo] + per_row(size[todo], step) * step[todo])
            hit = self.ask(trial, self.front.rows[todo])
            far = far.index_copy(0, todo[hit], trial[hit])
            todo, size = todo[~hit], size / 2
            if not len(todo):
                break
        return far


WALKS: Mapping[str, type[_Arcs] | type[_Jumps]] = {"l2": _Arcs, "linf": _Jumps}
