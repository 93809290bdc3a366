"""Resizing and padding at random in front of the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.data import Data
from vauban.core.defence import Context
from vauban.core.rng import Rng
from vauban.defences.common import TorchModel
from vauban.defences.preprocess.front import Preprocessing, need_pictures, sides
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source


@dataclass(frozen=True, kw_only=True)
class RandomResize(Preprocessing):
    """Shrinks a picture a little and lays it somewhere on an empty one of the same size.

    A change that was made for one size and place fits others less well, so that attacks which do not know of it fail more often.
    One that does takes the mean over sizes and places (EOT, Athalye et al. 2018), and little is left; the defended target offers that
    mean's gradients as `softened()`.

    Source: Xie et al. 2018 (arXiv:1711.01991, section 3).
    Departures: pictures are made smaller instead of larger, so that the model's input keeps its size. Size and place are one of
    `patterns` that are drawn once, and the picture itself decides which: the same picture is answered alike every time, and
    its neighbours as if at random.

    Args:
        scale: smallest side as a share of the picture's, above 0 and below 1.
        patterns: sizes and places to draw from, 2 or more.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="preprocess.resize",
        name="Random resizing and padding",
        summary="Shrinks and shifts pictures as if at random before the model sees them; breaks attacks that do not know of it.",
        needs=Access.WEIGHTS_READ,
        tasks=("classification", "regression"),
        modalities=("image",),
        adaptive=("evasion.apgd", "evasion.pgd", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="Mitigating adversarial effects through randomization",
                where="Xie et al., ICLR 2018, arXiv:1711.01991, section 3",
            ),
            Source(
                title="Obfuscated gradients give a false sense of security (the adaptive attack)",
                where="Athalye, Carlini, Wagner, ICML 2018, arXiv:1802.00420, section 5.3.2",
            ),
        ),
    )

    scale: float = 0.85
    patterns: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.scale < 1:
            raise ValueError(f"scale is a share above 0 and below 1, got {self.scale}")
        if self.patterns < 2:
            raise ValueError(f"patterns must be at least 2, got {self.patterns}: with one there is nothing random")

    def cleanser(self, model: TorchModel, data: Data, rng: Rng, context: Context) -> nn.Module:
        """Shrinks and shifts."""
        need_pictures(data, self.card)
        high, wide = data.shape[-2:]
        draw = rng.numpy("patterns")
        drawn = []
        for _ in range(self.patterns):
            share = draw.uniform(self.scale, 1)
            rows, columns = max(1, round(share * high)), max(1, round(share * wide))
            drawn.append((rows, columns, draw.integers(high - rows + 1), draw.integers(wide - columns + 1)))
        return Placement(torch.tensor(drawn), sides(model, data)[0].min())

    def facts(self) -> dict[str, Any]:
        return {"scale": self.scale, "patterns": self.patterns}


class Placement(nn.Module):
    """Lays each picture `[n, ..., height, width]` on an empty one, by the pattern that its own bits pick."""

    patterns: Tensor
    empty: Tensor

    def __init__(self, patterns: Tensor, empty: Tensor) -> None:
        super().__init__()
        self.register_buffer("patterns", patterns.long())
        self.register_buffer("empty", empty.clone())

    def forward(self, x: Tensor) -> Tensor:
        which, placed = self._picked(x), torch.empty_like(x)
        for k in which.unique().tolist():
            placed[which == k] = self._laid(x[which == k], k)
        return placed

    def views(self, x: Tensor) -> Iterator[Tensor]:
        """The pictures under each of the patterns."""
        return (self._laid(x, k) for k in range(len(self.patterns)))

    def _picked(self, x: Tensor) -> Tensor:
        """A pattern for each row: a sum over its bits, in whole numbers, whose order does not matter."""
        bits = x.detach().float().contiguous().flatten(1).view(torch.int32).long()
        weights = (torch.arange(bits.shape[1], device=x.device) * 0x9E3779B97F4A7C1 + 0x1F123BB5) | 1
        mixed = (bits * weights).sum(1)
        return ((mixed ^ (mixed >> 29)) & 0x7FFFFFFF) % len(self.patterns)

    def _laid(self, x: Tensor, k: int) -> Tensor:
        rows, columns, top, left = self.patterns[k].tolist()
        high, wide = x.shape[-2:]
        small = F.interpolate(x.reshape(len(x), -1, high, wide), (rows, columns), mode="bilinear", align_corners=False)
        room = (left, wide - columns - left, top, high - rows - top)
        return F.pad(small, room, value=float(self.empty)).view_as(x)
