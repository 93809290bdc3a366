"""Detection by feature squeezing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vauban.core.data import Data
from vauban.defences.common import TorchModel
from vauban.defences.detect.view import Detector, View
from vauban.defences.detect.watch import JOINT, Watch
from vauban.defences.preprocess.front import Through, sides
from vauban.defences.preprocess.squeeze import Squeezer, check
from vauban.schema.cards import DefenceCard, Source
from vauban.schema.errors import NotOffered

TINY = 1e-30
"""Added before the logarithm is taken."""


@dataclass(frozen=True, kw_only=True)
class SqueezingDetector(Watch):
    """Suspects inputs to which the model answers otherwise once they are squeezed: rounded to few grey levels, or smoothed.

    The score is the largest L1 distance between the probabilities for the input and for a squeezed copy. An attacker who
    takes the squeezers into his own search finds inputs on which both answers are wrong alike (Carlini and Wagner 2017; He et al.
    2017, arXiv:1706.04701); gradients go straight through the squeezers here, so that attacks on the target do so.

    Source: Xu et al. 2018 (arXiv:1704.01155, sections III and V).
    Departures: no non-local means among the squeezers; the score is the logarithm of the paper's, which orders inputs
    alike and has a slope where probabilities are saturated.

    Args:
        bits: rounds features to 2^bits levels, 1 to 8; 0 for no rounding.
        median: side of the window of which the median is taken, 2 or more; 0 for none. Rows that are no pictures are only rounded.
        policy: `reject` (a class more, for refusing), `flag` or `pass`.
        alarms: share of clean rows that may be refused or flagged, between 0 and 1.
        aside: share of the training rows that the threshold is set on.
        rows: training rows looked at, at most.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="detect.squeezing",
        name="Detection by feature squeezing",
        summary="Refuses inputs that are answered otherwise once rounded or smoothed; attacks that know it answer alike.",
        sources=(
            Source(
                title="Feature squeezing: detecting adversarial examples in deep neural networks",
                where="Xu, Evans, Qi, NDSS 2018, arXiv:1704.01155, sections III and V",
            ),
            Source(
                title="Adversarial example defenses: ensembles of weak defenses are not strong (breaks it)",
                where="He et al., USENIX WOOT 2017, arXiv:1706.04701",
            ),
            Source(
                title="Adversarial examples are not easily detected (how detectors are attacked)",
                where="Carlini, Wagner, AISec 2017, arXiv:1705.07263, section 3",
            ),
        ),
        **JOINT,
    )

    bits: int = 2
    median: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.bits, self.median)

    def detector(self, model: TorchModel, data: Data) -> Detector:
        pictures = len(data.shape) >= 2 and min(data.shape[-2:]) >= max(self.median, 1)
        squeezers = [Squeezer(*sides(model, data), self.bits, 0)] if self.bits else []
        squeezers += [Squeezer(*sides(model, data), 0, self.median)] if self.median and pictures else []
        if not squeezers:
            raise NotOffered(
                f"detect.squeezing has no window of {self.median} x {self.median} pixels in rows of shape {data.shape}: set bits."
            )
        return Squeezing(squeezers)


class Squeezing(Detector):
    """The logarithm of the largest L1 distance between the probabilities with and without squeezing."""

    def __init__(self, squeezers: list[Squeezer]) -> None:
        super().__init__()
        self.squeezers = nn.ModuleList(squeezers)

    def forward(self, view: View) -> Tensor:
        here = view.logits.double().softmax(1)
        moved = [view.of(Through.apply(view.x, squeezer)).logits.double().softmax(1) for squeezer in self.squeezers]
        apart = torch.stack([(there - here).abs().sum(1) for there in moved], 1)
        return (apart.amax(1, keepdim=True) + TINY).log()
