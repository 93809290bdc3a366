"""Dispersion of attributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vauban.core.data import Data
from vauban.defences.common import TorchModel, placement
from vauban.defences.detect.view import Detector, View
from vauban.defences.detect.watch import JOINT, Watch
from vauban.schema.cards import DefenceCard, Source

TINY = 1e-30
"""Added before the logarithm is taken."""


@dataclass(frozen=True, kw_only=True)
class DispersionDetector(Watch):
    """Suspects inputs whose answer rests on their parts very unevenly, or not as that of clean inputs does.

    Each part of the input in turn is set to zero (the nearest valid value), and what the answered class loses is that part's
    attribution; the score is the interquartile range of the attributions, in probability. An answer costs a pass a part. The attack that descends the
    dispersion, too, is the one to fear, and so is plain confidence (Hosseini et al. 2019, arXiv:1907.12138, broke statistical
    detectors by margins of logits).

    Source: Yang et al. 2020 (arXiv:1906.03499, ML-LOO, section 3).
    Departures: windows of pixels (groups of neighbouring features) instead of single ones, for a pass a pixel is dear; the score
    is the logarithm of the range, which orders inputs alike and has a slope where probabilities are saturated; only the model's output, none of
    its hidden layers, so that there is nothing to weigh by a regression on attacks.

    Args:
        parts: pieces that a picture's sides (a row's features) are cut into; a side of p pixels has p at most.
        policy: `reject` (a class more, for refusing), `flag` or `pass`.
        alarms: share of clean rows that may be refused or flagged, between 0 and 1.
        aside: share of the training rows that the threshold is set on.
        rows: training rows looked at, at most.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="detect.dispersion",
        name="Attribution dispersion (ML-LOO)",
        summary="Refuses inputs whose answer rests on their parts otherwise than that of clean ones; falls to attacks on both.",
        sources=(
            Source(
                title="ML-LOO: detecting adversarial examples with feature attribution",
                where="Yang et al., AAAI 2020, arXiv:1906.03499, section 3",
            ),
            Source(
                title="Are odds really odd? Bypassing statistical detection of adversarial examples (how such tests are broken)",
                where="Hosseini, Kannan, Poovendran, 2019, arXiv:1907.12138",
            ),
        ),
        **JOINT,
    )
    counts: ClassVar[tuple[str, ...]] = ("parts",)

    parts: int = 4

    def detector(self, model: TorchModel, data: Data) -> Detector:
        low, high = model.domain.low, model.domain.high
        zero = torch.zeros(data.shape)
        zero = zero if low is None else torch.maximum(zero, torch.as_tensor(low))
        zero = zero if high is None else torch.minimum(zero, torch.as_tensor(high))
        return Dispersion(pieces(data.shape, self.parts), zero, placement(model.module))


class Dispersion(Detector):
    """The logarithm of the interquartile range, over pieces, of what the answered class's probability loses without each."""

    masks: Tensor
    zero: Tensor

    def __init__(self, masks: Tensor, zero: Tensor, where: tuple[torch.device, torch.dtype]) -> None:
        super().__init__()
        self.keep(masks=masks.to(where[0]), zero=zero.to(*where))

    def forward(self, view: View) -> Tensor:
        answered = view.logits.argmax(1, keepdim=True)

        def probability(view: View) -> Tensor:
            return view.logits.double().softmax(1).gather(1, answered).squeeze(1)

        without = [probability(view.of(torch.where(mask, self.zero, view.x))) for mask in self.masks]
        # what is lost differs from what is left by a constant a row, which no spread sees
        return (spread(torch.stack(without, 1)) + TINY).log()[:, None]


def spread(values: Tensor) -> Tensor:
    """Interquartile range `[n]` of the entries of rows `[n, k]`."""
    return values.quantile(0.75, dim=1) - values.quantile(0.25, dim=1)


def pieces(shape: tuple[int, ...], parts: int) -> Tensor:
    """Bool `[k, *shape]`: windows that cut each of the last two sides (the only side of a row) into about `parts`, all channels."""
    sides = shape[-2:] if len(shape) > 1 else shape
    cuts = [torch.arange(side).mul(min(parts, side)).div(side, rounding_mode="floor") for side in sides]
    number = cuts[0] if len(cuts) == 1 else cuts[0][:, None] * (int(cuts[1].max()) + 1) + cuts[1]
    masks = torch.stack([number == piece for piece in range(int(number.max()) + 1)])
    lead_ = (1,) * (len(shape) - len(sides))
    return masks.reshape(len(masks), *lead_, *sides).expand(-1, *shape).clone()
