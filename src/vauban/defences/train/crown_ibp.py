"""Certified training by linear bounds first, by intervals at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vauban.defences.train.ibp import IBPTraining
from vauban.defences.train.inner import Inner
from vauban.parts.spans import lowest_gaps
from vauban.parts.training import Batch
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source


@dataclass(frozen=True, kw_only=True)
class CrownIBPTraining(IBPTraining):
    """As `train.ibp`, with bounds that are tight while the model has not learnt yet to have tight intervals.

    Intervals of an untrained model are so loose that training by them alone is unsteady. Here the worst scores are at first
    those of straight lines around every activation, pulled back from the scores to the input, with the activations' own
    intervals; the mixture moves to plain intervals while the radius grows. The lines cost a pass a class, so that the first
    part of the run takes several times as long as with `train.ibp`.

    Source: Zhang et al. 2020 (arXiv:1906.06316, sections 3.2 and 4; the variant that goes from 1 to 0).
    Departures: those of `train.ibp`; lines are pulled through ReLUs, leaky ReLUs and everything linear, and end in intervals at other
    activations and at max pooling. In linf only.

    Args:
        epochs: passes over the training rows.
        lines: weight of the linear bounds at the beginning, above 0 to 1; at the end it is 0.
        share: of the worst-case loss at the end, above 0 to 1 (0.5 in the paper's more accurate models, 1 in the others).
        wider: radius that is trained for over that of the threat, 1 or more: training for more proves more on other inputs.
        batch_size: rows a step.
        rate: first learning rate of Adam.
        weight_decay: L2 penalty on the weights.
        schedule: of the rate: `constant`, `cosine` (epoch by epoch) or `cycle` (up over a fifth of the run, down to nothing).
        ramp: share of the run in which radius and share grow to their full size and lines give way to intervals, in [0, 1].
        average: decay, a step, of averaged weights, which are then the result; 0 for none.
        validation: share of the training rows that are kept aside; the epoch that proves most of them is the result.
        patience: epochs without a better one after which training ends; 0 for never.
        accumulate: parts in which the gradient of a batch is summed up, to save memory; the step is that of the whole batch.
        precision: of the passes, `float32` or `bf16`, which is faster on GPUs that have it; weights stay in float32.
        crop: pictures are moved by up to so many pixels, at random and anew every epoch; their edge goes on where that leaves a gap.
        flip: half of the pictures are mirrored at random, left to right.
        from_scratch: start from fresh weights.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="train.crown_ibp",
        name="Certified training (CROWN-IBP)",
        summary="Trains the model so that its answers within the threat can be proved, by linear bounds first and intervals later.",
        needs=Access.WEIGHTS_READ | Access.DATA_READ,
        tasks=("classification",),
        adaptive=("evasion.apgd", "evasion.apgd_targeted", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="Towards stable and efficient training of verifiably robust neural networks",
                where="Zhang et al., ICLR 2020, arXiv:1906.06316, sections 3.2 and 4",
            ),
        ),
    )

    lines: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.lines <= 1:
            raise ValueError(f"lines is a weight above 0 to 1, got {self.lines}: at 0 it would be train.ibp")

    def gaps(self, inner: Inner, batch: Batch, radius: float) -> Tensor:
        """Those of lines and of intervals, mixed: each holds, so that the mixture does."""
        scores, weight = self.bounded(inner, batch, radius), self.lines * (1 - self.grown(batch))
        loose = lowest_gaps(scores, batch.y)
        return loose if weight <= 0 else weight * lowest_gaps(scores, batch.y, linear=True) + (1 - weight) * loose

    def facts(self) -> dict[str, Any]:
        return {"lines": self.lines, **super().facts()}
