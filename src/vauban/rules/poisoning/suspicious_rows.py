"""Rows of the user's own training data look planted or wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from vauban.rules.base import Context, Numbered, assessed, interval, make, percent, rate
from vauban.rules.score import Score, scale
from vauban.schema.cards import RuleCard, Source
from vauban.schema.log import Attempt, Finding

ATTACK = "poisoning.data_audit"
FALSE_ALARMS = "poisoning.detection_fpr_clean"
EXPECTED = 0.02
"""False alarms to be expected where the check did not measure them."""
FULL_SHARE = 0.1


class SuspiciousRows:
    """The audit of the data itself."""

    card: ClassVar[RuleCard] = RuleCard(
        id="poisoning.suspicious_rows",
        name="Training rows look planted or wrong",
        meaning="Some rows of the training data do not fit their label or their neighbours: mistakes, or planted.",
        measured="The share of rows that the audit suspects, at the lower end of its interval, above the false alarms "
        "that it gives on clean data (2 % where they were not measured); 10 % above are full impact.",
        false_positives="Rare but right rows; duplicates; a class that falls into several groups.",
        remedies=(
            "Look at the rows listed as evidence, worst first, and find out where they came from.",
            "Correct or remove what is wrong, train anew, and audit again.",
        ),
        standards="poisoning.data",
        sources=(
            Source(title="Spectral Signatures in Backdoor Attacks", where="NeurIPS 2018, arXiv:1811.00636"),
            Source(
                title="Deep k-NN Defense Against Clean-Label Data Poisoning Attacks",
                where="ECCV 2020 workshops, arXiv:1909.13374",
            ),
        ),
    )

    def __call__(self, attempts: Sequence[Attempt], context: Context) -> Iterable[Finding]:
        for row in assessed(attempts, "poisoning"):
            if row[1].check == ATTACK:
                yield from self._judge(row, context)

    def _judge(self, row: Numbered, context: Context) -> Iterable[Finding]:
        attempt = row[1]
        suspects, n = _count(attempt.facts.get("suspicious")), context.data.train
        alarms = attempt.measurement(FALSE_ALARMS)
        expected = alarms.value if alarms is not None and alarms.value is not None else EXPECTED
        if not suspects or not 0 < suspects <= n or (low := interval(suspects, n)[0]) <= expected:
            return
        score = Score(scale(low, expected, expected + FULL_SHARE))
        claim = (
            f"{suspects} of {n} training rows do not fit their label or their neighbours ({percent(suspects / n)}); "
            f"on clean data the audit suspects {percent(expected)}."
        )
        numbers = [rate("poisoning.suspicious_share", suspects, n), *([alarms] if alarms is not None else [])]
        yield make(self, context, score, claim, [row], numbers, attempt.threat)


def _count(noted: object) -> int:
    """How many rows the check noted: as a number or as a list."""
    return len(noted) if isinstance(noted, list) else int(noted) if isinstance(noted, int) else 0
