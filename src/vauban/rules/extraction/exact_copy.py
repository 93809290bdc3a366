"""The parameters themselves can be read off the answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from vauban.rules.base import Context, assessed, make, measured, quantity
from vauban.rules.score import Score, cheap, knowledge
from vauban.schema.cards import RuleCard, Source
from vauban.schema.log import Attempt, Finding

ERROR, QUERIES = "extraction.max_parameter_error", "extraction.queries"
EXACT = 1e-3
"""Largest difference of any parameter up to which a copy counts as exact."""
FREE_QUERIES = 10_000


class ExactCopy:
    """Recovered parameters against the true ones."""

    card: ClassVar[RuleCard] = RuleCard(
        id="extraction.exact_copy",
        name="The model can be copied exactly through its answers",
        meaning="A handful of questions gives away every parameter. The copy costs nothing to run, and every white-box "
        "attack works on it.",
        measured="The largest difference between a recovered and a true parameter; up to 0.001 counts as exact, with "
        "full impact. Cost is the number of queries: 10,000 are free.",
        false_positives="A model whose parameters are public anyway.",
        remedies=(
            "Return labels or rounded scores: full precision is what makes the equations solvable.",
            "Limit queries per user and log inputs that lie far from real data.",
            "Do not count on secret weights: treat every white-box finding of this report as open to any user.",
        ),
        standards="extraction",
        sources=(
            Source(
                title="Stealing Machine Learning Models via Prediction APIs",
                where="USENIX Security 2016, arXiv:1609.02943",
            ),
        ),
    )

    def __call__(self, attempts: Sequence[Attempt], context: Context) -> Iterable[Finding]:
        for number, attempt, error in measured(assessed(attempts, "extraction"), ERROR):
            if error.value is None or error.value > EXACT or attempt.facts.get("linear") is False:
                continue
            queries = attempt.measurement(QUERIES)
            spent = queries.value if queries is not None and queries.value is not None else attempt.cost.queries
            score = Score(1.0, knowledge(context.access(attempt.check)), cheap(spent, FREE_QUERIES))
            claim = f"{quantity(spent)} queries give away every parameter of the model; the largest error of the copy is {error.value:.1g}."
            agreement = attempt.measurement("extraction.agreement")
            numbers = [m for m in (error, queries, agreement) if m is not None]
            yield make(self, context, score, claim, [(number, attempt)], numbers, attempt.threat)
