"""Modified-entropy threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vauban.core.attack import Leak, LeakScene, Price
from vauban.core.rng import Rng
from vauban.parts.membership import answers, modified_entropy
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class EntropyThreshold:
    """Calls a record a member where the modified entropy of the answer is small (Song and Mittal 2021, section 4.1.4).

    Modified entropy is 0 for a certain correct answer and grows without bound for a certain wrong one; plain entropy
    is 0 for both. One query a record.

    Departure from the source: one score for all thresholds, instead of a threshold for each class fitted on shadow
    data.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="leakage.entropy_threshold",
        name="Modified-entropy threshold",
        summary="Guesses that a record was in the training data when the model's whole answer is correct and certain.",
        needs=Access.LABELS | Access.SCORES,
        sources=(
            Source(
                title="Systematic Evaluation of Privacy Risks of Machine Learning Models",
                where="USENIX Security 2021, arXiv:2003.10595, section 4.1.4",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {}, "deep": {}}

    def price(self, classes: int | None) -> Price:
        return Price(queries=1)

    def __call__(self, scene: LeakScene, rng: Rng) -> Leak:
        outputs = answers(scene.target, scene.x)
        return Leak(scores=-modified_entropy(outputs, scene.y), queries=len(scene.x))
