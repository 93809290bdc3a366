"""Auto-PGD towards the nearest other classes, one after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from vauban.attacks.evasion.ascent import close_in
from vauban.attacks.evasion.front import Front, finite_radius
from vauban.attacks.evasion.rivals import PAIR_LOSSES, compared, rank, towards
from vauban.attacks.evasion.settings import at_least, one_of
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class TargetedAPGD:
    """Auto-PGD run towards each of the classes that the model finds likeliest after the true one.

    A row leaves as soon as any class but the true one is reached. Under a targeted goal there is one run, towards the
    wanted class.

    Source: Croce and Hein 2020 (arXiv:2003.01690, section 4 and equation 7).
    Departures: classes are ranked once, at the clean input, by the share of the radius at which a linear model would
    give in (MALT: Melamed et al. 2024, arXiv:2407.02240) instead of by their scores; those of `ascent.ascend` and, in L2 and L1, `ascent.close_in`; with three classes
    the targeted DLR is not divided by anything.

    Args:
        steps: gradients of a run.
        targets: classes tried, at most; the model's classes minus one where there are fewer.
        restarts: runs towards each class.
        loss: `dlr` (targeted difference of logits ratio), `margin` (wanted minus true logit) or `ce` (log-probability of the
            wanted class).
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.apgd_targeted",
        name="Targeted Auto-PGD",
        summary="Steers every input towards each of its likeliest wrong classes in turn.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        tasks=("classification",),
        goals=("untargeted", "targeted"),
        min_classes=3,
        sources=(
            Source(
                title="Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
                where="Croce and Hein, ICML 2020, arXiv:2003.01690, section 4",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 20, "targets": 3},
        "deep": {"restarts": 2},
    }

    steps: int = 100
    targets: int = 9
    restarts: int = 1
    loss: str = "dlr"

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 2)
        at_least("targets", self.targets, 1)
        at_least("restarts", self.restarts, 1)
        one_of("loss", self.loss, PAIR_LOSSES)

    def price(self, classes: int | None) -> Price:
        """`steps` gradients a class and run, one query more for each, and the ranking: two queries, a gradient a class."""
        wrong = (classes or _candidates(self.targets) + 1) - 1
        runs = self.restarts * min(self.targets, wrong)
        ranking = min(_candidates(self.targets), wrong)
        return Price(queries=2 + runs * (self.steps + 1) + ranking, gradients=runs * self.steps + ranking)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        radius = finite_radius(scene, self.card.name)
        for place, loss in enumerate(self._losses(scene)):
            for restart in range(self.restarts):
                front = Front(scene)
                if not len(front):
                    break
                start = scene.space.sample(front.x, radius, rng.child("apgd_targeted", place, restart), front.rows)
                close_in(scene, front, start, loss, self.steps)
        return Perturbed(scene.oracle.best.x)

    def _losses(self, scene: EvasionScene) -> list[Loss]:
        """The loss of each run in turn."""
        front, goal = Front(scene), scene.oracle.goal
        most = compared(scene, _candidates(self.targets))
        if not most or not len(front):
            return list(goal.objectives(self.loss))
        order = rank(scene, front, most).wanted[:, : self.targets]
        wanted = torch.zeros(len(scene.x), order.shape[1], dtype=torch.int64, device=order.device)
        wanted[front.rows] = order
        return [towards(goal, column, self.loss) for column in wanted.unbind(1)]


def _candidates(targets: int) -> int:
    """Likeliest classes whose gradients are compared to find `targets` near ones."""
    return 2 * targets + 2
