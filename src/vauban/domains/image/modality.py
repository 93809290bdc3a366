"""Pictures: `[n, channels, height, width]` (or `[n, height, width]`) between `low` and `high`."""

from __future__ import annotations

import base64
import io
from typing import ClassVar

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from vauban.core.space import Continuous
from vauban.core.target import Domain
from vauban.domains.box import Boxed, edges
from vauban.domains.image.spaces import PICTURES
from vauban.parts import distances
from vauban.schema.log import Exhibit, Picture

SMALLEST, LARGEST = 56, 128
"""Pixels of the shorter side at least, of the longer side at most, in the report."""
_RED, _BLUE = np.array([0.78, 0.12, 0.16]), np.array([0.10, 0.32, 0.75])


class Image(Boxed):
    """Grey (1 channel), colour (3), or any other number of channels (shown as their mean)."""

    kind = "image"
    spaces: ClassVar[tuple[str, ...]] = (*Boxed.spaces, *PICTURES)

    def space(self, name: str, domain: Domain) -> Continuous:
        """The ball or the picture space of that name."""
        return PICTURES[name](*edges(domain)) if name in PICTURES else super().space(name, domain)

    def looks(self, changed: Tensor, clean: Tensor, domain: Domain) -> dict[str, Tensor]:
        """`ssim`, and for three channels (taken as sRGB) `ciede2000`; nothing where nobody declared the box."""
        low, high = edges(domain)
        if not bool(low.isfinite().all() and high.isfinite().all()):
            return {}
        z, x = (distances.pictures(side, low, high) for side in (changed, clean))
        found = {"ssim": distances.in_parts(distances.ssim, z, x)}
        if x.shape[1] == distances.COLOURS:
            found["ciede2000"] = distances.in_parts(distances.colour_difference, z.clamp(0, 1), x.clamp(0, 1))
        return found

    def exhibit(
        self,
        clean: Tensor,
        changed: Tensor | None,
        before: Tensor | None,
        after: Tensor | None,
        captions: list[str],
        domain: Domain,
    ) -> Exhibit:
        """Up to six pictures a row: clean, adversarial and the change, then the attributions of both and theirs."""
        pictures: list[Picture] = []
        for one in (slice(i, i + 1) for i in range(len(clean))):
            pictures += _inputs(clean[one], None if changed is None else changed[one], domain)
            pictures += [] if before is None else _maps(before[one], None if after is None else after[one])
        told = (
            (changed is not None, "In the change, mid-grey is none."),
            (after is not None, "Attributions share one scale."),
            (before is not None, "Red speaks for what is explained, blue against it."),
            (after is not None, "Their change is adversarial less clean: red is what the attack added."),
        )
        return Exhibit(
            title="; ".join(captions) or "Adversarial example",
            note=" ".join(words for holds, words in told if holds),
            pictures=pictures,
        )


def _inputs(clean: Tensor, changed: Tensor | None, domain: Domain) -> list[Picture]:
    """The clean input; the changed one and the change, amplified until it fills the scale."""
    old = _unit(clean, domain)
    if changed is None:
        return [Picture(caption="input", png=png(old))]
    new = _unit(changed, domain)
    change = new - old
    gain = 0.5 / max(float(np.abs(change).max()), 1e-12) if change.any() else 1.0
    return [
        Picture(caption="clean", png=png(old)),
        Picture(caption="adversarial", png=png(new)),
        Picture(caption=f"change ×{gain:.3g}", png=png(0.5 + gain * change)),
    ]


def _maps(before: Tensor, after: Tensor | None) -> list[Picture]:
    """Attributions on one scale; their change, which may be twice as large, is cut there."""
    if after is None:
        return [Picture(caption="attribution", png=png(signed(before[0], max(_peak(before[0]), 1e-30))))]
    peak = max(_peak(before[0]), _peak(after[0]), 1e-30)
    shown = (("clean", before[0]), ("adversarial", after[0]), ("change", after[0] - before[0]))
    return [Picture(caption=f"attribution, {name}", png=png(signed(values, peak))) for name, values in shown]


def _unit(x: Tensor, domain: Domain) -> np.ndarray:
    """One input `[1, ...]` as float64 `[c, h, w]`, 0 at `low` and 1 at `high` (its own range where they are infinite)."""
    values = x.detach().cpu().double()
    low, high = (side.double() for side in edges(domain))
    low = torch.where(low.isfinite(), low, values.min())
    high = torch.where(high.isfinite(), high, values.max())
    width = torch.where(high > low, high - low, 1.0)
    return _channels_first(((values - low) / width)[0].numpy())


def _channels_first(row: np.ndarray) -> np.ndarray:
    if row.ndim == 2:
        return row[None]
    last = row.shape[-1] in (1, 3, 4) and row.shape[0] not in (1, 3, 4)
    return np.moveaxis(row, -1, 0) if last else row


def _flat(attribution: Tensor) -> np.ndarray:
    return _channels_first(attribution.detach().cpu().double().numpy()).sum(0)


def _peak(attribution: Tensor) -> float:
    return float(np.abs(_flat(attribution)).max())


def signed(attribution: Tensor, peak: float) -> np.ndarray:
    """A map `[3, h, w]`: white at 0, red towards `peak`, blue towards -`peak`; channels are summed."""
    share = np.clip(_flat(attribution) / peak, -1, 1)
    colour = np.where(share[..., None] > 0, _RED, _BLUE)
    return np.moveaxis(1 - np.abs(share)[..., None] * (1 - colour), -1, 0)


def png(picture: np.ndarray) -> str:
    """`[c, h, w]` in [0, 1] as a base64 PNG of 56 to 128 pixels a side: enlarged pixel by pixel, reduced by area."""
    shown = picture if picture.shape[0] in (1, 3) else picture.mean(0, keepdims=True)
    bytes8 = np.round(np.clip(shown, 0, 1) * 255).astype(np.uint8)
    image = Pillow.fromarray(bytes8[0] if len(bytes8) == 1 else np.ascontiguousarray(np.moveaxis(bytes8, 0, -1)))
    width, height = image.size
    if max(width, height) > LARGEST:
        scale = LARGEST / max(width, height)
        image = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Pillow.Resampling.BOX)
    elif min(width, height) < SMALLEST:
        times = min(-(-SMALLEST // min(width, height)), max(1, LARGEST // max(width, height)))
        image = image.resize((width * times, height * times), Pillow.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
