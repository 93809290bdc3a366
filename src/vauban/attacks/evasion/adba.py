"""ADBA: comparing two flips at one distance that tells them apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.settings import at_least
from vauban.attacks.evasion.signs import SHRINK, SignWalk, halves
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.rng import Rng
from vauban.parts.projections import per_row
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

_FIT = (0.03133, 3.0660, 0.16756, 0.13404)
"""The authors' fit of how boundaries of flipped directions lie below the best one's distance, of density
a / (s + d)^b + c at a share s below it (their published code)."""
_SOLVE = 16
"""Halvings of the median, which ask nothing of the model."""


def _mass(below: Tensor) -> Tensor:
    """The integral of the density from 0."""
    a, b, c, d = _FIT
    return a / (b - 1) * (d ** (1 - b) - (below + d).pow(1 - b)) + c * below


def median(low: Tensor, high: Tensor, best: Tensor) -> Tensor:
    """The distance in [low, high] that halves the chance of a boundary there, `[m]`, where the best so far is `best`."""
    near, far = 1 - high / best, 1 - low / best
    half = (_mass(near) + _mass(far)) / 2
    for _ in range(_SOLVE):
        middle = (near + far) / 2
        below = _mass(middle) < half
        near, far = torch.where(below, middle, near), torch.where(below, far, middle)
    return (1 - (near + far) / 2) * best


@dataclass(frozen=True, kw_only=True)
class ADBA:
    """Flips one half of a block of signs or the other, whichever reaches the goal at a distance where one alone does.

    Labels only. Where RayS measures the distance along every better direction, two directions are compared here at one
    distance after another, until one of them no longer reaches the goal; the distance tried is the median of where the
    boundary may lie, which tells two directions apart in about four queries.

    Source: Wang, Zuo, Huang and Chen 2025 (arXiv:2406.04998, algorithms 1 and 2, with the median search).
    Departures: the start is the nearest of several (all up, all down, donors, smooth noise); both must come nearer by a
    hair, not merely as near; where a search ends undecided the first half is taken; the distance of the best is brought
    down to the boundary from time to time, for without a radius to reach, a distance that is too long keeps
    directions that are worse; after single features the blocks begin anew.

    Args:
        queries: queries a row, at most.
        starts: signs tried for a start, at most.
        compares: distances tried to tell two directions apart, two queries each.
        refresh: pairs of blocks after which the distance is brought down to the boundary.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.adba",
        name="ADBA",
        summary="Flips one half of a block or the other, compared at one well-chosen distance, seeing only answers.",
        needs=Access.LABELS,
        spaces=("linf",),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="ADBA: approximation decision boundary approach for black-box adversarial attacks",
                where="Wang, Zuo, Huang, Chen, AAAI 2025, arXiv:2406.04998",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"queries": 300}, "deep": {"queries": 10_000}}

    queries: int = 2000
    starts: int = 20
    compares: int = 8
    refresh: int = 8

    def __post_init__(self) -> None:
        at_least("queries", self.queries, 50)
        at_least("starts", self.starts, 1)
        at_least("compares", self.compares, 1)
        at_least("refresh", self.refresh, 1)

    def price(self, classes: int | None) -> Price:
        """`queries`."""
        return Price(queries=self.queries)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]`: within the radius, or the nearest success found where it is infinite."""
        walk = SignWalk(scene, self.queries, rng.child("adba"))
        if walk.begin(self.starts):
            for number, pair in enumerate(halves(walk.d), 1):
                walk.keep(2 + 2 * self.compares)
                if not len(walk.front):
                    break
                self._compare(walk, *pair)
                if number % self.refresh == 0:
                    walk.keep(SHRINK)
                    walk.shrink(torch.arange(len(walk.front), device=walk.z.device))
        return Perturbed(scene.oracle.best.x)

    def _compare(self, walk: SignWalk, one: tuple[int, int], other: tuple[int, int]) -> None:
        """Take the better of two flips in every row where any comes nearer."""
        rows, pair = walk.front.rows, (walk.flipped(*one), walk.flipped(*other))
        best = walk.radius[rows] * (1 - walk.tiny)
        first, second = (walk.ask(walk.point(signs, best)) for signs in pair)
        choice = torch.where(first, 0, 1)
        low, high = torch.zeros_like(best), best.clone()
        both = (first & second).nonzero().flatten()
        for _ in range(self.compares):
            if not len(both):
                break
            middle = median(low[both], high[both], best[both])
            a, b = (walk.ask(walk.point(signs[both], middle, both), rows[both]) for signs in pair)
            high[both] = torch.where(a | b, middle, high[both])
            low[both] = torch.where(a | b, low[both], middle)
            choice[both] = torch.where(b & ~a, 1, 0)
            both = both[a == b]
        better = first | second
        signs = torch.where(per_row(choice, walk.z).bool(), pair[1], pair[0])
        walk.z = torch.where(per_row(better, signs).bool(), signs, walk.z)
        walk.radius[rows] = torch.where(better, high, walk.radius[rows])
