"""TRADES: accuracy on clean inputs, and answers that stay alike around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from vauban.defences.common import row_losses
from vauban.defences.train.course import Searching
from vauban.defences.train.inner import Inner
from vauban.parts.losses import log_probabilities
from vauban.parts.training import Batch
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source


@dataclass(frozen=True, kw_only=True)
class TRADES(Searching):
    """Trains on the clean inputs, and against any change of the answers within the threat, whatever the label.

    The loss is the cross-entropy on the clean inputs plus `beta` times the divergence of the answers at the worst inputs from
    those at the clean ones; the inner attack climbs that divergence. A larger beta trades accuracy on clean inputs
    for robustness.

    Source: Zhang et al. 2019 (arXiv:1901.08573, algorithm 1).
    Departures: the inner attack begins at a random point of the whole ball instead of 0.001 noise, with steps of 2.5 radii over
    `steps`; the rest is as in `train.pgd`.

    Args:
        epochs: passes over the training rows.
        beta: weight of the divergence, above 0 (6 in the paper's tables, 1 on MNIST).
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
        id="train.trades",
        name="TRADES",
        summary="Trains the model to be right on clean inputs and to answer alike around them.",
        needs=Access.WEIGHTS_READ | Access.DATA_READ,
        tasks=("classification",),
        adaptive=("evasion.apgd", "evasion.apgd_targeted", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="Theoretically principled trade-off between robustness and accuracy",
                where="Zhang et al., ICML 2019, arXiv:1901.08573, algorithm 1",
            ),
        ),
    )

    beta: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ValueError(f"beta must be above 0, got {self.beta}: at 0 nothing would be made robust")

    def loss(self, inner: Inner, batch: Batch) -> Tensor:
        """Cross-entropy on the clean inputs plus `beta` divergences."""
        still = log_probabilities(inner.calm(batch.x))
        z = self.worst(inner, batch, lambda outputs: divergence(log_probabilities(outputs), still))
        clean, changed = inner.both(batch.x, z)
        apart = divergence(log_probabilities(changed), log_probabilities(clean))
        return (row_losses(clean, batch.y) + self.beta * apart).mean()

    def facts(self) -> dict[str, Any]:
        return {"beta": self.beta, "steps": self.steps}


def divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Kullback-Leibler divergence of q from p, `[m]`."""
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1)
