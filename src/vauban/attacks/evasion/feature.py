"""Matching the features of another input inside the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.ascent import ascend
from vauban.attacks.evasion.front import Front, finite_radius
from vauban.attacks.evasion.settings import at_least, one_of
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.core.target import Outputs
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

MODES = ("match", "away")


@dataclass(frozen=True, kw_only=True)
class Feature:
    """Moves an input so that the last hidden layer sees another input, a donor of which the goal holds.

    `match` draws donors for each row, keeps those that reach the goal and takes the one whose features are nearest to the
    row's own; where there is none, or no donors were given, and in `away`, the features are pushed as far from the
    clean ones as possible. A wanted class is reached by donors only.

    Source: Sabour, Cao, Faghri and Fleet 2016 (arXiv:1511.05122, section 2, equation 1).
    Departures: Auto-PGD instead of L-BFGS, and every norm instead of Linf alone; the donor is chosen among several; the
    untargeted push is the one of Naseer et al. 2018 (arXiv:1811.09020).

    Args:
        steps: gradients of a run.
        donors: donors drawn for each row, two queries each.
        mode: `match` or `away`.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.feature",
        name="Feature matching",
        summary="Makes an input look, to the model's inner layer, like an input of another kind.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS | Access.FEATURES,
        spaces=("linf", "l2", "l1"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="Adversarial manipulation of deep representations",
                where="Sabour et al., ICLR 2016, arXiv:1511.05122, section 2",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"steps": 20, "donors": 3}, "deep": {"steps": 200}}

    steps: int = 60
    donors: int = 5
    mode: str = "match"

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 2)
        at_least("donors", self.donors, 1)
        one_of("mode", self.mode, MODES)

    def price(self, classes: int | None) -> Price:
        """`steps` gradients, a query for the clean features and the end, two for each donor."""
        return Price(queries=self.steps + 2 + 2 * self.donors, gradients=self.steps)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        radius = finite_radius(scene, self.card.name)
        front = Front(scene)
        if not len(front):
            return Perturbed(scene.oracle.best.x)
        own = scene.oracle.features(front.x, front.rows)
        guide, sign, matched = self._guides(scene, rng.child("donors"), front, own)
        table, signs = own.new_zeros(len(scene.x), own.shape[1]), own.new_zeros(len(scene.x))
        table[front.rows], signs[front.rows] = guide, sign
        front.narrow(scene.oracle.open(front.rows))
        if len(front):
            start = scene.space.sample(front.x, radius, rng.child("feature"), front.rows)
            ascend(scene, front, start, _distance(table, signs), self.steps, scene.oracle.feature_value_and_grad)
        return Perturbed(scene.oracle.best.x, facts={"matched": matched})

    def _guides(self, scene: EvasionScene, rng: Rng, front: Front, own: Tensor) -> tuple[Tensor, Tensor, int]:
        """Features to go to (sign -1) or away from (+1), `[m, d]` and `[m]`; and how many rows have a donor."""
        guide, gap = own.clone(), torch.full((len(front),), torch.inf, device=own.device)
        pool = scene.donors
        if self.mode == "match" and pool is not None and len(pool):
            for _ in range(self.donors):
                if not bool((scene.oracle.left(front.rows) > 2).all()):
                    break
                pick = rng.integers(front.rows, len(pool))[:, 0]
                donor = pool.to(front.x)[pick.to(pool.device)]
                fits = scene.oracle.reaches(donor, front.rows)
                features = scene.oracle.features(donor, front.rows)
                away = torch.where(fits, (features - own).flatten(1).norm(dim=1), torch.inf)
                nearer = away < gap
                guide = torch.where(nearer[:, None], features, guide)
                gap = torch.minimum(gap, away)
        matched = gap.isfinite()
        return guide, torch.where(matched, -1.0, 1.0).to(own), int(matched.sum())


def _distance(table: Tensor, signs: Tensor) -> Loss:
    """The signed Euclidean distance of each row's features from those in the table."""

    def loss(outputs: Outputs, rows: Tensor) -> Tensor:
        gap = outputs.values - table[rows]
        return signs[rows] * gap.square().sum(1).clamp_min(1e-12).sqrt()

    return loss
