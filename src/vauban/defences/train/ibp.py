"""Certified training by interval bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from vauban.defences.common import only_inputs, row_losses
from vauban.defences.train.course import AdversarialTraining
from vauban.defences.train.inner import Inner
from vauban.parts.spans import Span, lowest_gaps, through
from vauban.parts.training import Batch
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source
from vauban.schema.errors import NotOffered


@dataclass(frozen=True, kw_only=True)
class IBPTraining(AdversarialTraining):
    """Trains on the worst scores that intervals allow within the threat, so that what holds can be proved.

    All inputs within the radius are pushed through the layers at once, as a box; the cross-entropy is taken of the scores that
    are worst for the label in the box that comes out. The loss mixes that with the clean one; its share grows with the
    radius to `share`. Intervals are loose for a model that was not trained with them: at the end of the training they are not.

    Source: Gowal et al. 2018 (arXiv:1810.12715, sections 3 and 4).
    Departures: the last linear layer is bounded for differences of scores (section 3, "elision of the last layer", as in
    the authors' code); batch normalisation goes by its running statistics; Adam with a rate that falls along a cosine. In linf only.

    Args:
        epochs: passes over the training rows.
        share: of the worst-case loss at the end, above 0 to 1 (0.5 in the paper).
        wider: radius that is trained for over that of the threat, 1 or more: training for more proves more on other inputs.
        batch_size: rows a step.
        rate: first learning rate of Adam.
        weight_decay: L2 penalty on the weights.
        schedule: of the rate: `constant`, `cosine` (epoch by epoch) or `cycle` (up over a fifth of the run, down to nothing).
        ramp: share of the run in which radius and share grow to their full size, in [0, 1].
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
        id="train.ibp",
        name="Certified training (IBP)",
        summary="Trains the model so that its answers within the threat can be proved, not only attacked in vain.",
        needs=Access.WEIGHTS_READ | Access.DATA_READ,
        tasks=("classification",),
        adaptive=("evasion.apgd", "evasion.apgd_targeted", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="On the effectiveness of interval bound propagation for training verifiably robust models",
                where="Gowal et al., 2018, arXiv:1810.12715, sections 3 and 4",
            ),
        ),
    )

    ramp: float = 0.6
    from_scratch: bool = True
    share: float = 0.5
    wider: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"share is of the worst-case loss, above 0 to 1, got {self.share}")
        if not self.wider >= 1:
            raise ValueError(f"wider must be at least 1, got {self.wider}")

    def loss(self, inner: Inner, batch: Batch) -> Tensor:
        """The clean loss and that of the worst scores."""
        share = self.share * self.grown(batch)
        gaps = self.gaps(inner, batch, self.wider * inner.radius)
        return ((1 - share) * row_losses(inner.answer(batch.x), batch.y) + share * (-gaps).logsumexp(1)).mean()

    def gaps(self, inner: Inner, batch: Batch, radius: float) -> Tensor:
        """`[m, classes]`: the least that the label's score is above each other's, as far as intervals tell."""
        return lowest_gaps(self.bounded(inner, batch, radius), batch.y)

    def bounded(self, inner: Inner, batch: Batch, radius: float) -> Span:
        """The scores for all inputs of the threat; raises NotOffered."""
        space = inner.space
        if space.name != "linf":
            raise NotOffered(f"{self.card.id} proves boxes, and the threat is in {space.name}: give one in linf.")
        low, high = (side.to(batch.x) for side in (space.low, space.high))
        box = (batch.x - radius).maximum(low), (batch.x + radius).minimum(high)
        return through(inner.module, *box)

    def judged(self, inner: Inner, batch: Batch) -> Tensor:
        """1 where the label is proved."""
        with only_inputs(inner.module), torch.no_grad():
            gaps = lowest_gaps(self.bounded(inner, batch, inner.radius), batch.y)
        others = gaps.masked_fill(F.one_hot(batch.y, gaps.shape[1]).bool(), torch.inf)
        return (others.amin(1) > 0).double()

    def facts(self) -> dict[str, Any]:
        return {"share": self.share, "wider": self.wider}
