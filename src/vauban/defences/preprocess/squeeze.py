"""Feature squeezing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.data import Data
from vauban.core.defence import Context
from vauban.core.rng import Rng
from vauban.defences.common import TorchModel
from vauban.defences.preprocess.front import Preprocessing, sides
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source
from vauban.schema.errors import NotOffered


@dataclass(frozen=True, kw_only=True)
class Squeeze(Preprocessing):
    """Coarsens inputs in front of the model: fewer grey levels, and for pictures a median over small windows.

    `bits` rounds every feature to 2^bits levels between its lowest and highest valid value; `median` then replaces
    every pixel by the median of a window of that side (of an even window the lower median; edges are mirrored). Small
    changes are rounded away, and so are the gradients: they are zero almost everywhere, which stops gradient attacks
    without removing adversarial inputs. The adaptive attack goes through (BPDA, Athalye et al. 2018): forward as it
    is, backward as if the squeezer were the identity. The defended target offers that version as `softened()`.

    Source: Xu et al. 2018 (arXiv:1704.01155, section III).
    Departure: the paper compares the answers with and without squeezing to detect attacks; here the squeezed input
    simply goes to the model, in front of which nothing is rejected.

    Args:
        bits: levels are 2^bits, 1 to 8; 0 leaves the levels as they are.
        median: side of the window, 2 or more; 0 for none.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="preprocess.squeeze",
        name="Feature squeezing",
        summary="Rounds inputs to a few levels before the model sees them; breaks naive attacks, not ones that know it.",
        needs=Access.WEIGHTS_READ,
        tasks=("classification", "regression"),
        adaptive=("evasion.apgd", "evasion.pgd", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="Feature squeezing: detecting adversarial examples in deep neural networks",
                where="Xu, Evans, Qi, NDSS 2018, arXiv:1704.01155, section III",
            ),
            Source(
                title="Obfuscated gradients give a false sense of security (the adaptive attack)",
                where="Athalye, Carlini, Wagner, ICML 2018, arXiv:1802.00420, section 4.1",
            ),
        ),
    )

    bits: int = 3
    median: int = 0

    def __post_init__(self) -> None:
        check(self.bits, self.median)

    def cleanser(self, model: TorchModel, data: Data, rng: Rng, context: Context) -> nn.Module:
        """Rounds, then takes medians."""
        if self.median and len(data.shape) < 2:
            raise NotOffered(
                f"preprocess.squeeze takes a median over windows of pictures, and the inputs have shape {data.shape}: "
                "set median=0."
            )
        if self.median and min(data.shape[-2:]) < self.median:
            raise NotOffered(
                f"preprocess.squeeze cannot lay a window of {self.median} x {self.median} over {data.shape[-2]} x "
                f"{data.shape[-1]} pixels: set a smaller median."
            )
        return Squeezer(*sides(model, data), self.bits, self.median)

    def facts(self) -> dict[str, Any]:
        return {"bits": self.bits, "median": self.median, "levels": 2**self.bits if self.bits else None}


def check(bits: int, median: int) -> None:
    """Raises ValueError for settings of a squeezer that make no sense."""
    if not 0 <= bits <= 8:
        raise ValueError(f"bits must be 1 to 8 (or 0 for none), got {bits}")
    if median < 0 or median == 1:
        raise ValueError(f"median is the side of a window, 2 or more (or 0 for none), got {median}")
    if not bits and not median:
        raise ValueError("bits and median are both 0: nothing would be squeezed")


class Squeezer(nn.Module):
    """Rounds inputs `[n, ...]` to levels between `low` and `high`, then takes medians of windows."""

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor, bits: int, median: int) -> None:
        super().__init__()
        self.register_buffer("low", low.clone())
        self.register_buffer("high", high.clone())
        self.bits, self.median = bits, median

    def forward(self, x: Tensor) -> Tensor:
        if self.bits:
            x = self._rounded(x)
        return self._smoothed(x) if self.median else x

    def _rounded(self, x: Tensor) -> Tensor:
        steps, span = 2**self.bits - 1, self.high - self.low
        share = torch.where(span > 0, (x - self.low) / span, 0.0).clamp(0, 1)
        return self.low + span * (share * steps).round() / steps

    def _smoothed(self, x: Tensor) -> Tensor:
        side = self.median
        before, after = (side - 1) // 2, side // 2
        planes = x.reshape(-1, 1, *x.shape[-2:])
        padded = F.pad(planes, (before, after, before, after), mode="reflect")
        return padded.unfold(2, side, 1).unfold(3, side, 1).flatten(4).median(-1).values.view_as(x)
