"""Loss threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vauban.core.attack import Leak, LeakScene, Price
from vauban.core.rng import Rng
from vauban.parts.membership import answers, log_likelihood
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class LossThreshold:
    """Calls a record a member where the model's loss on it is small (Yeom et al. 2018, Adversary 2).

    Score: log-probability of the true class; minus the squared error in a regression. One query a record.

    Departure from the source: the threshold is not fixed at the mean training loss; the score is reported over all
    thresholds.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="leakage.loss_threshold",
        name="Loss threshold",
        summary="Guesses that a record was in the training data when the model is unusually sure of its true label.",
        needs=Access.LABELS | Access.SCORES,
        tasks=("classification", "regression"),
        sources=(
            Source(
                title="Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting",
                where="CSF 2018, arXiv:1709.01604, Adversary 2",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {}, "deep": {}}

    def price(self, classes: int | None) -> Price:
        return Price(queries=1)

    def __call__(self, scene: LeakScene, rng: Rng) -> Leak:
        outputs = answers(scene.target, scene.x)
        return Leak(scores=log_likelihood(outputs, scene.y), queries=len(scene.x))
