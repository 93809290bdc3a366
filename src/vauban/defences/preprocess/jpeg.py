"""JPEG in front of the model."""

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
from vauban.defences.preprocess.front import Preprocessing, need_pictures, sides
from vauban.parts.decision import cosines
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source

BLOCK = 8
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *(((99,) * 8,) * 4),
)  # fmt: skip
"""The tables of the standard's annex K, for brightness and for colour."""


@dataclass(frozen=True, kw_only=True)
class JPEG(Preprocessing):
    """Compresses every picture as JPEG would, before the model sees it: fine detail is rounded away.

    Blocks of 8 x 8 are turned into cosines and rounded by the standard's tables for a quality; pictures of three channels as
    brightness and colour, of any other number channel by channel. The gradient of the rounding is zero almost everywhere, which
    stops gradient attacks without removing adversarial inputs: the adaptive attack goes straight through (BPDA).

    Source: Dziugaite, Ghahramani and Roy 2016 (arXiv:1608.00853); the tables of ITU-T T.81, annex K.
    Departures: colour is not subsampled, and nothing is encoded: what the encoder does without loss changes no pixel.

    Args:
        quality: 1 (coarse) to 100 (fine), as in libjpeg.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="preprocess.jpeg",
        name="JPEG compression",
        summary="Compresses pictures before the model sees them; breaks naive attacks, not ones that know it.",
        needs=Access.WEIGHTS_READ,
        tasks=("classification", "regression"),
        modalities=("image",),
        adaptive=("evasion.apgd", "evasion.pgd", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="A study of the effect of JPG compression on adversarial images",
                where="Dziugaite, Ghahramani, Roy, 2016, arXiv:1608.00853",
            ),
            Source(
                title="Obfuscated gradients give a false sense of security (the adaptive attack)",
                where="Athalye, Carlini, Wagner, ICML 2018, arXiv:1802.00420, section 4.1",
            ),
        ),
    )

    quality: int = 75

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is 1 to 100, got {self.quality}")

    def cleanser(self, model: TorchModel, data: Data, rng: Rng, context: Context) -> nn.Module:
        """Compresses and decompresses."""
        need_pictures(data, self.card)
        return Compressor(*sides(model, data), self.quality)

    def facts(self) -> dict[str, Any]:
        return {"quality": self.quality}


class Compressor(nn.Module):
    """What JPEG leaves of pictures `[n, channels, height, width]` (or `[n, height, width]`) between `low` and `high`."""

    low: Tensor
    high: Tensor
    cosines: Tensor
    luma: Tensor
    chroma: Tensor
    colour: Tensor

    def __init__(self, low: Tensor, high: Tensor, quality: int) -> None:
        super().__init__()
        self.register_buffer("low", low.clone())
        self.register_buffer("high", high.clone())
        self.register_buffer("cosines", cosines(BLOCK).to(low))
        for name, table in (("luma", LUMA), ("chroma", CHROMA)):
            self.register_buffer(name, scaled(torch.tensor(table, dtype=torch.float64), quality).to(low))
        to = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
        self.register_buffer("colour", torch.tensor(to).to(low))

    def forward(self, x: Tensor) -> Tensor:
        span = (self.high - self.low).clamp_min(torch.finfo(x.dtype).tiny)
        planes = (255 * (x - self.low) / span).clamp(0, 255).round()
        planes = planes[:, None] if x.dim() == 3 else planes
        done = self._coloured(planes) if planes.shape[1] == 3 else self._rounded(planes - 128, self.luma) + 128
        done = done.clamp(0, 255).round()
        return self.low + span * (done.squeeze(1) if x.dim() == 3 else done) / 255

    def _coloured(self, planes: Tensor) -> Tensor:
        mixed = torch.einsum("kc,nchw->nkhw", self.colour, planes)
        # brightness around its middle; colours are differences already; both are whole numbers in a file
        luma = self._rounded(mixed[:, :1].round() - 128, self.luma).round().clamp(-128, 127) + 128
        chroma = self._rounded(mixed[:, 1:].round(), self.chroma).round().clamp(-128, 127)
        return torch.einsum("kc,nchw->nkhw", torch.linalg.inv(self.colour), torch.cat([luma, chroma], 1))

    def _rounded(self, planes: Tensor, table: Tensor) -> Tensor:
        """Every block of planes `[n, c, height, width]` in multiples of the table's cosines."""
        height, width = planes.shape[-2:]
        padded = F.pad(planes, (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
        blocks = padded.unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK)
        waves = self.cosines @ blocks @ self.cosines.t()
        whole = waves / table
        # halves go away from zero, as in a file
        waves = whole.sign() * (whole.abs() + 0.5).floor() * table
        back = self.cosines.t() @ waves @ self.cosines
        return back.permute(0, 1, 2, 4, 3, 5).reshape(padded.shape)[..., :height, :width]


def scaled(table: Tensor, quality: int) -> Tensor:
    """The standard's table for a quality, as libjpeg scales it."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((table * scale + 50) / 100).floor().clamp(1, 255)
