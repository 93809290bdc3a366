"""Sign-OPT: descending the distance to the boundary over directions, from one answer a probe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.settings import above, at_least
from vauban.attacks.evasion.walk import Walk
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.rng import Rng
from vauban.parts.decision import beside
from vauban.parts.estimators import boundary_normal, unit
from vauban.parts.projections import per_row
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

HALVINGS = 8
"""Halvings that measure how near the boundary is along a better direction."""
DOUBLINGS = 5
"""Step sizes tried in a row as long as each is better than the one before."""
FINEST = 3
"""Steps tried that are smaller than the first."""
FEWEST = 8
"""Probes below which an estimate is not worth making."""


@dataclass(frozen=True, kw_only=True)
class SignOPT:
    """Looks for the direction in which the boundary is nearest, by gradient descent over directions.

    Labels only. Whether the boundary is nearer in a slightly changed direction takes one query: does the changed
    direction reach the goal at the present distance? The sum of the probes so answered is the slope; the step along it
    is doubled while it helps.

    Source: Cheng, Singh, Chen, Chen, Liu and Hsieh 2020 (arXiv:1909.10773, algorithm 1), L2.
    Departures: probes are at right angles to each other and to the direction and favour slow waves; a step is judged by
    one query before its distance is measured; distances are measured only downwards; the start is the nearest of
    several.

    Args:
        queries: queries a row, at most.
        probes: directions tried for one slope.
        starts: directions tried for a start, at most.
        smoothing: how far a probe turns the direction, as a share of its length.
        step: first step size, in the same unit; it then follows each row's own success.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.sign_opt",
        name="Sign-OPT",
        summary="Turns a direction to where the model's answer changes soonest, seeing only answers.",
        needs=Access.LABELS,
        spaces=("l2",),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="Sign-OPT: a query-efficient hard-label adversarial attack",
                where="Cheng et al., ICLR 2020, arXiv:1909.10773, algorithm 1",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"queries": 400, "probes": 30},
        "deep": {"queries": 20_000},
    }

    queries: int = 4000
    probes: int = 80
    starts: int = 60
    smoothing: float = 0.05
    step: float = 0.2

    def __post_init__(self) -> None:
        at_least("queries", self.queries, 100)
        at_least("probes", self.probes, FEWEST)
        at_least("starts", self.starts, 1)
        above("smoothing", self.smoothing, 0)
        above("step", self.step, 0)

    def price(self, classes: int | None) -> Price:
        """`queries`."""
        return Price(queries=self.queries)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]`: within the radius, or the nearest success found where it is infinite."""
        walk = _Directions(scene, self, rng.child("sign_opt"))
        if walk.begin(self.starts):
            while walk.descend():
                pass
        return Perturbed(scene.oracle.best.x)


class _Directions(Walk):
    def __init__(self, scene: EvasionScene, plan: SignOPT, rng: Rng) -> None:
        super().__init__(scene, plan.queries, rng)
        self.plan = plan
        self.step = torch.full((len(scene.x),), plan.step, dtype=torch.float64, device=scene.x.device)

    def descend(self) -> bool:
        """One slope and one search along it. False once no row can afford another."""
        search = (DOUBLINGS + FINEST) + (DOUBLINGS + 1) * HALVINGS
        self.keep(FEWEST + search)
        if not len(self.front):
            return False
        slope = self._slope(search)
        (slope,) = self.keep(search, slope)
        if len(self.front):
            self._search(slope)
        return len(self.front) > 0

    def _slope(self, reserve: int) -> Tensor:
        """The way in which the boundary comes nearer, at right angles to the direction, `[m, ...]` of length 1."""
        x, rows = self.front.x, self.front.rows
        change = self.z - x
        gap = self.ways.size(change)
        wanted = min(self.plan.probes, self.d)
        ways = self.waves.directions(wanted, self.rng, rows).to(x)
        flat = beside(ways.flatten(0, 1), unit(change).repeat_interleave(wanted, 0))
        turned = unit(unit(change).repeat_interleave(wanted, 0) + self.plan.smoothing * flat)
        far = x.repeat_interleave(wanted, 0) + turned * per_row(gap.repeat_interleave(wanted), turned)
        counts = (self.left() - reserve).clamp(0, wanted)
        asked = torch.arange(wanted, device=x.device)[None, :] < counts[:, None]
        reached = torch.zeros_like(asked)
        points = self.clip(far).view(len(x), wanted, *x.shape[1:])
        reached[asked] = self.ask(points[asked], rows.repeat_interleave(counts))
        return beside(boundary_normal(points - self.z[:, None], reached, asked), change)

    def _search(self, slope: Tensor) -> None:
        """Steps along the slope: doubled while the boundary comes nearer, halved where the first does not help."""
        rows = self.front.rows
        start, step = unit(self.z - self.front.x), self.step[rows].clone()
        taken = torch.zeros_like(step)
        going = torch.ones(len(rows), dtype=torch.bool, device=step.device)
        failed = torch.zeros(len(rows), dtype=torch.int64, device=step.device)
        for _ in range(DOUBLINGS + FINEST):
            at = going.nonzero().flatten()
            if not len(at):
                break
            way = unit(start[at] + slope[at] * per_row(step[at], slope))
            better = self._measure(way, at)
            taken[at[better]] = step[at[better]]
            failed[at[~better]] += 1
            # a success after a failure, a failure after a success, or too many of either end the search
            going[at] = torch.where(better, failed[at] == 0, (taken[at] == 0) & (failed[at] <= FINEST))
            step[at] = torch.where(better, step[at] * 2, step[at] / 2)
        self.step[rows] = torch.where(taken > 0, taken, step).clamp(1e-4, 1.0)

    def _measure(self, way: Tensor, at: Tensor) -> Tensor:
        """bool `[k]`: the boundary is nearer along `way` `[k, ...]` than at the rows' points, which then move there."""
        x, rows = self.front.x[at], self.front.rows[at]
        gap = self.ways.size(self.z[at] - x)
        far = self.clip(x + way * per_row(gap * (1 - 1e-4), x))
        better = self.ask(far, rows)
        hit = better.nonzero().flatten()
        if len(hit):
            whole = self.z.index_copy(0, at[hit], far[hit])
            self.z = self.z.index_copy(0, at[hit], self.settle(whole, at[hit], HALVINGS, miss=0.5))
        return better
