"""What cameras, weather and storage do to pictures: kinds of corruption in five severities."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image as Pillow
from scipy.stats import poisson
from torch import Tensor

from vauban.core.rng import Rng
from vauban.domains.image.moves import between, resampled, turned
from vauban.parts.projections import per_row

SEVERITIES = 5
USUAL = 32
"""Side of the pictures that lengths in pixels are meant for; on others they grow with the side."""
_NOTHING = torch.zeros((), dtype=torch.float64)

Corrupt = Callable[[Tensor, Tensor, Rng], Tensor]
"""(pictures `[m, c, h, w]` float64 in [0, 1], severities 1 to 5 int64 `[m]`, one stream a picture) -> pictures."""


def _level(values: Sequence[float], severity: Tensor, x: Tensor) -> Tensor:
    return per_row(torch.tensor(values, dtype=x.dtype)[severity - 1], x)


def _lengths(values: Sequence[float], severity: Tensor, x: Tensor) -> Tensor:
    """Lengths `[m]` in pixels of these pictures."""
    return torch.tensor(values, dtype=x.dtype)[severity - 1] * (max(x.shape[2:]) / USUAL)


def _rows(x: Tensor) -> Tensor:
    return torch.arange(len(x))


def gaussian_noise(x: Tensor, severity: Tensor, rng: Rng) -> Tensor:
    noise = rng.normal(_rows(x), x.shape[1:]).to(x)
    return x + noise * _level((0.04, 0.06, 0.08, 0.09, 0.10), severity, x)


def shot_noise(x: Tensor, severity: Tensor, rng: Rng) -> Tensor:
    light = _level((500, 250, 100, 75, 50), severity, x)
    chance = rng.uniform(_rows(x), x.shape[1:]).double() * (1 - 2.0**-20) + 2.0**-21
    caught = poisson.ppf(chance.numpy(), (x.clamp(0, 1) * light).numpy())
    return torch.from_numpy(np.asarray(caught)) / light


def impulse_noise(x: Tensor, severity: Tensor, rng: Rng) -> Tensor:
    chance = rng.uniform(_rows(x), x.shape[1:]).double()
    share = _level((0.01, 0.02, 0.03, 0.05, 0.07), severity, x)
    return torch.where(chance < share / 2, 0.0, torch.where(chance < share, 1.0, x))


def defocus_blur(x: Tensor, severity: Tensor, rng: Rng) -> Tensor:
    """A disc with a soft edge."""
    radius = _lengths((0.6, 0.9, 1.2, 1.6, 2.0), severity, x)
    far = math.ceil(float(radius.max())) if len(x) else 0
    out, total = torch.zeros_like(x), torch.zeros_like(radius)
    for down in range(-far, far + 1):
        for right in range(-far, far + 1):
            weight = (radius + 0.5 - math.hypot(down, right)).clamp(0, 1)
            out = out + _pushed(x, down, right) * per_row(weight, x)
            total = total + weight
    return out / per_row(total, x)


def motion_blur(x: Tensor, severity: Tensor, rng: Rng) -> Tensor:
    """A tail in a direction of each picture's own, within 45 degrees of a side."""
    spread = _lengths((1.0, 1.5, 2.0, 2.5, 3.0), severity, x)
    angle = rng.uniform(_rows(x), (1,), -math.pi / 4, math.pi / 4).double()[:, 0]
    out, total = torch.zeros_like(x), torch.zeros_like(spread)
    h, w = x.shape[2:]
    for tap in range(8):
        weight = math.exp(-((tap / 8 * 2) ** 2) / 2)
        step = spread * (2 * tap / 8)
        down, right = (per_row(step * way, x[:, 0]).expand(-1, h, w) for way in (angle.sin(), angle.cos()))
        out = out + _inside(x, down, right) * weight
        total = total + weight
    return out / per_row(total, x)


def zoom_blur(x: Tensor, severity: Tensor, rng: Rng) -> Tensor:
    """The mean of eight pictures, each a little closer."""
    closest = _level((1.06, 1.11, 1.16, 1.21, 1.26), severity, x)[:, 0]
    h, w = x.shape[2:]
    rows = (torch.arange(h, dtype=x.dtype) - (h - 1) / 2)[None, :, None]
    columns = (torch.arange(w, dtype=x.dtype) - (w - 1) / 2)[None, None, :]
    out = torch.zeros_like(x)
    for number in range(8):
        shrink = 1 / (1 + (closest - 1) * (number / 7)) - 1
        out = out + _inside(x, (rows * shrink).expand(-1, h, w), (columns * shrink).expand(-1, h, w))
    return out / 8


def fog(x: Tensor, severity: Tensor, rng: Rng) -> Tensor:
    """A smooth random cloud is added, and the whole brought back to the brightness that it had."""
    much = _level((0.2, 0.5, 0.75, 1.0, 1.5), severity, x)
    rough = _level((3.0, 3.0, 2.5, 2.0, 1.75), severity, x)
    h, w = x.shape[2:]
    cloud, weight = torch.zeros_like(x[:, :1]), torch.ones_like(rough)
    for size in (2, 3, 5, 9, 17):
        noise = rng.uniform(_rows(x), (1, size, size)).to(x)
        cloud = cloud + weight * between(between(noise, h, 2), w, 3)
        weight = weight / rough
    low, high = (per_row(side(cloud.flatten(1), 1), x) for side in (torch.amin, torch.amax))
    cloud = (cloud - low) / (high - low).clamp_min(1e-9)
    peak = per_row(x.flatten(1).amax(1), x)
    return (x + much * cloud) * peak / (peak + much).clamp_min(1e-9)


def brightness(x: Tensor, severity: Tensor, rng: Rng) -> Tensor:
    return x + _level((0.05, 0.1, 0.15, 0.2, 0.3), severity, x)


def contrast(x: Tensor, severity: Tensor, rng: Rng) -> Tensor:
    mean = x.flatten(2).mean(2)[:, :, None, None]
    return mean + (x - mean) * _level((0.75, 0.5, 0.4, 0.3, 0.15), severity, x)


def elastic(x: Tensor, severity: Tensor, rng: Rng) -> Tensor:
    """A small turn, and a smooth random displacement."""
    most = _lengths((0.6, 0.9, 1.2, 1.6, 2.0), severity, x)
    h, w = x.shape[2:]
    field = rng.uniform(_rows(x), (2, 6, 6), -1.0, 1.0).to(x)
    field = between(between(field, h, 2), w, 3) * per_row(most, x)
    none = torch.zeros_like(most)
    angle = rng.uniform(_rows(x), (1,), -1.0, 1.0).to(x)[:, 0] * severity.to(x)
    return turned(_inside(x, field[:, 0], field[:, 1]), angle, none, none, _NOTHING)


def pixelate(x: Tensor, severity: Tensor, rng: Rng) -> Tensor:
    """Reduced by area, enlarged pixel by pixel."""
    share = (0.95, 0.9, 0.85, 0.75, 0.65)
    out = x.clone()
    for level in severity.unique().tolist():
        rows = (severity == level).nonzero().flatten()
        small = x[rows]
        for dim in (2, 3):
            size = x.shape[dim]
            fewer = max(1, round(size * share[level - 1]))
            back = (torch.arange(size) * fewer) // size
            small = _areas(small, fewer, dim).index_select(dim, back)
        out[rows] = small
    return out


def jpeg(x: Tensor, severity: Tensor, rng: Rng) -> Tensor:
    """Written and read again as JPEG; every channel by itself where there are not three."""
    quality = (80, 65, 58, 50, 40)
    bytes8 = torch.round(x.clamp(0, 1) * 255).to(torch.uint8).numpy()
    whole = x.shape[1] == 3
    out = np.empty_like(bytes8)
    for row, level in enumerate(severity.tolist()):
        if whole:
            out[row] = np.moveaxis(
                _stored(np.ascontiguousarray(np.moveaxis(bytes8[row], 0, -1)), quality[level - 1]), -1, 0
            )
            continue
        for channel, picture in enumerate(bytes8[row]):
            out[row, channel] = _stored(picture, quality[level - 1])
    return torch.from_numpy(out).to(x) / 255


def _stored(picture: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Pillow.fromarray(picture).save(buffer, format="JPEG", quality=quality)
    return np.asarray(Pillow.open(buffer))


def _pushed(x: Tensor, down: int, right: int) -> Tensor:
    """Every pixel from so many whole pixels away; the outermost go on beyond the edges."""
    h, w = x.shape[2:]
    rows = (torch.arange(h) + down).clamp(0, h - 1)
    columns = (torch.arange(w) + right).clamp(0, w - 1)
    return x.index_select(2, rows).index_select(3, columns)


def _inside(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """As `resampled`, with the outermost pixels going on beyond the edges."""
    h, w = x.shape[2:]
    rows = torch.arange(h, dtype=x.dtype)[None, :, None]
    columns = torch.arange(w, dtype=x.dtype)[None, None, :]
    down = (rows + down).clamp(0, h - 1) - rows
    right = (columns + right).clamp(0, w - 1) - columns
    return resampled(x, down, right, _NOTHING)


def _areas(x: Tensor, fewer: int, dim: int) -> Tensor:
    """Means over equal parts of an axis, whole and broken pixels alike."""
    size = x.shape[dim]
    total = torch.cat([torch.zeros_like(x.narrow(dim, 0, 1)), x.cumsum(dim)], dim)
    ends = between(total, size * fewer + 1, dim).index_select(dim, torch.arange(fewer + 1) * size)
    return ends.diff(dim=dim) * (fewer / size)


CORRUPTIONS: Mapping[str, Corrupt] = {
    "gaussian noise": gaussian_noise,
    "shot noise": shot_noise,
    "impulse noise": impulse_noise,
    "defocus blur": defocus_blur,
    "motion blur": motion_blur,
    "zoom blur": zoom_blur,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic": elastic,
    "pixelate": pixelate,
    "jpeg": jpeg,
}
"""Name -> what it does. A row adds one."""


def corrupted(kind: str, x: Tensor, severity: Tensor, ids: np.ndarray) -> Tensor:
    """Pictures `[m, c, h, w]` in [0, 1] after a corruption; a picture's own number decides over its random draws.

    Worked out in float64 on the CPU, so that no picture's rounding depends on its neighbours or on the machine.
    """
    rng = Rng(0, ids).child("corruption", kind)
    done = CORRUPTIONS[kind](x.detach().cpu().double(), severity.cpu(), rng)
    return done.clamp(0, 1).to(x)
