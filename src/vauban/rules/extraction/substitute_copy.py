"""A model trained on the answers does the same job."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from vauban.rules.base import Context, assessed, low_end, make, measured, percent, quantity
from vauban.rules.extraction.exact_copy import FREE_QUERIES, QUERIES
from vauban.rules.score import Score, cheap, knowledge, scale
from vauban.schema.cards import RuleCard, Source
from vauban.schema.log import Attempt, Finding

ATTACK, AGREEMENT = "extraction.substitute", "extraction.agreement"
HARMLESS, FULL = 0.6, 0.98


class SubstituteCopy:
    """Agreement of the copy with the original on inputs that neither was trained on."""

    card: ClassVar[RuleCard] = RuleCard(
        id="extraction.substitute_copy",
        name="A copy trained on the answers does the same job",
        meaning="Somebody who only asks questions trains a model of his own that answers as yours does: the work that went "
        "into yours is gone, and attacks can be prepared on the copy in peace.",
        measured="The share of unseen inputs on which copy and original agree, at the lower end of its interval: 60 % is "
        "harmless, 98 % full impact. Knowledge counts the real rows that the thief asked with. Cost is the number of "
        "queries: 10,000 are free.",
        false_positives="An easy task: whoever has labelled data gets the same agreement without your model.",
        remedies=(
            "Limit queries per user and watch for inputs that cover the space evenly.",
            "Return labels or rounded scores: copies then need several times the queries.",
            "Mark the model, so that a copy can be recognised afterwards.",
        ),
        standards="extraction",
        sources=(
            Source(
                title="Practical Black-Box Attacks against Machine Learning", where="AsiaCCS 2017, arXiv:1602.02697"
            ),
            Source(title="Knockoff Nets", where="CVPR 2019, arXiv:1812.02766"),
        ),
    )

    def __call__(self, attempts: Sequence[Attempt], context: Context) -> Iterable[Finding]:
        for number, attempt, agreement in measured(assessed(attempts, "extraction"), AGREEMENT):
            # Other thefts also report an agreement, of a formula or a tangent: no copy was trained there.
            if attempt.check != ATTACK or low_end(agreement) <= HARMLESS:
                continue
            queries = attempt.measurement(QUERIES)
            spent = queries.value if queries is not None and queries.value is not None else attempt.cost.queries
            impact = scale(low_end(agreement), HARMLESS, FULL)
            held = {"data_read"} if attempt.facts.get("rows") else set()
            score = Score(impact, knowledge(context.access(attempt.check) | held), cheap(spent, FREE_QUERIES))
            claim = (
                f"A model trained on {quantity(spent)} answers agrees with the original on "
                f"{percent(agreement.value or 0)} of inputs that it never asked about."
            )
            accuracy = attempt.measurement("extraction.accuracy")
            numbers = [m for m in (agreement, accuracy, queries) if m is not None]
            yield make(self, context, score, claim, [(number, attempt)], numbers, attempt.threat)
