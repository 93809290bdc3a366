"""HopSkipJump: walking along the decision boundary with labels alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front
from vauban.attacks.evasion.settings import above, at_least
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.oracle import Oracle
from vauban.core.rng import Rng
from vauban.parts.estimators import boundary_normal, lengths, unit
from vauban.parts.projections import per_row
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

JUMPS = 12
"""Step sizes tried in a jump, at most."""
FEWEST = 10
"""Probes below which an estimate is not worth making."""
LARGEST = 2**23
"""Numbers held at once in an estimate: rows go in groups, with the same result."""


@dataclass(frozen=True)
class _Geometry:
    """What differs between the norms."""

    size: Callable[[Tensor], Tensor]
    """Norm of each row, `[m]`."""
    towards: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(clean, far point, share of the way `[m]`) -> the point that near, `[m, ...]`."""
    direction: Callable[[Tensor], Tensor]
    """The step of norm 1 along an estimated normal."""
    flat: float
    """Power of the dimension in the precision of the search: 1.5 in L2, 2 in Linf (section IV of the paper)."""


def _largest(change: Tensor) -> Tensor:
    return change.flatten(1).abs().amax(1)


def _blend(x: Tensor, far: Tensor, share: Tensor) -> Tensor:
    return torch.lerp(x, far, per_row(share, x).expand_as(x))


def _clip_to(x: Tensor, far: Tensor, share: Tensor) -> Tensor:
    room = per_row(share * _largest(far - x), x)
    return torch.maximum(torch.minimum(far, x + room), x - room)


_GEOMETRY: Mapping[str, _Geometry] = {
    "l2": _Geometry(lengths, _blend, unit, 1.5),
    "linf": _Geometry(_largest, _clip_to, torch.sign, 2.0),
}


@dataclass(frozen=True, kw_only=True)
class HopSkipJump:
    """Finds a point beyond the boundary, then walks along the boundary to the point nearest to the input.

    Needs labels only. Each round estimates the boundary's normal from random probes, jumps along it, and searches back
    towards the input for the boundary. Where the goal lies on several sides, a walk stays on the side of its start. All rows go through a round together, but each has its own points, probes, step
    and count of queries. With a finite radius a row ends as soon as it is within it.

    Source: Chen, Jordan and Wainwright 2020 (arXiv:1904.02144, algorithms 1 and 2).
    Departures: a row ends at its own budget; the search for a step size is bounded; a jump is kept only if it comes
    nearer; the start is the nearest of several, among donors and noise of growing strength; probes lie at least a
    rounding error away, and are normal in Linf, too; an estimate is added to those before it, for the boundary bends
    little from one round to the next.

    Args:
        queries: queries a row, at most.
        probes: of the first estimate; grows with the square root of the rounds.
        starts: random points tried as a start, at most.
        gamma: scale of the probes' distance; larger suits rougher boundaries.
        memory: weight of earlier estimates of the normal; 0 is the published attack.
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
        "smoke": {"queries": 400, "probes": 30},
        "deep": {"queries": 10_000},
    }

    queries: int = 2000
    probes: int = 50
    starts: int = 30
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
        walk = _Walk(scene, self, rng.child("hop_skip_jump"))
        if walk.begin():
            while walk.hop():
                pass
        return Perturbed(scene.oracle.best.x)


class _Walk:
    """All rows under way: `z` `[m, ...]` on the goal's side of the boundary, `round` of each."""

    def __init__(self, scene: EvasionScene, plan: HopSkipJump, rng: Rng) -> None:
        self.scene, self.plan, self.rng = scene, plan, rng
        self.oracle: Oracle = scene.oracle
        self.front = Front(scene)
        self.spent_before = scene.oracle.spent.queries.clone()
        self.ways = _GEOMETRY[scene.space.name]
        d = max(scene.x[0].numel(), 2)
        self.theta = plan.gamma / d**self.ways.flat
        self.reach = self.theta * (math.sqrt(d) if self.ways.flat == 1.5 else d)
        self.halvings = max(4, math.ceil(math.log2(1 / min(self.theta, 0.5))))
        self.z = self.front.x
        self.heading = torch.zeros_like(scene.x)
        self.round = 0

    def left(self) -> Tensor:
        """Queries that each row may still make, `[m]`."""
        rows = self.front.rows
        used = self.oracle.spent.queries.to(rows.device)[rows] - self.spent_before.to(rows.device)[rows]
        return torch.minimum(self.oracle.left(rows), self.plan.queries - used)

    def keep(self, queries: int, *state: Tensor) -> tuple[Tensor, ...]:
        """Go on with the rows that are open and can afford that many queries more."""
        stay = self.oracle.open(self.front.rows) & (self.left() >= queries)
        self.z, *state_left = self.front.narrow(stay, self.z, *state)
        return tuple(state_left)

    def begin(self) -> bool:
        """Find a start for every row and come down to the boundary; False where no row has any."""
        if not len(self.front):
            return False
        start, gap = self.front.x.clone(), torch.full((len(self.front),), torch.inf, device=self.front.x.device)
        for number in range(self.plan.starts):
            start, gap = self.keep(1, start, gap)
            if not len(self.front):
                return False
            far = self._candidate(number)
            hit = self.oracle.reaches(far, self.front.rows)
            size = self.ways.size(far - self.front.x).where(hit, torch.inf)
            start = torch.where(per_row(size < gap, far).bool(), far, start)
            gap = torch.minimum(gap, size)
        (self.z,) = self.front.narrow(gap.isfinite(), start)
        self.keep(self.halvings + 1)
        if len(self.front):
            self.z = self._descend(self.z)
        return len(self.front) > 0

    def _candidate(self, number: int) -> Tensor:
        """A point to start from: donors and noise in turn."""
        x, rows, scene = self.front.x, self.front.rows, self.scene
        pool = scene.donors
        if number % 2 and pool is not None and len(pool):
            return pool.to(x)[self.rng.integers(rows, len(pool))[:, 0].to(pool.device)]
        low, high = scene.space.low.to(x), scene.space.high.to(x)
        bounded = low.isfinite() & high.isfinite()
        uniform = self.rng.uniform(rows, x.shape[1:]).to(x)
        strength = 2.0 ** (number / 3 - 4)
        inside = torch.lerp(x, low + uniform * (high - low), min(1.0, strength))
        spread = strength * per_row(lengths(x).clamp_min(1.0), x)
        return torch.where(bounded, inside, torch.clamp(x + spread * (2 * uniform - 1), low, high))

    def _descend(self, far: Tensor) -> Tensor:
        """From points in the goal to the boundary on the way to the input, by halving; `halvings` queries a row."""
        x, rows = self.front.x, self.front.rows
        low, high = torch.zeros(len(rows), device=x.device), torch.ones(len(rows), device=x.device)
        for _ in range(self.halvings):
            middle = (low + high) / 2
            hit = self.oracle.reaches(self.ways.towards(x, far, middle.to(x.dtype)), rows)
            high, low = torch.where(hit, middle, high), torch.where(hit, low, middle)
        return self.ways.towards(x, far, high.to(x.dtype))

    def hop(self) -> bool:
        """One round: estimate, jump, come down. False once no row can afford another."""
        self.round += 1
        self.keep(FEWEST + JUMPS + self.halvings)
        if not len(self.front):
            return False
        rows = self.front.rows
        normal = unit(unit(self._normal()) + self.plan.memory * self.heading[rows])
        self.heading[rows] = normal
        far = self._jump(normal)
        (far,) = self.keep(self.halvings, far)
        if not len(self.front):
            return False
        down = self._descend(far)
        nearer = self.ways.size(down - self.front.x) < self.ways.size(self.z - self.front.x)
        self.z = torch.where(per_row(nearer, self.z).bool(), down, self.z)
        return True

    def _normal(self) -> Tensor:
        """The direction into the goal at every row's point; all probes of a row in one call.

        A row near the end of its budget uses only the first few of its probes, so that another's budget does not matter.
        """
        wanted = max(FEWEST, int(self.plan.probes * math.sqrt(self.round)))
        counts = (self.left() - JUMPS - self.halvings).clamp_max(wanted)
        rng = self.rng.child(self.round)
        size = max(1, LARGEST // (wanted * self.z[0].numel()))
        parts = torch.arange(len(self.z), device=self.z.device).split(size)
        return torch.cat([self._probe(part, counts[part], wanted, rng) for part in parts])

    def _probe(self, part: Tensor, counts: Tensor, wanted: int, rng: Rng) -> Tensor:
        x, z, rows = self.front.x[part], self.z[part], self.front.rows[part]
        noise = rng.normal(rows, (wanted, *x.shape[1:])).to(x)
        noise = unit(noise.flatten(0, 1)).view_as(noise)
        rounding = 8 * torch.finfo(x.dtype).eps * lengths(z)
        away = torch.maximum((0.1 if self.round == 1 else self.reach) * self.ways.size(z - x), rounding)
        away = per_row(away, noise)
        points = self.clip(z[:, None] + noise * away)
        asked = torch.arange(wanted, device=x.device)[None, :] < counts[:, None]
        reached = torch.zeros_like(asked)
        reached[asked] = self.oracle.reaches(points[asked], rows.repeat_interleave(counts))
        return boundary_normal((points - z[:, None]) / away, reached, asked)

    def _jump(self, normal: Tensor) -> Tensor:
        """Points in the goal: along the normal as far as the paper says, or half as far until there."""
        step, far = self.ways.direction(normal), self.z
        size = self.ways.size(self.z - self.front.x) / math.sqrt(self.round)
        todo = torch.arange(len(size), device=size.device)
        for _ in range(JUMPS):
            trial = self.clip(self.z[todo] + per_row(size[todo], step) * step[todo])
            hit = self.oracle.reaches(trial, self.front.rows[todo])
            far = far.index_copy(0, todo[hit], trial[hit])
            todo, size = todo[~hit], size / 2
            if not len(todo):
                break
        return far

    def clip(self, z: Tensor) -> Tensor:
        """Into the box."""
        return torch.clamp(z, self.scene.space.low.to(z), self.scene.space.high.to(z))
