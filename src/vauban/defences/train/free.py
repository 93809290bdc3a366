"""Free adversarial training: one pass for the weights and the inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.defences.common import row_losses
from vauban.defences.train.course import AdversarialTraining
from vauban.defences.train.inner import Inner
from vauban.parts.training import Batch, Course
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source


@dataclass(frozen=True, kw_only=True)
class FreeTraining(AdversarialTraining):
    """Uses each backward pass twice: to change the weights and to change the inputs; every batch is stepped on `replays` times.

    The change of the inputs goes on from step to step and is handed to the next batch. The number of passes over the
    training rows is divided by `replays`, so that the whole costs as much as plain training of `epochs` epochs.

    Source: Shafahi et al. 2019 (arXiv:1904.12843, algorithm 1).
    Departures: those of `train.pgd`; each step is made in training mode, as there is but one pass.

    Args:
        epochs: passes over the training rows.
        replays: steps on each batch, 1 or more (8 in the paper for CIFAR-10).
        batch_size: rows a step.
        rate: first learning rate of Adam.
        weight_decay: L2 penalty on the weights.
        schedule: of the rate: `constant`, `cosine` (epoch by epoch) or `cycle` (up over a fifth of the run, down to nothing).
        ramp: share of the run in which the radius grows to its full size, in [0, 1].
        average: decay, a step, of averaged weights, which are then the result; 0 for none.
        validation: share of the training rows that are kept aside; the epoch that is most robust on them is the result.
        patience: epochs without a better one after which training ends; 0 for never.
        accumulate: parts in which the gradient of a batch is summed up, to save memory; the step is that of the whole batch (but
            after a last batch with fewer than two rows a part, whose changes are handed on by another order).
        precision: of the passes, `float32` or `bf16`, which is faster on GPUs that have it; weights stay in float32.
        crop: pictures are moved by up to so many pixels, at random and anew every epoch; their edge goes on where that leaves a gap.
        flip: half of the pictures are mirrored at random, left to right.
        from_scratch: start from fresh weights.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="train.free",
        name="Free adversarial training",
        summary="Adversarial training at the price of plain training: each pass changes weights and inputs.",
        needs=Access.WEIGHTS_READ | Access.DATA_READ,
        tasks=("classification", "regression"),
        adaptive=("evasion.apgd", "evasion.apgd_targeted", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="Adversarial training for free!",
                where="Shafahi et al., NeurIPS 2019, arXiv:1904.12843, algorithm 1",
            ),
        ),
    )

    replays: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replays < 1:
            raise ValueError(f"replays must be at least 1, got {self.replays}")

    @property
    def course(self) -> Course:
        return replace(super().course, epochs=-(-self.epochs // self.replays), repeats=self.replays)

    def loss(self, inner: Inner, batch: Batch) -> Tensor:
        """That of the inputs as the passes before have changed them."""
        frame, places = inner.frame(batch)
        z = inner.space.within(frame.start, inner.radius)(frame.start + self._change(inner, frame.start, batch.part))
        inner.memory[f"point.{batch.part}"], inner.memory[f"start.{batch.part}"] = z.requires_grad_(), frame.start
        return row_losses(inner.answer(frame.render(z, places)), batch.y).mean()

    def _change(self, inner: Inner, start: Tensor, part: int) -> Tensor:
        """What the last pass made of the change before it, for as many rows as are here."""
        change = torch.zeros_like(start)
        point = inner.memory.get(f"point.{part}")
        if point is not None and point.grad is not None:
            before, z = inner.memory[f"start.{part}"], point.detach()
            moved = inner.space.within(before, inner.radius)(z + inner.space.steepest(point.grad, z, inner.radius))
            count = min(len(change), len(moved))
            change[:count] = (moved - before)[:count]
        return change

    def facts(self) -> dict[str, Any]:
        return {"replays": self.replays}
