"""MART: adversarial training that minds the inputs which the model gets wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.defences.train.course import Searching
from vauban.defences.train.inner import Inner
from vauban.defences.train.trades import divergence
from vauban.parts.losses import log_probabilities
from vauban.parts.training import Batch
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source

_TINY = 1e-4
"""Kept away from the logarithm of nothing."""


@dataclass(frozen=True, kw_only=True)
class MART(Searching):
    """Trains on the worst inputs with a loss that has a margin in it, and asks for like answers most where the model is unsure.

    The loss is the cross-entropy at the worst inputs, minus the logarithm of one less the largest wrong probability there, plus
    `beta` times the divergence of the answers there from the clean ones, weighted by what the clean answer lacks of certainty.

    Source: Wang et al. 2020 (ICLR 2020, "Improving adversarial robustness requires revisiting misclassified examples",
    section 3 and algorithm 1).
    Departures: those of `train.pgd`.

    Args:
        epochs: passes over the training rows.
        beta: weight of the divergence, 0 or more (5 or 6 in the paper).
        steps: gradient steps of the inner attack, 1 or more.
        recall: begin it at the change that was found for a row in the epoch before, so that two or three steps, as small as those of
            seven, find what seven would (Zheng et al. 2020, arXiv:1912.11969).
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
        id="train.mart",
        name="MART",
        summary="Adversarial training that weighs the inputs which the model gets wrong.",
        needs=Access.WEIGHTS_READ | Access.DATA_READ,
        tasks=("classification",),
        adaptive=("evasion.apgd", "evasion.apgd_targeted", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="Improving adversarial robustness requires revisiting misclassified examples",
                where="Wang et al., ICLR 2020, section 3 and algorithm 1",
            ),
        ),
    )

    beta: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 0:
            raise ValueError(f"beta must not be negative, got {self.beta}")

    def loss(self, inner: Inner, batch: Batch) -> Tensor:
        """Boosted cross-entropy at the worst inputs plus weighted divergence."""
        z = self.worst(inner, batch)
        clean, changed = map(log_probabilities, inner.both(batch.x, z))
        true = batch.y[:, None]
        wrong = changed.scatter(1, true, -torch.inf).amax(1).exp()
        boosted = -changed.gather(1, true)[:, 0] - torch.log1p(-wrong.clamp_max(1 - _TINY))
        unsure = 1 - clean.gather(1, true)[:, 0].exp()
        return (boosted + self.beta * divergence(changed, clean) * unsure).mean()

    def facts(self) -> dict[str, Any]:
        return {"beta": self.beta, "steps": self.steps}
