"""Uniform noise: the baseline that every attack must beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vauban.attacks.evasion.front import Front, finite_radius
from vauban.attacks.evasion.settings import at_least
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.rng import Rng
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Points drawn uniformly from the room; the first that reaches the goal is kept.

    No attack but a baseline: what noise breaks needs no attacker. Labels suffice.

    Source: the random-noise baseline asked for by Carlini et al. 2019 (arXiv:1902.06705, section 4.10).
    Departures: none; uniform in the ball of the threat's norm, then projected into the box; in spaces of knobs every knob is
    drawn uniformly, in `patch` a rectangle and what fills it.

    Args:
        draws: points tried for each row.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.noise",
        name="Uniform noise",
        summary="Adds random noise of the allowed size, several times: what this breaks needs no attacker.",
        needs=Access.LABELS,
        spaces=(
            "linf",
            "l2",
            "l1",
            "rotation",
            "translation",
            "rigid",
            "flow",
            "brightness",
            "contrast",
            "gamma",
            "saturation",
            "hue",
            "blur",
            "corruption",
            "patch",
        ),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="On evaluating adversarial robustness",
                where="Carlini et al. 2019, arXiv:1902.06705, section 4.10",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"draws": 5}, "deep": {"draws": 200}}

    draws: int = 20

    def __post_init__(self) -> None:
        at_least("draws", self.draws, 1)

    def price(self, classes: int | None) -> Price:
        """One query a draw."""
        return Price(queries=self.draws)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        radius = finite_radius(scene, self.card.name)
        draws, front = rng.child("noise"), Front(scene)
        for _ in range(self.draws):
            if not len(front):
                break
            z = scene.space.sample(front.x, radius, draws, front.rows)
            scene.oracle.reaches(z, front.rows)
            front.narrow(scene.oracle.open(front.rows))
        return Perturbed(scene.oracle.best.x)
