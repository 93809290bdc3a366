"""RayS: flipping the signs of blocks of features, coarse to fine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from vauban.attacks.evasion.settings import at_least
from vauban.attacks.evasion.signs import SHRINK, SignWalk, halves
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.rng import Rng
from vauban.parts.projections import per_row
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class RayS:
    """Searches the signs of a change of equal size everywhere; a block of signs is flipped where that comes nearer.

    Labels only, no gradient is estimated and there is nothing to tune. One query tells whether a flip helps: does the
    flipped direction still reach the goal a little nearer than the best so far? Only then is its distance measured.
    Blocks go from halves of all features down to single ones, and then again from the start.

    Source: Chen and Gu 2020 (arXiv:2006.12792, algorithms 2 and 3).
    Departures: the start is the nearest of several (all up, all down, donors, smooth noise), where the paper's is all up;
    a flip must come nearer by a hair, not merely as near, so that features without influence cost one query; the
    distance is searched downwards from the best so far in six queries; after single features the blocks begin anew.

    Args:
        queries: queries a row, at most.
        starts: signs tried for a start, at most.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.rays",
        name="RayS",
        summary="Flips whole blocks of a change up or down and keeps what comes nearer, seeing only answers.",
        needs=Access.LABELS,
        spaces=("linf",),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="RayS: a ray searching method for hard-label adversarial attack",
                where="Chen, Gu, KDD 2020, arXiv:2006.12792, algorithms 2 and 3",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"queries": 300}, "deep": {"queries": 10_000}}

    queries: int = 2000
    starts: int = 20

    def __post_init__(self) -> None:
        at_least("queries", self.queries, 50)
        at_least("starts", self.starts, 1)

    def price(self, classes: int | None) -> Price:
        """`queries`."""
        return Price(queries=self.queries)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]`: within the radius, or the nearest success found where it is infinite."""
        walk = SignWalk(scene, self.queries, rng.child("rays"))
        if walk.begin(self.starts):
            for block in (block for pair in halves(walk.d) for block in pair):
                walk.keep(1 + SHRINK)
                if not len(walk.front):
                    break
                _flip(walk, *block)
        return Perturbed(scene.oracle.best.x)


def _flip(walk: SignWalk, start: int, stop: int) -> None:
    """Flip one block in every row where that brings the boundary nearer."""
    if start == stop:
        return
    signs, rows = walk.flipped(start, stop), walk.front.rows
    better = walk.ask(walk.point(signs, walk.radius[rows] * (1 - walk.tiny)))
    at = better.nonzero().flatten()
    if len(at):
        walk.z = torch.where(per_row(better, signs).bool(), signs, walk.z)
        walk.radius[rows[at]] *= 1 - walk.tiny
        walk.shrink(at)
