"""Rows of the user's own training data look planted or wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from vauban.rules.base import Context, Numbered, assessed, interval, make, percent, rate
from vauban.rules.poisoning.facts import noted
from vauban.rules.score import Score, scale
from vauban.schema.cards import RuleCard, Source
from vauban.schema.log import Attempt, Finding

ATTACK = "poisoning.data_audit"
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
        "that it gives on clean data at most (2 % where that is not known); 10 % above are full impact.",
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
        suspects, n = int(noted(attempt, "suspicious_count") or 0), context.data.train
        expected = noted(attempt, "expected_rate_at_most")
        expected = EXPECTED if expected is None else expected
        if not suspects or not 0 < suspects <= n or (low := interval(suspects, n)[0]) <= expected:
            return
        score = Score(scale(low, expected, expected + FULL_SHARE))
        claim = (
            f"{suspects} of {n} training rows do not fit their label or their neighbours ({percent(suspects / n)}); "
            f"on clean data the audit would suspect {percent(expected)} at most."
        )
        numbers = [rate("poisoning.suspicious_share", suspects, n)]
        yield make(self, context, score, claim, [row], numbers, attempt.threat)
