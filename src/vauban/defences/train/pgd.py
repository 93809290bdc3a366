"""Adversarial training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vauban.defences.common import row_losses
from vauban.defences.train.course import Searching
from vauban.defences.train.inner import Inner
from vauban.parts.training import Batch
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source


@dataclass(frozen=True, kw_only=True)
class PGDTraining(Searching):
    """Trains a copy of the model on the worst inputs within the threat: min over weights of max over changes.

    The inner maximisation is PGD from a random point, `steps` steps of 2.5 x radius / steps each, with the model in
    evaluation mode and input gradients alone; the outer step then updates the weights on the last iterate in training
    mode, so that batch normalisation learns the statistics of adversarial inputs only. Works in every continuous space
    (linf, l2, l1), for classification (cross-entropy) and regression (squared error).

    Source: Madry et al. 2018 (arXiv:1706.06083, sections 2.1 and 5).
    Departures: training starts from the target's own weights unless `from_scratch`, and the radius grows linearly over
    the first `ramp` of the run, for both make a small model robust in far fewer epochs; Adam with a rate that falls
    along a cosine instead of SGD with steps; `clean` mixes in the loss on the unchanged inputs (Goodfellow et al.
    2015, arXiv:1412.6572, section 6), none by default. The inner attack's model is in evaluation mode, as in common
    practice since; the paper does not say.

    Args:
        epochs: passes over the training rows.
        steps: gradient steps of the inner attack, 1 or more.
        recall: begin it at the change that was found for a row in the epoch before, so that two or three steps, as small as those of
            seven, find what seven would (Zheng et al. 2020, arXiv:1912.11969).
        batch_size: rows a step.
        rate: first learning rate of Adam.
        weight_decay: L2 penalty on the weights.
        schedule: of the rate: `constant`, `cosine` (epoch by epoch) or `cycle` (up over a fifth of the run, down to nothing).
        clean: share of the clean loss, in [0, 1).
        ramp: share of the run in which the radius grows to its full size, in [0, 1].
        average: decay, a step, of averaged weights, which are then the result; 0 for none.
        validation: share of the training rows that are kept aside; the epoch that is most robust on them is the result.
        patience: epochs without a better one after which training ends; 0 for never.
        accumulate: parts in which the gradient of a batch is summed up, to save memory; the step is that of the whole batch.
        search: precision of the inner attack, `float32` or `bf16`, which takes half the time on processors that have it.
        precision: of the passes, `float32` or `bf16`, which is faster on GPUs that have it; weights stay in float32.
        crop: pictures are moved by up to so many pixels, at random and anew every epoch; their edge goes on where that leaves a gap.
        flip: half of the pictures are mirrored at random, left to right.
        from_scratch: start from fresh weights.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="train.pgd",
        name="Adversarial training (PGD)",
        summary="Trains the model on inputs that were changed to fool it, so that small changes no longer do.",
        needs=Access.WEIGHTS_READ | Access.DATA_READ,
        tasks=("classification", "regression"),
        adaptive=("evasion.apgd", "evasion.apgd_targeted", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="Towards deep learning models resistant to adversarial attacks",
                where="Madry et al., ICLR 2018, arXiv:1706.06083, sections 2.1 and 5",
            ),
        ),
    )

    clean: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.clean < 1:
            raise ValueError(f"clean is a share in [0, 1), got {self.clean}: 1 would be no adversarial training at all")

    def loss(self, inner: Inner, batch: Batch) -> Tensor:
        """That of the worst inputs, with a share of that of the clean ones."""
        loss = row_losses(inner.answer(self.worst(inner, batch)), batch.y).mean()
        if self.clean == 0:
            return loss
        return (1 - self.clean) * loss + self.clean * row_losses(inner.answer(batch.x), batch.y).mean()

    def facts(self) -> dict[str, Any]:
        return {"steps": self.steps, "clean": self.clean}
