"""Likelihood-ratio attack (LiRA)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from vauban.core.attack import Leak, LeakScene, Price
from vauban.core.rng import Rng
from vauban.parts.membership import Variance, answers, lira, margin, references_of
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class LiRA:
    """Compares the target's confidence on a record with models trained with and without it (Carlini et al. 2022).

    The confidence is the logit of the true class's probability, computed as the true logit minus the log-sum-exp of
    the others; in a regression it is minus the squared error. Score, online: log-likelihood ratio of two Gaussians;
    offline: log Phi of the standardised confidence under the models without the record (tail, not density).

    Departures from the source: the variance is by default shrunk towards the pooled one (`variance`, `prior`), which
    serves where there are few reference models; one query a record (no augmented queries); the two Gaussians' means
    are taken as they are, with no median.
    """

    references: int = 16
    """Reference models, an even number: each record is in the training data of half of them."""
    mode: Literal["online", "offline"] = "online"
    variance: Variance = "shrunk"
    prior: float = 16.0
    """How many observations the pooled variance is worth."""

    card: ClassVar[AttackCard] = AttackCard(
        id="leakage.lira",
        name="Likelihood-ratio attack (LiRA)",
        summary=(
            "Trains models with and without each record, and asks which of the two kinds the model under test "
            "resembles on it."
        ),
        needs=Access.LABELS | Access.SCORES | Access.DATA_READ | Access.TRAINING,
        tasks=("classification", "regression"),
        sources=(
            Source(
                title="Membership Inference Attacks From First Principles",
                where="IEEE S&P 2022, arXiv:2112.03570, Algorithm 1 and section V-B",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"references": 4}, "deep": {"references": 64}}

    def __post_init__(self) -> None:
        if self.references < 2 or self.references % 2:
            raise ValueError(f"references must be an even number of at least 2, got {self.references}")
        if self.mode not in ("online", "offline"):
            raise ValueError(f"mode must be online or offline, got {self.mode!r}")
        if self.variance not in ("shrunk", "fixed", "record"):
            raise ValueError(f"variance must be shrunk, fixed or record, got {self.variance!r}")
        if not self.prior >= 0:
            raise ValueError(f"prior must be 0 or more, got {self.prior}")

    def price(self, classes: int | None) -> Price:
        return Price(queries=1, trainings=self.references)

    def __call__(self, scene: LeakScene, rng: Rng) -> Leak:
        references = references_of(scene, self.references)
        scores = lira(
            margin(answers(scene.target, scene.x), scene.y),
            references.margins(scene.y),
            references.inside,
            online=self.mode == "online",
            variance=self.variance,
            prior=self.prior,
        )
        return Leak(scores=scores, queries=len(scene.x), facts={"references": len(references), "mode": self.mode})
