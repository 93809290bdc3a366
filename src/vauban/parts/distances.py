"""How different two pictures look: SSIM, MS-SSIM and CIEDE2000, beside the norms.

Pictures are `[n, channels, height, width]` in [0, 1]; every measure gives one float64 number a picture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW, SPREAD = 11, 1.5
"""Side and standard deviation of the Gaussian window, in pixels."""
K1, K2 = 0.01, 0.03
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the scales of MS-SSIM, finest first."""
COLOURS = 3
PART = 2**21


def pictures(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Inputs `[n, c, h, w]`, `[n, h, w, c]` or `[n, h, w]` as float64 `[n, c, h, w]`, 0 at `low` and 1 at `high`.

    Channels are the last axis where that has 1, 3 or 4 places and the first has not.
    """
    low, high = low.to(x.device, torch.float64), high.to(x.device, torch.float64)
    unit = (x.detach().double() - low) / torch.where(high > low, high - low, 1.0)
    if unit.dim() == 3:
        return unit[:, None]
    last = unit.shape[-1] in (1, 3, 4) and unit.shape[1] not in (1, 3, 4)
    return unit.movedim(-1, 1) if last else unit


def ssim(z: Tensor, x: Tensor) -> Tensor:
    """Structural similarity: 1 for equal pictures, less the more structure is lost; the mean over pixels and channels.

    Wang, Bovik, Sheikh and Simoncelli 2004 (IEEE TIP 13(4), section III): a Gaussian window of 11 x 11 pixels, only where
    it lies inside. Departure: in pictures with a side below 11 pixels the window is the largest odd one that fits, its
    spread shrunk alike (7 x 7 for digits of 8 x 8); such values are comparable among pictures of one size only.
    """
    likeness, _ = _compared(z.double(), x.double())
    return likeness.mean(1)


def ms_ssim(z: Tensor, x: Tensor) -> Tensor:
    """SSIM over several scales, each half the one before: 1 for equal pictures.

    Wang, Simoncelli and Bovik 2003 (Asilomar, section 3, the calibrated weights). Departure: the five scales need a side
    of 176 pixels; smaller pictures get as many as keep a window inside, with their weights scaled to sum to 1, and where
    the first scale alone fits it is SSIM. A scale whose structure is opposite counts as 0.
    """
    z, x = z.double(), x.double()
    side = min(x.shape[-2:])
    count = sum(side // 2**k >= WINDOW for k in range(len(SCALES))) or 1
    weights = [weight / sum(SCALES[:count]) for weight in SCALES[:count]]
    whole = torch.ones(x.shape[:2], dtype=torch.float64, device=x.device)
    for scale, weight in enumerate(weights):
        likeness, structure = _compared(z, x)
        last = scale == count - 1
        whole = whole * (likeness if last else structure).clamp_min(0) ** weight if count > 1 else likeness
        if not last:
            z, x = F.avg_pool2d(z, 2), F.avg_pool2d(x, 2)
    return whole.mean(1)


def _compared(z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """(SSIM, its contrast and structure part alone), means over pixels, `[n, c]`."""
    window = _window(min(x.shape[-2:]), x.device)
    c1, c2 = K1**2, K2**2
    one, two = _blurred(z, window), _blurred(x, window)
    var_one, var_two = _blurred(z * z, window) - one * one, _blurred(x * x, window) - two * two
    both = _blurred(z * x, window) - one * two
    structure = (2 * both + c2) / (var_one + var_two + c2)
    likeness = (2 * one * two + c1) / (one * one + two * two + c1) * structure
    return likeness.mean((2, 3)), structure.mean((2, 3))


def _window(side: int, device: torch.device) -> Tensor:
    width = min(WINDOW, side - 1 + side % 2)
    at = torch.arange(width, dtype=torch.float64, device=device) - (width - 1) / 2
    weights = torch.exp(-0.5 * (at / (SPREAD * width / WINDOW)) ** 2)
    return weights / weights.sum()


def _blurred(planes: Tensor, window: Tensor) -> Tensor:
    """Every plane under the window, first along one axis and then along the other, inside only."""
    flat = planes.reshape(-1, 1, *planes.shape[-2:])
    flat = F.conv2d(F.conv2d(flat, window[None, None, :, None]), window[None, None, None, :])
    return flat.view(*planes.shape[:2], *flat.shape[-2:])


def lab(rgb: Tensor) -> Tensor:
    """sRGB `[..., 3]` in [0, 1] as CIELAB `[..., 3]` under D65 (IEC 61966-2-1, CIE 15)."""
    rgb = rgb.double()
    light = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)
    matrix = torch.tensor(_XYZ, dtype=torch.float64, device=rgb.device)
    share = light @ matrix.T / matrix.sum(1)
    edge = 6 / 29
    bent = torch.where(share > edge**3, share.clamp_min(edge**3) ** (1 / 3), share / (3 * edge**2) + 4 / 29)
    x, y, z = bent.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
"""Linear sRGB to XYZ; its row sums are the white point."""


def ciede2000(one: Tensor, two: Tensor) -> Tensor:
    """Colour difference of CIELAB colours `[..., 3]`, `[...]`; about 1 is just seen, 100 lies between black and white.

    CIE 142-2001, as written out by Sharma, Wu and Dalal 2005 (Color Research and Application 30(1), equations 2 to 22).
    """
    (l1, a1, b1), (l2, a2, b2) = one.double().unbind(-1), two.double().unbind(-1)
    stretch = 1.5 - 0.5 * _seventh((torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2)
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)
    h1, h2 = torch.rad2deg(torch.atan2(b1, a1)) % 360, torch.rad2deg(torch.atan2(b2, a2)) % 360
    grey = c1 * c2 == 0
    apart = h2 - h1
    # opposite hues are exactly half a turn apart: rounding must not put them on the other side
    across = apart.abs() > 180 + 1e-9
    turn = torch.where(grey, 0.0, torch.where(across, apart - 360 * apart.sign(), apart))
    total = h1 + h2
    middle = torch.where(across, total + torch.where(total < 360, 360.0, -360.0), total) / 2
    hue = torch.where(grey, total, middle)
    lightness, chroma = (l1 + l2) / 2, (c1 + c2) / 2

    def cosine(degrees: Tensor) -> Tensor:
        return torch.cos(torch.deg2rad(degrees))

    t = 1 - 0.17 * cosine(hue - 30) + 0.24 * cosine(2 * hue) + 0.32 * cosine(3 * hue + 6) - 0.20 * cosine(4 * hue - 63)
    off = (lightness - 50) ** 2
    by_l = (l2 - l1) / (1 + 0.015 * off / torch.sqrt(20 + off))
    by_c = (c2 - c1) / (1 + 0.045 * chroma)
    by_h = 2 * torch.sqrt(c1 * c2) * torch.sin(torch.deg2rad(turn / 2)) / (1 + 0.015 * chroma * t)
    swing = 30 * torch.exp(-(((hue - 275) / 25) ** 2))
    rotation = -2 * _seventh(chroma) * torch.sin(torch.deg2rad(2 * swing))
    return torch.sqrt((by_l**2 + by_c**2 + by_h**2 + rotation * by_c * by_h).clamp_min(0))


def _seventh(chroma: Tensor) -> Tensor:
    return torch.sqrt(chroma**7 / (chroma**7 + 25.0**7))


def colour_difference(z: Tensor, x: Tensor) -> Tensor:
    """CIEDE2000 of two colour pictures `[n, 3, h, w]` taken as sRGB, the mean over pixels."""
    return ciede2000(lab(z.movedim(1, -1)), lab(x.movedim(1, -1))).mean((1, 2))


def in_parts(measure: Callable[[Tensor, Tensor], Tensor], z: Tensor, x: Tensor) -> Tensor:
    """`measure` of many pictures, a few million numbers at a time."""
    size = max(1, PART // max(1, x[0].numel())) if len(x) else 1
    parts = [measure(a, b) for a, b in zip(z.split(size), x.split(size), strict=True)]
    return torch.cat(parts) if len(x) else torch.zeros(0, dtype=torch.float64)
