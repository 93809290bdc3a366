"""Auto-PGD towards the nearest other classes, one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.ascent import ascend
from vauban.attacks.evasion.front import Front, finite_radius
from vauban.attacks.evasion.settings import at_least, one_of
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.goal import Goal
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.core.target import Outputs
from vauban.parts import losses
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

PairLoss = Callable[[Outputs, Tensor, Tensor], Tensor]


def _difference(outputs: Outputs, true: Tensor, wanted: Tensor) -> Tensor:
    z = losses.as_logits(outputs)
    return (z.gather(1, wanted[:, None]) - z.gather(1, true[:, None])).squeeze(1)


def _log_likelihood(outputs: Outputs, true: Tensor, wanted: Tensor) -> Tensor:
    return losses.log_likelihood(outputs, wanted)


PAIR_LOSSES: Mapping[str, PairLoss] = {"dlr": losses.dlr_between, "margin": _difference, "ce": _log_likelihood}


@dataclass(frozen=True, kw_only=True)
class TargetedAPGD:
    """Auto-PGD run towards each of the classes that the model finds likeliest after the true one.

    A row leaves as soon as any class but the true one is reached. Under a targeted goal there is one run, towards the
    wanted class.

    Source: Croce and Hein 2020 (arXiv:2003.01690, section 4 and equation 7).
    Departures: classes are ranked once, by the scores of the clean input; those of `ascent.ascend`; with three classes
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
        """`steps` gradients a class and run, one query more for each, and one for the ranking."""
        runs = self.restarts * min(self.targets, (classes or self.targets + 1) - 1)
        return Price(queries=1 + runs * (self.steps + 1), gradients=runs * self.steps)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        radius = finite_radius(scene, self.card.name)
        for place, loss in enumerate(self._losses(scene)):
            for restart in range(self.restarts):
                front = Front(scene)
                if not len(front):
                    break
                start = scene.space.sample(front.x, radius, rng.child("apgd_targeted", place, restart), front.rows)
                ascend(scene, front, start, loss, self.steps)
        return Perturbed(scene.oracle.best.x)

    def _losses(self, scene: EvasionScene) -> list[Loss]:
        """The loss of each run in turn."""
        goal, rows = scene.oracle.goal, scene.oracle.rows
        if goal.targeted or not len(rows):
            return list(goal.objectives(self.loss))
        scores = scene.oracle.scores(scene.x[rows], rows)
        true = goal.labels.to(scores.device)[rows]
        ranking = scores.scatter(1, true[:, None], -torch.inf).argsort(dim=1, descending=True)
        wanted = torch.zeros(len(scene.x), scores.shape[1] - 1, dtype=torch.int64, device=scores.device)
        wanted[rows] = ranking[:, :-1]
        return [self._towards(goal, column) for column in wanted.unbind(1)[: self.targets]]

    def _towards(self, goal: Goal, wanted: Tensor) -> Loss:
        pair = PAIR_LOSSES[self.loss]

        def loss(outputs: Outputs, rows: Tensor) -> Tensor:
            true = goal.labels.to(rows.device)[rows]
            return pair(outputs, true, wanted[rows])

        return loss
