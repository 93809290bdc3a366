"""A few flipped bits of the stored weights ruin the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import log10
from typing import ClassVar

from vauban.rules.base import Context, assessed, make, measured, percent, quantity
from vauban.rules.score import Score, cheap, knowledge, scale
from vauban.schema.cards import RuleCard, Source
from vauban.schema.log import Attempt, Finding

FLIPS, CONTROL = "tampering.flips_to_collapse", "tampering.random_control_accuracy"
FREE_FLIPS = 10
HARMLESS_FLIPS = 10_000
"""As many flips as this are no surprise: impact is full up to ten and falls with the logarithm to zero here."""


class BitFlips:
    """Flips until the accuracy collapses, beside as many random ones."""

    card: ClassVar[RuleCard] = RuleCard(
        id="tampering.bit_flips",
        name="A few flipped bits ruin the model",
        meaning="Whoever can change a few bits of the deployed weights (a writable file, a faulty memory row) makes the "
        "model useless, and nothing crashes.",
        measured="The smallest number of chosen bit flips after which accuracy has collapsed on rows that the search did "
        "not see: full impact up to 10 flips, none from 10,000, on a logarithmic line between. Cost takes 5 % off for each "
        "factor of ten beyond 10 flips. As many random flips are the control.",
        false_positives="Weights in read-only storage whose signature is checked on every load.",
        remedies=(
            "Seal the weights and check them before each load: vauban seal PATH, then vauban verify PATH",
            "Keep deployed weights read-only, and use memory with error correction.",
            "Watch accuracy on a few known inputs while the model serves.",
        ),
        standards="tampering.weights",
        sources=(
            Source(
                title="Bit-Flip Attack: Crushing Neural Network with Progressive Bit Search",
                where="ICCV 2019, arXiv:1903.12269",
            ),
            Source(title="Terminal Brain Damage", where="USENIX Security 2019, arXiv:1906.01017"),
        ),
    )

    def __call__(self, attempts: Sequence[Attempt], context: Context) -> Iterable[Finding]:
        for number, attempt, flips in measured(assessed(attempts, "tampering"), FLIPS):
            count = max(1.0, flips.value or 1.0)
            impact = 1 - scale(log10(count), log10(FREE_FLIPS), log10(HARMLESS_FLIPS))
            if impact <= 0:
                continue
            score = Score(impact, knowledge(context.access(attempt.check)), cheap(count, FREE_FLIPS))
            control = attempt.measurement(CONTROL)
            claim = f"{quantity(count)} chosen bit flip{'s' if count > 1 else ''} in the stored weights ruin{'' if count > 1 else 's'} the model"
            if control is not None and control.value is not None:
                claim += f"; as many random flips leave it at {percent(control.value)} accuracy"
            numbers = [m for m in (flips, control) if m is not None]
            yield make(self, context, score, f"{claim}.", [(number, attempt)], numbers, attempt.threat)
