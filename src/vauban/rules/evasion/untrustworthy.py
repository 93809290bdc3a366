"""The evaluation does not believe its own number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from vauban.rules.base import Context, assessed, by_threat, make
from vauban.rules.score import Score
from vauban.schema.cards import RuleCard, Source
from vauban.schema.log import Attempt, Finding


class Untrustworthy:
    """Doubts that stayed after the evaluation reacted to them."""

    card: ClassVar[RuleCard] = RuleCard(
        id="evasion.untrustworthy",
        name="The robustness number cannot be trusted",
        meaning="The attacks ran, but signs say that they were hindered rather than beaten: broken gradients, "
        "randomness, a weak attack that beats a strong one. The model may be far weaker than measured, so nobody "
        "should call it robust.",
        measured="Each assessed evasion check carries doubts with a measured value and a threshold; this fires on those "
        "with verdict fail. The score is a fixed 5: the size of the danger is unknown.",
        false_positives="A tiny sample can look like this by chance: audit more samples.",
        remedies=(
            "Follow the remedy beside each doubt, then audit again.",
            "Remove whatever hides the gradient (rounding, randomness, a saturated softmax) for the audit, or attack "
            "through it with the adaptive attacks that the defence names.",
        ),
        standards="evasion.measurement",
        sources=(
            Source(title="Obfuscated Gradients Give a False Sense of Security", where="ICML 2018, arXiv:1802.00420"),
            Source(title="Indicators of Attack Failure", where="NeurIPS 2022, arXiv:2106.09947"),
        ),
    )

    def __call__(self, attempts: Sequence[Attempt], context: Context) -> Iterable[Finding]:
        doubtful = [r for r in assessed(attempts, "evasion") if any(d.verdict == "fail" for d in r[1].doubts)]
        for threat, found in by_threat(doubtful).items():
            texts = dict.fromkeys(d.text.rstrip(".") for _, a in found for d in a.doubts if d.verdict == "fail")
            claim = f"Do not call this model robust within {threat}: {'; '.join(texts)}."
            numbers = [m for _, a in found if (m := a.measurement("evasion.robust_accuracy")) is not None]
            yield make(self, context, Score(impact=0.5), claim, found, numbers[:3], threat)
