"""The cascade: many attacks and proofs in one, from cheap to dear, each on who is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vauban.attacks.evasion.apgd import APGD
from vauban.attacks.evasion.apgd_targeted import TargetedAPGD
from vauban.attacks.evasion.fab import FAB
from vauban.attacks.evasion.fmn import FMN
from vauban.attacks.evasion.hop_skip_jump import HopSkipJump
from vauban.attacks.evasion.one_pixel import OnePixel
from vauban.attacks.evasion.pgd import PGD
from vauban.attacks.evasion.rays import RayS
from vauban.attacks.evasion.settings import one_of
from vauban.attacks.evasion.sigma_zero import SigmaZero
from vauban.attacks.evasion.square import Square
from vauban.core.attack import Attack, EvasionScene, Perturbed, Price
from vauban.core.rng import Rng
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source
from vauban.schema.errors import BadThreat

Stage = Attack[EvasionScene, Perturbed]
Either = tuple[Stage, ...]
"""Stages of which the first that fits a scene is made."""


@dataclass(frozen=True)
class Prove:
    """A stage that closes rows by proof instead of by an example; it spends no queries, only time."""

    card: ClassVar[AttackCard] = AttackCard(
        id="proof",
        name="Proof",
        summary="Shows that nothing within the radius is answered otherwise.",
        spaces=("linf", "l2", "l1"),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    effort: str

    def price(self, classes: int | None) -> Price:
        """Nothing that is metered."""
        return Price()

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """The best points so far."""
        scene.oracle.prove(self.effort)
        return Perturbed(scene.oracle.best.x)


@dataclass(frozen=True)
class Tier:
    """Stages from cheap to dear, for what an attacker may ask; those that do not fit a scene are passed over."""

    gradients: tuple[Either, ...]
    scores: tuple[Either, ...]
    labels: tuple[Either, ...]

    def stages(self, grants: Access) -> tuple[Either, ...]:
        """Those for the strongest right that is granted."""
        ways = ((Access.GRADIENTS, self.gradients), (Access.SCORES, self.scores))
        return next((stages for right, stages in ways if right in grants), self.labels)

    def price(self, classes: int | None) -> Price:
        """For an input that no stage breaks, whatever space and rights there are."""
        ways = [
            [[stage.price(classes) for stage in either] for either in way]
            for way in (self.gradients, self.scores, self.labels)
        ]
        return Price(
            queries=max(sum(max(p.queries for p in either) for either in way) for way in ways),
            gradients=sum(max(p.gradients for p in either) for either in ways[0]),
        )


TIERS: Mapping[str, Tier] = {
    "screen": Tier(
        gradients=(
            (PGD(steps=10),),
            (Prove("alpha"),),
            (PGD(steps=30, loss="ce"),),
            (TargetedAPGD(steps=40, targets=2, loss="margin"),),
            (SigmaZero(steps=200),),
        ),
        scores=((Prove("alpha"),), (Square(queries=300),), (OnePixel(queries=300),)),
        labels=((Prove("alpha"),), (HopSkipJump(queries=300),)),
    ),
    "standard": Tier(
        gradients=(
            (PGD(steps=10),),
            (Prove("alpha"),),
            (PGD(steps=30, loss="ce"),),
            (TargetedAPGD(steps=100, targets=3, loss="margin"),),
            (APGD(steps=100, restarts=2, at_once=True),),
            (TargetedAPGD(steps=50, targets=6),),
            (Square(queries=500),),
            (SigmaZero(steps=1000),),
            (OnePixel(queries=500),),
        ),
        scores=((Prove("alpha"),), (Square(queries=2500),), (OnePixel(queries=2500),)),
        labels=((Prove("alpha"),), (HopSkipJump(queries=2500),), (RayS(queries=2500),)),
    ),
    "deep": Tier(
        gradients=(
            (PGD(steps=10),),
            (Prove("branch"),),
            (APGD(steps=100, loss="margin"),),
            (TargetedAPGD(steps=100, loss="margin"),),
            (APGD(steps=100, restarts=5, at_once=True),),
            (TargetedAPGD(steps=100),),
            (FAB(steps=500),),
            (Square(queries=5000),),
            (SigmaZero(steps=2000),),
            (OnePixel(queries=5000),),
        ),
        scores=((Prove("branch"),), (Square(queries=10_000),), (OnePixel(queries=10_000),)),
        labels=((Prove("branch"),), (HopSkipJump(queries=10_000),), (RayS(queries=10_000),)),
    ),
}
NEAREST: Mapping[str, Tier] = {
    tier: Tier(
        gradients=((FMN(steps=steps, targets=targets), SigmaZero(steps=2 * steps)),),
        scores=((HopSkipJump(queries=queries),),),
        labels=((HopSkipJump(queries=queries),),),
    )
    for tier, steps, targets, queries in (("screen", 100, 1, 500), ("standard", 200, 3, 1000), ("deep", 1000, 6, 5000))
}
"""Where the radius is infinite: whatever looks for the nearest success in the space."""


@dataclass(frozen=True, kw_only=True)
class Cascade:
    """Many attacks and proofs in one: each stage works on the inputs that are still neither broken nor proved.

    Cheap attacks go first, so that the inputs of an undefended model leave after a few passes; then proofs close those
    that nothing within the radius can change; the dear attacks are left to the rest. A stage that does not fit (a space
    that it does not search, too few classes) is passed over; without gradients the attacks that see scores or labels take
    over. The result is one figure at least as low as that of any of
    its parts, in the passes of the few inputs that need them all.

    Source: AutoAttack (Croce and Hein 2020, arXiv:2003.01690) for the ensemble of attacks without settings. Departures:
    targets are ranked by what it takes to reach them (MALT: Melamed et al. 2024, arXiv:2407.02240), which lets fewer
    steps do; there are proofs; a broken input takes part in no further step.

    Args:
        tier: `screen` (at most 220 passes), `standard` or `deep`.
        proofs: False leaves the proofs out.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.cascade",
        name="Cascade",
        summary="Runs attacks and proofs from cheap to dear, each on the inputs that are still undecided.",
        takes=Access.SCORES | Access.GRADIENTS,
        spaces=("linf", "l2", "l1", "l0"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        curve=True,
        sources=(
            Source(
                title="Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
                where="Croce and Hein, ICML 2020, arXiv:2003.01690",
            ),
            Source(
                title="MALT powers up adversarial attacks",
                where="Melamed, Yehudai, Vardi, NeurIPS 2024, arXiv:2407.02240, section 4",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"tier": "screen"}, "deep": {"tier": "deep"}}

    tier: str = "standard"
    proofs: bool = True

    def __post_init__(self) -> None:
        one_of("tier", self.tier, TIERS)

    def price(self, classes: int | None) -> Price:
        """The sum over the stages, for an input that all of them fail to break, whatever space and rights there are."""
        return TIERS[self.tier].price(classes)

    def nearest(self, classes: int | None) -> Price:
        """What the search for the nearest success costs, which an infinite radius means; it gives the security curve."""
        return NEAREST[self.tier].price(classes)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius; the nearest successes found where it is infinite.

        `facts["stages"]`: how many inputs each stage was given and left. Raises BadThreat where nothing looks for the
        nearest success in the space with the rights that are granted.
        """
        told = []
        for number, stage in enumerate(self._stages(scene)):
            given = len(scene.oracle.rows)
            if not given:
                break
            stage(scene, rng.child("cascade", number))
            told.append({"stage": stage.card.id, "given": given, "left": len(scene.oracle.rows)})
        return Perturbed(scene.oracle.best.x, facts={"stages": told})

    def _stages(self, scene: EvasionScene) -> list[Stage]:
        free = scene.radius == float("inf")
        ways = (NEAREST if free else TIERS)[self.tier].stages(scene.oracle.grants)
        found = [next((stage for stage in either if _fits(stage.card, scene)), None) for either in ways]
        fitting = [s for s in found if s is not None and (self.proofs or not isinstance(s, Prove))]
        if free and not fitting:
            raise BadThreat(
                f"Nothing looks for the nearest success in {scene.space.name} with what the attacker may ask here: "
                f"give a radius, such as {scene.space.name}:1."
            )
        return fitting


def _fits(card: AttackCard, scene: EvasionScene) -> bool:
    task = "regression" if scene.classes is None else "classification"
    goal = "targeted" if scene.oracle.goal.targeted else "untargeted"
    return (
        scene.space.name in card.spaces
        and task in card.tasks
        and goal in card.goals
        and (scene.classes or 2) >= card.min_classes
    )
