"""All settings of a few knobs, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front, finite_radius
from vauban.attacks.evasion.settings import at_least
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.rng import Rng
from vauban.core.space import Knobbed
from vauban.parts.projections import per_row
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

KNOBS = 3
"""The most knobs that its spaces have where something lies between their settings."""
LEAST = 3**KNOBS
NEIGHBOUR = 1.5
"""Steps of the grid within which two settings lead to the same place when they are refined."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Tries evenly spaced settings of every knob and all their combinations, then refines the best.

    Turning one knob alone is tried first, and far before near. A row that is broken is asked about no more. Where scores are
    granted, the settings with the largest margins are refined: each knob a little up and down, half as far each round. Where
    a space has no settings between (corruptions), all are tried and none is refined. `facts` tells how many rows each knob, or
    combination of knobs, broke first.

    Source: Engstrom et al. 2019 (arXiv:1712.02779, section 3: grid search, which finds what gradients miss, for the loss is
    rugged in these few dimensions); for corruptions the set of Hendrycks and Dietterich 2019 (arXiv:1903.12261, section 4),
    of which the worst counts for each sample instead of the mean.
    Departures: the order, and the refinement; as many settings of each knob, where Engstrom et al. take 5 x 5 shifts and 31
    angles.

    Args:
        points: settings tried for each row, at most; all combinations of the same number for each knob, and no knob has
            more than 101.
        starts: settings that are refined for each row, none a neighbour of another.
        rounds: rounds of refinement.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.grid",
        name="Grid search",
        summary="Tries every setting of the few knobs that an attacker may turn, such as angle and shift.",
        needs=Access.LABELS,
        takes=Access.SCORES,
        spaces=(
            "rotation",
            "translation",
            "rigid",
            "brightness",
            "contrast",
            "gamma",
            "saturation",
            "hue",
            "blur",
            "corruption",
        ),
        tasks=("classification", "regression"),
        modalities=("image",),
        goals=("untargeted", "targeted"),
        curve=True,
        sources=(
            Source(
                title="Exploring the landscape of spatial robustness",
                where="Engstrom et al., ICML 2019, arXiv:1712.02779, section 3",
            ),
            Source(
                title="Benchmarking neural network robustness to common corruptions and perturbations",
                where="Hendrycks and Dietterich, ICLR 2019, arXiv:1903.12261, section 4",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"points": 150, "rounds": 2},
        "deep": {"points": 5000, "starts": 6, "rounds": 8},
    }

    points: int = 800
    starts: int = 3
    rounds: int = 4

    def __post_init__(self) -> None:
        at_least("points", self.points, LEAST)
        at_least("starts", self.starts, 0)
        at_least("rounds", self.rounds, 0)

    def price(self, classes: int | None) -> Price:
        """One query a setting, and two a knob, start and round of refinement."""
        return Price(queries=self.points + self.starts * self.rounds * 2 * KNOBS)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Knobs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        radius = finite_radius(scene, self.card.name)
        space, oracle = cast(Knobbed, scene.space), scene.oracle
        rows = oracle.rows
        if len(rows):
            points = space.lattice(scene.x[:1], radius, self.points)
            front, margins = self._all(scene, points)
            if space.smooth and self.starts and len(points) and margins is not None:
                self._refine(scene, front, points, margins)
        broken = rows[oracle.best.reached[rows]]
        first = Counter(space.told(oracle.best.x[broken])) if len(broken) else Counter()
        return Perturbed(oracle.best.x, facts={"broken_first_by": dict(first.most_common())})

    def _all(self, scene: EvasionScene, points: Tensor) -> tuple[Front, Tensor | None]:
        """Every point for the rows that are open; the margins `[m, p]` of those left, where scores are granted."""
        front, oracle = Front(scene), scene.oracle
        scored = Access.SCORES in oracle.grants
        margins = torch.empty(len(front), len(points) if scored else 0, device=front.x.device)
        for number, point in enumerate(points):
            if not len(front):
                break
            z = point.expand_as(front.x)
            if scored:
                margins[:, number] = oracle.margins(z, front.rows).to(margins.dtype)
            else:
                oracle.reaches(z, front.rows)
            (margins,) = front.narrow(oracle.open(front.rows), margins)
        return front, margins if scored else None

    def _refine(self, scene: EvasionScene, front: Front, points: Tensor, margins: Tensor) -> None:
        """From each of the best points that are no neighbours, each knob a little up and down."""
        spacing = torch.stack([column.unique().diff().max() for column in points.flatten(1).unbind(1)])
        places = points.flatten(1) / spacing
        for _ in range(self.starts):
            top, best = margins.max(1)
            at = points[best]
            apart = (places[None] - places[best][:, None]).abs().amax(2) > NEIGHBOUR
            margins = torch.where(apart, margins, -torch.inf)
            for turn in range(self.rounds):
                step = spacing * 0.5 ** (turn + 1)
                for way in torch.cat([torch.diag(step), -torch.diag(step)]):
                    if not len(front):
                        return
                    z = front.project(at + way.view_as(at[:1]))
                    value = scene.oracle.margins(z, front.rows).to(top.dtype)
                    better = value > top
                    at = torch.where(per_row(better, at).bool(), z, at)
                    top = torch.where(better, value, top)
                    still = scene.oracle.open(front.rows)
                    at, top, margins = front.narrow(still, at, top, margins)
