"""GeoDA: to the boundary along its normal, as if it were flat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from vauban.attacks.evasion.settings import at_least
from vauban.attacks.evasion.walk import CENTRE, Walk, growth
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.rng import Rng
from vauban.parts.estimators import unit
from vauban.parts.projections import per_row
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

STRETCHES = (1.0, 1.1, 1.3)
"""Distances along a new normal, as shares of the best so far, that are tried for a point beyond the boundary."""
HALVINGS = 10
"""Halvings of the way back."""
FEWEST = 8
"""Probes below which an estimate is not worth making."""


@dataclass(frozen=True, kw_only=True)
class GeoDA:
    """Estimates the normal of the boundary, and goes from the input along it until the decision changes.

    Near an input the boundary of a network is almost flat, and the nearest point of a plane lies along its normal.
    Labels only. Each round probes the boundary around the best point so far and goes from the input anew; in Linf along
    the signs of the normal, the nearest point of a plane there.

    Source: Rahmati, Moosavi-Dezfooli, Frossard and Dai 2020 (arXiv:2003.06468, algorithms 1 and 2).
    Departures: probes are at right angles to each other and favour slow waves where the paper cuts the fast ones off;
    their number grows with the square root of the rounds, where the paper spends a share of the whole budget that grows
    geometrically; an estimate is added to those before it; a round that ends farther away is undone; and the start is
    the nearest of several.

    Args:
        queries: queries a row, at most.
        probes: of the first estimate; grows with the square root of the rounds.
        starts: directions tried for a start, at most.
        memory: weight of the sum of earlier estimates; 0 is the published attack.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.geoda",
        name="GeoDA",
        summary="Takes the border of the model's decision for flat and goes straight towards it, seeing only answers.",
        needs=Access.LABELS,
        spaces=("linf", "l2"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="GeoDA: a geometric framework for black-box adversarial attacks",
                where="Rahmati, Moosavi-Dezfooli, Frossard, Dai, CVPR 2020, arXiv:2003.06468",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"queries": 400, "probes": 20},
        "deep": {"queries": 10_000},
    }

    queries: int = 2000
    probes: int = 40
    starts: int = 60
    memory: float = 0.8

    def __post_init__(self) -> None:
        at_least("queries", self.queries, 100)
        at_least("probes", self.probes, FEWEST)
        at_least("starts", self.starts, 1)
        at_least("memory", self.memory, 0)

    def price(self, classes: int | None) -> Price:
        """`queries`."""
        return Price(queries=self.queries)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]`: within the radius, or the nearest success found where it is infinite."""
        walk = _Rays(scene, self, rng.child("geoda"))
        if walk.begin(self.starts):
            while walk.round():
                pass
        return Perturbed(scene.oracle.best.x)


class _Rays(Walk):
    def __init__(self, scene: EvasionScene, plan: GeoDA, rng: Rng) -> None:
        super().__init__(scene, plan.queries, rng)
        self.plan, self.number = plan, 0
        self.heading = torch.zeros_like(scene.x)

    def round(self) -> bool:
        """One estimate and one ray. False once no row can afford another."""
        self.number += 1
        ray = len(STRETCHES) + HALVINGS
        self.keep(FEWEST + CENTRE + ray)
        if not len(self.front):
            return False
        wanted = max(FEWEST, growth(self.plan.probes, self.number))
        normal = self.normal(wanted, ray, False, self.rng.child(self.number))
        (normal,) = self.keep(ray, normal)
        if not len(self.front):
            return False
        rows = self.front.rows
        # an estimate's reliability grows with the square root of its probes
        heading = unit(normal) * min(wanted, self.d) ** 0.5 + self.plan.memory * self.heading[rows]
        self.heading[rows] = heading
        self._ray(self.ways.direction(heading))
        return True

    def _ray(self, way: torch.Tensor) -> None:
        """Along directions of norm 1 to the boundary; what comes nearer is kept."""
        x = self.front.x
        best = self.ways.size(self.z - x)
        far, todo = self.z, torch.ones(len(x), dtype=torch.bool, device=x.device)
        for stretch in STRETCHES:
            at = todo.nonzero().flatten()
            if not len(at):
                break
            trial = self.along(way, best * stretch)
            hit = at[self.ask(trial[at], self.front.rows[at])]
            far, todo = far.index_copy(0, hit, trial[hit]), todo.index_fill(0, hit, False)
        at = (~todo).nonzero().flatten()
        if not len(at):
            return
        down = self.settle(far, at, HALVINGS)
        nearer = self.ways.size(down - x[at]) < best[at]
        self.z = self.z.index_copy(0, at, torch.where(per_row(nearer, x).bool(), down, self.z[at]))
