"""Attribution by covering parts of the input: asks for scores alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vauban.parts.attribution.base import Means, Score, against, blocks, numbers, scores, values
from vauban.parts.windows import covered, upright
from vauban.schema.access import Access

PARTS = 7
"""Windows side by side in a picture, where nobody chose their size."""


@dataclass(frozen=True, kw_only=True)
class Occlusion:
    """How far the score falls when a window of the input is replaced by the baseline.

    A window slides over pictures, through all channels; of rows of numbers, single features are replaced. An entry gets
    the mean fall of the windows that cover it.

    Source: Zeiler, Fergus, "Visualizing and understanding convolutional networks", ECCV 2014, section 4.2.
    Departures: falls are averaged per pixel instead of shown per place of the window, and the score may be a logit.

    Args:
        window: side in pixels (of rows of numbers: features that are replaced together); 0 for a seventh of the
            picture's shorter side and at least 2 pixels, or for one feature.
        stride: from one window to the next, at most `window`; 0 for half a window, rounded down, and at least 1.
    """

    needs: ClassVar[Access] = Access.LABELS
    kinds: ClassVar[tuple[str, ...]] = ()
    complete: ClassVar[bool] = False

    window: int = 0
    stride: int = 0

    def __post_init__(self) -> None:
        if self.window < 0 or self.stride < 0:
            raise ValueError(f"window and stride must be at least 0, got {self.window} and {self.stride}")
        if self.window and self.stride > self.window:
            raise ValueError(
                f"stride {self.stride} is wider than the window {self.window}: some entries would be skipped"
            )

    def __call__(self, score: Score, x: Tensor, means: Means) -> Tensor:
        pictures, back = laid_out(x)
        blank = laid_out(against(means, x))[0]
        masks = self.masks(*pictures.shape[2:]).to(x.device)
        whole = scores(score, x, means).double()
        fall = x.new_zeros(len(x), *masks.shape[1:], dtype=torch.float64)
        for cut, part in blocks(len(x), len(masks), max(1, means.batch)):
            hidden = masks[part]
            points = torch.where(hidden[None, :, None], blank[cut, None], pictures[cut, None]).flatten(0, 1)
            found = values(score, back(points), numbers(cut, len(hidden), x), means).double()
            lost = whole[cut, None] - found.reshape(-1, len(hidden))
            fall[cut] += torch.einsum("rk,khw->rhw", lost, hidden.double())
        mean = (fall / masks.sum(0)).to(x.dtype)
        return back(mean[:, None].expand_as(pictures)).contiguous()

    def masks(self, height: int, width: int) -> Tensor:
        """bool `[windows, height, width]`: what each window covers; those at the far edges may be cut."""
        usual = max(min(2, height, width), min(height, width) // PARTS)
        side = self.window or usual
        step = min(self.stride or max(1, side // 2), side)
        tall, wide = min(side, height), min(side, width)
        corners = [
            (top, left, tall, wide)
            for top in range(0, height - tall + step, step)
            for left in range(0, width - wide + step, step)
        ]
        return covered(torch.tensor(corners), height, width)


def laid_out(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """`x` as pictures `[n, c, h, w]` (rows of numbers as pictures one pixel high), and the way back."""
    if x.dim() == 2:
        return x[:, None, None], lambda z: z[:, 0, 0]
    return upright(x)
