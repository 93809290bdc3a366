"""Adversarial training with a single step, and an eye on what makes that fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.defences.common import only_inputs, row_losses
from vauban.defences.train.course import AdversarialTraining
from vauban.defences.train.inner import Inner
from vauban.parts.training import Batch
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source


@dataclass(frozen=True, kw_only=True)
class FastTraining(AdversarialTraining):
    """Trains on inputs changed by strong noise and one step up the slope: a fourth of the passes of `train.pgd` or less.

    Single steps can fail all at once (catastrophic overfitting): the model learns to answer the single step, and nothing else, within an
    epoch. Rows that are kept aside are attacked with ten steps after every epoch; where their accuracy falls to half of
    the best, training ends with the weights of the best epoch.

    Source: de Jorge et al. 2022 (arXiv:2202.01181, N-FGSM, algorithm 1); Wong, Rice and Kolter 2020 (arXiv:2001.03994) for
    the single step and for telling its failure.
    Departures: noise and step are measured by the space, so that L2 and L1 work, too, and the sum is kept inside the box alone, not the
    ball, as in N-FGSM; the rest is as in `train.pgd`.

    Args:
        epochs: passes over the training rows.
        noise: radius of the noise before the step, in radii (2 in the paper); 1 or less keeps to the FGSM of 2020.
        stride: length of the step, in radii (1 for N-FGSM, 1.25 in 2020).
        batch_size: rows a step.
        rate: first learning rate of Adam.
        weight_decay: L2 penalty on the weights.
        schedule: of the rate: `constant`, `cosine` (epoch by epoch) or `cycle` (up over a fifth of the run, down to nothing).
        ramp: share of the run in which the radius grows to its full size, in [0, 1].
        average: decay, a step, of averaged weights, which are then the result; 0 for none.
        validation: share of the training rows that are kept aside to judge epochs; at 0 nothing tells when the single step fails.
        patience: epochs without a better one after which training ends; 0 for never.
        accumulate: parts in which the gradient of a batch is summed up, to save memory; the step is that of the whole batch.
        precision: of the passes, `float32` or `bf16`, which is faster on GPUs that have it; weights stay in float32.
        crop: pictures are moved by up to so many pixels, at random and anew every epoch; their edge goes on where that leaves a gap.
        flip: half of the pictures are mirrored at random, left to right.
        from_scratch: start from fresh weights.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="train.fast",
        name="Fast adversarial training",
        summary="Trains the model on inputs changed by noise and one step, and stops when that begins to fail.",
        needs=Access.WEIGHTS_READ | Access.DATA_READ,
        tasks=("classification", "regression"),
        adaptive=("evasion.apgd", "evasion.apgd_targeted", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="Make some noise: reliable and efficient single-step adversarial training",
                where="de Jorge et al., NeurIPS 2022, arXiv:2202.01181, algorithm 1",
            ),
            Source(
                title="Fast is better than free: revisiting adversarial training",
                where="Wong, Rice, Kolter, ICLR 2020, arXiv:2001.03994",
            ),
        ),
    )

    watched: ClassVar[bool] = True

    noise: float = 2.0
    stride: float = 1.0
    validation: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise < 0:
            raise ValueError(f"noise must not be negative, got {self.noise}")
        if not self.stride > 0:
            raise ValueError(f"stride must be above 0, got {self.stride}")

    def loss(self, inner: Inner, batch: Batch) -> Tensor:
        """That of the changed inputs."""
        frame, places = inner.frame(batch)
        space = inner.space
        z = frame.start
        if self.noise:
            z = space.sample(frame.start, self.noise * inner.radius, inner.rng, batch.rows)
        with only_inputs(inner.module):
            z.requires_grad_()
            (grad,) = torch.autograd.grad(row_losses(inner.answer(frame.render(z, places)), batch.y).sum(), z)
        z = z.detach()
        z = z + space.steepest(grad, z, self.stride * inner.radius)
        wide = space.within(frame.start, (self.noise + self.stride) * inner.radius)
        return row_losses(inner.answer(frame.render(wide(z), places)), batch.y).mean()

    def facts(self) -> dict[str, Any]:
        return {"noise": self.noise, "stride": self.stride}
