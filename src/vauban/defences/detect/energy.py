"""Energy of the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vauban.core.data import Data
from vauban.defences.common import TorchModel
from vauban.defences.detect.view import Detector, View
from vauban.defences.detect.watch import JOINT, Watch
from vauban.schema.cards import DefenceCard, Source


@dataclass(frozen=True, kw_only=True)
class Energy(Watch):
    """Suspects inputs to which the model gives small logits all over: their energy, minus the logarithm of the sum of the
    exponentials, is high.

    It was made for inputs of another kind than the training data, and needs nothing to learn but a threshold. Attacks that end at
    a point of high confidence have a low energy and go unseen, without knowing of the detector at all; those that stop at the border
    between classes are seen.

    Source: Liu et al. 2020 (arXiv:2010.03759, equation 4).
    Departures: the variant that trains the model to have low energy on its training data is left out.

    Args:
        temperature: by which logits are divided, above 0.
        policy: `reject` (a class more, for refusing), `flag` or `pass`.
        alarms: share of clean rows that may be refused or flagged, between 0 and 1.
        aside: share of the training rows that the threshold is set on.
        rows: training rows looked at, at most.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="detect.energy",
        name="Energy score",
        summary="Refuses inputs on which all of the model's scores are small; confident attacks pass.",
        sources=(
            Source(
                title="Energy-based out-of-distribution detection",
                where="Liu et al., NeurIPS 2020, arXiv:2010.03759, section 3.1",
            ),
            Source(
                title="Adversarial examples are not easily detected (how detectors are attacked)",
                where="Carlini, Wagner, AISec 2017, arXiv:1705.07263, section 3",
            ),
        ),
        **JOINT,
    )

    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")

    def detector(self, model: TorchModel, data: Data) -> Detector:
        return EnergyScore(self.temperature)


class EnergyScore(Detector):
    """`-T log sum exp(logits / T)`."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, view: View) -> Tensor:
        energy = -self.temperature * (view.logits.double() / self.temperature).logsumexp(1)
        return energy[:, None]
