"""What the training data looked like can be rebuilt from the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from vauban.rules.base import Context, assessed, low_end, make, measured
from vauban.rules.score import Score, knowledge, scale
from vauban.schema.cards import RuleCard, Source
from vauban.schema.log import Attempt, Finding

PSNR, BLIND = "leakage.reconstruction.psnr", "leakage.reconstruction.blind_psnr"
FULL_GAIN = 10.0
"""Decibels above the blind baseline at which the impact is full: a tenth of its error."""
UNPROVEN_FLOOR = 15.0
"""Without a blind baseline a reconstruction counts from here on."""


class Reconstruction:
    """Inversion of classes, beside the mean of the data that anybody could have guessed."""

    card: ClassVar[RuleCard] = RuleCard(
        id="leakage.reconstruction",
        name="Training data can be rebuilt from the model",
        meaning="From the model alone somebody makes inputs that come close to what it was trained on. Where a class is "
        "one person, that is the person's face or record.",
        measured="Peak signal-to-noise ratio of each rebuilt input against the nearest training row of its class, at the "
        "lower end of the interval over classes, less that of the mean of the data (without it: less 15 dB). Ten decibels "
        "above are full impact.",
        false_positives="Classes that hold many like rows: what is rebuilt is the type, not a record.",
        remedies=(
            "Train with differential privacy: vauban harden TARGET --with privacy.dp_sgd --data DATA --out DIR",
            "Keep classes large: one class for one person invites this.",
            "Return the label only, and keep the weights where they cannot be read.",
        ),
        standards="leakage.reconstruction",
        sources=(
            Source(
                title="Model Inversion Attacks that Exploit Confidence Information and Basic Countermeasures",
                where="ACM CCS 2015, doi:10.1145/2810103.2813677",
            ),
        ),
    )

    def __call__(self, attempts: Sequence[Attempt], context: Context) -> Iterable[Finding]:
        for number, attempt, psnr in measured(assessed(attempts, "leakage"), PSNR):
            blind = attempt.measurement(BLIND)
            floor = blind.value if blind is not None and blind.value is not None else UNPROVEN_FLOOR
            if low_end(psnr) <= floor:
                continue
            score = Score(scale(low_end(psnr), floor, floor + FULL_GAIN), knowledge(context.access(attempt.check)))
            claim = (
                f"Inputs rebuilt from the model come within {psnr.value:.1f} dB of training rows; the mean of the data, "
                f"which needs no model, comes within {floor:.1f} dB (higher is nearer)."
            )
            numbers = [m for m in (psnr, blind) if m is not None]
            yield make(self, context, score, claim, [(number, attempt)], numbers, attempt.threat)
