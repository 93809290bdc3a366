"""Robust membership inference attack (RMIA)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from vauban.core.attack import Leak, LeakScene, Price
from vauban.core.rng import Rng
from vauban.core.target import Outputs
from vauban.parts.membership import References, answers, log_likelihood, references_of, rmia, rmia_log_ratio
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class RMIA:
    """Pairwise likelihood ratios of a record against the population (Zarifzadeh et al. 2024).

    Score: the share of population records z with [p(x | target) / p(x)] / [p(z | target) / p(z)] >= gamma, where
    p(x) comes from reference models. The population's ratios are sorted once and every record is looked up, so that
    the cost is O((n + z) log z) and not n x z.

    Departures from the source: the population is the audited records themselves, whose membership the attacker does
    not know (the paper draws further ones; with one population for all records the order of the scores does not
    depend on it, only their ties do); p is the softmax probability, without the paper's optional margin forms and
    augmented queries. In a regression p is exp(-error^2 / (2 s^2)) with s^2 the mean squared error of the models
    without the record.
    """

    references: int = 16
    """Reference models, an even number: each record is in the training data of half of them."""
    mode: Literal["online", "offline"] = "online"
    gamma: float = 2.0
    """How many times more likely than a population record, at least 1."""
    a: float = 0.3
    """Offline only: p(x) = (1 + a) / 2 * mean without x + (1 - a) / 2; in [0, 1]."""

    card: ClassVar[AttackCard] = AttackCard(
        id="leakage.rmia",
        name="Robust membership inference (RMIA)",
        summary="Asks how much more the model favours a record than it favours the rest of the population.",
        needs=Access.LABELS | Access.SCORES | Access.DATA_READ | Access.TRAINING,
        tasks=("classification", "regression"),
        sources=(
            Source(
                title="Low-Cost High-Power Membership Inference Attacks",
                where="ICML 2024, arXiv:2312.03262, section 3 and appendix B.2",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"references": 4}, "deep": {"references": 64}}

    def __post_init__(self) -> None:
        if self.references < 2 or self.references % 2:
            raise ValueError(f"references must be an even number of at least 2, got {self.references}")
        if self.mode not in ("online", "offline"):
            raise ValueError(f"mode must be online or offline, got {self.mode!r}")
        if not self.gamma >= 1:
            raise ValueError(f"gamma must be at least 1, got {self.gamma}")
        if not 0 <= self.a <= 1:
            raise ValueError(f"a must be within [0, 1], got {self.a}")

    def price(self, classes: int | None) -> Price:
        return Price(queries=1, trainings=self.references)

    def __call__(self, scene: LeakScene, rng: Rng) -> Leak:
        references = references_of(scene, self.references)
        outputs = answers(scene.target, scene.x)
        signals = references.log_likelihoods(scene.y)
        scale = _scale(outputs, references, signals)
        ratios = rmia_log_ratio(
            log_likelihood(outputs, scene.y) * scale,
            signals * scale,
            references.inside,
            online=self.mode == "online",
            a=self.a,
        )
        facts = {"references": len(references), "mode": self.mode}
        return Leak(scores=rmia(ratios, ratios, self.gamma), queries=len(scene.x), facts=facts)


def _scale(outputs: Outputs, references: References, signals: Any) -> float:
    """1 for log-probabilities; 1 / (2 s^2) for squared errors, s^2 their mean over the models without the record."""
    if outputs.kind != "values":
        return 1.0
    return 0.5 / max(float(-signals[~references.inside].mean()), 1e-12)
