"""Mixup: training between pairs of rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.core.target import Outputs
from vauban.defences.common import row_losses
from vauban.defences.train.augmented import Augmented
from vauban.defences.train.inner import Inner
from vauban.parts.training import Batch
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source


@dataclass(frozen=True, kw_only=True)
class Mixup(Augmented):
    """Trains on points between pairs of rows, with both labels in the same shares. A control, not a defence.

    It smooths the answers between training rows, and costs nothing. Single steps of an attack may find less than on a
    plainly trained model; PGD or APGD break it, for nothing was trained within the threat. It is here to be compared with what a
    defence achieves at equal steps; with `adversarial`, the mixed rows are attacked.

    Source: Zhang et al. 2018 (arXiv:1710.09412, section 2).
    Departures: the loss mixes the losses of both labels, as in the authors' code, which for cross-entropy and in its gradient for
    squared error is the same as mixing the labels; Adam with a rate that falls along a cosine; training starts from the
    target's own weights unless `from_scratch`.

    Args:
        epochs: passes over the training rows.
        alpha: of the Beta distribution that the shares come from, above 0 (0.2 for ImageNet, 1 for CIFAR-10 in the paper).
        adversarial: train on the worst inputs within the threat.
        steps: gradient steps of the inner attack, 1 or more.
        batch_size: rows a step.
        rate: first learning rate of Adam.
        weight_decay: L2 penalty on the weights.
        schedule: of the rate: `constant`, `cosine` (epoch by epoch) or `cycle` (up over a fifth of the run, down to nothing).
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
        id="train.mixup",
        name="Mixup (control)",
        summary="Trains the model on mixtures of inputs; a control that attacks of several steps break.",
        needs=Access.WEIGHTS_READ | Access.DATA_READ,
        tasks=("classification", "regression"),
        adaptive=("evasion.apgd", "evasion.apgd_targeted", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="mixup: beyond empirical risk minimization",
                where="Zhang et al., ICLR 2018, arXiv:1710.09412, section 2",
            ),
        ),
    )

    alpha: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, got {self.alpha}: at 0 nothing would be mixed")

    def loss(self, inner: Inner, batch: Batch) -> Tensor:
        """Of both labels, in the shares of the mixture."""
        draw = inner.rng.numpy("mixup")
        share = float(draw.beta(self.alpha, self.alpha))
        other = torch.from_numpy(draw.permutation(len(batch.x))).to(batch.x.device)
        mixed = replace(batch, x=share * batch.x + (1 - share) * batch.x[other])

        def both(outputs: Outputs) -> Tensor:
            return share * row_losses(outputs, batch.y) + (1 - share) * row_losses(outputs, batch.y[other])

        return self.attacked(inner, mixed, both)

    def facts(self) -> dict[str, Any]:
        return {"alpha": self.alpha, **super().facts()}
