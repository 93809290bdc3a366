"""Cutout: training on pictures with a hole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.core.data import Data
from vauban.core.defence import Context, Hardened
from vauban.core.rng import Rng
from vauban.core.target import Target
from vauban.defences.preprocess.front import need_pictures
from vauban.defences.train.augmented import Augmented
from vauban.defences.train.inner import Inner
from vauban.parts.training import Batch
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source


@dataclass(frozen=True, kw_only=True)
class Cutout(Augmented):
    """Trains on pictures out of which a square was cut at random. A control, not a defence.

    The model learns to answer from parts of a picture; that costs nothing. Small changes of all pixels are not what it trains for: PGD or
    APGD break it, and so do patches, which it was not shown. It is here to be compared with what a defence achieves at
    equal steps; with `adversarial`, the cut pictures are attacked. Pictures alone: leaving features of a table out is another thing.

    Source: DeVries and Taylor 2017 (arXiv:1708.04552, section 3).
    Departures: the square is filled with the mean of each channel over the batch, which is the zero of the paper's normalised
    pictures; Adam with a rate that falls along a cosine; training starts from the target's own weights unless `from_scratch`.

    Args:
        epochs: passes over the training rows.
        side: of the square, as a share of the picture's shorter side, above 0 to 1 (0.5 for CIFAR-10 in the paper); parts of it may
            lie outside the picture.
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
        id="train.cutout",
        name="Cutout (control)",
        summary="Trains the model on pictures with a hole; a control that attacks of several steps break.",
        needs=Access.WEIGHTS_READ | Access.DATA_READ,
        tasks=("classification", "regression"),
        modalities=("image",),
        adaptive=("evasion.apgd", "evasion.apgd_targeted", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="Improved regularization of convolutional neural networks with cutout",
                where="DeVries, Taylor, 2017, arXiv:1708.04552, section 3",
            ),
        ),
    )

    side: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.side <= 1:
            raise ValueError(f"side is a share of the picture's shorter side, above 0 to 1, got {self.side}")

    def __call__(self, target: Target, data: Data, rng: Rng, context: Context) -> Hardened:
        need_pictures(data, self.card)
        return super().__call__(target, data, rng, context)

    def loss(self, inner: Inner, batch: Batch) -> Tensor:
        """Of the pictures with a hole."""
        cut = replace(batch, x=self.cut(batch.x, inner.rng.child("cutout"), batch.rows))
        return self.attacked(inner, cut)

    def cut(self, x: Tensor, rng: Rng, rows: Tensor) -> Tensor:
        """Pictures `[m, ..., h, w]` with a square around a random pixel each, filled with the mean of its channel."""
        height, width = x.shape[-2:]
        size = max(round(self.side * min(height, width)), 1)
        inside = []
        for extent in (height, width):
            centre = rng.integers(rows, extent)
            place = torch.arange(extent, device=x.device)
            inside.append((place >= centre - size // 2) & (place < centre - size // 2 + size))
        hole = (inside[0][:, :, None] & inside[1][:, None, :]).view(len(x), *[1] * (x.dim() - 3), height, width)
        mean = x.mean((0, -2, -1), keepdim=True)
        return torch.where(hole, mean, x)

    def facts(self) -> dict[str, Any]:
        return {"side": self.side, **super().facts()}
