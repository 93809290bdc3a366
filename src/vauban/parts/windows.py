"""Pictures of any layout, and rectangles in them: all that are no larger than a share of it, sums over them, the best of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

ALL_UP_TO = 64
"""Sides up to which every shape of a rectangle is tried; in larger pictures thirteen heights, evenly spread by their logarithm."""

ROUNDING = 1e-9
"""How far, relatively, a share of the area may fall short of whole pixels and still mean them."""


def upright(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Pictures `[n, c, h, w]`, `[n, h, w, c]` or `[n, h, w]` as `[n, c, h, w]`, and the way back.

    Channels are the last axis where that has 1, 3 or 4 places and the first has not, as in `parts.distances`.
    """
    if x.dim() == 3:
        return x[:, None], lambda z: z[:, 0]
    last = x.shape[-1] in (1, 3, 4) and x.shape[1] not in (1, 3, 4)
    return (x.movedim(-1, 1), lambda z: z.movedim(1, -1)) if last else (x, lambda z: z)


def shapes(h: int, w: int, share: float) -> list[tuple[int, int]]:
    """Heights and widths of the rectangles within a picture `h` x `w` that cover at most `share`, none inside another.

    `share` is taken up to `ROUNDING`: 0.29 of 100 pixels are 29, although the product of the floats falls short of it.
    """
    area = int(share * h * w * (1 + ROUNDING) + ROUNDING)
    heights = range(1, h + 1)
    if max(h, w) > ALL_UP_TO:
        heights = sorted({round(float(a)) for a in np.geomspace(max(1, area // w), min(h, area), 13)} if area else ())  # type: ignore[assignment]
    found = [(a, min(w, area // a)) for a in heights if area >= a]
    return [(a, b) for a, b in found if not any(c > a and d >= b for c, d in found)]


def sums(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Sums of `values` `[m, h, w]` over every rectangle of that shape, by its upper left corner, float64."""
    a, b = shape
    total = torch.nn.functional.pad(values.double(), (1, 0, 1, 0)).cumsum(1).cumsum(2)
    return total[:, a:, b:] - total[:, :-a, b:] - total[:, a:, :-b] + total[:, :-a, :-b]


def best(values: Tensor, sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """The rectangles `[m, 4]` (top, left, height, width) with the largest sums of `values` `[m, h, w]`, and the sums."""
    top = torch.full((len(values),), -torch.inf, dtype=torch.float64, device=values.device)
    box = torch.zeros(len(values), 4, dtype=torch.int64, device=values.device)
    for a, b in sizes:
        found = sums(values, (a, b))
        gain, place = found.flatten(1).max(1)
        here = torch.stack(
            [place // found.shape[2], place % found.shape[2], torch.full_like(place, a), torch.full_like(place, b)], 1
        )
        # sums are differences of running sums, so that equal ones may differ in their last digits
        better = gain > top + 1e-12 * top.abs().nan_to_num(0, 0, 0)
        top, box = torch.where(better, gain, top), torch.where(better[:, None], here, box)
    return box, top


def covered(boxes: Tensor, h: int, w: int) -> Tensor:
    """bool `[m, h, w]`: inside the rectangle `[m, 4]`."""
    top, left, height, width = (part[:, None] for part in boxes.unbind(1))
    rows, columns = torch.arange(h, device=boxes.device)[None], torch.arange(w, device=boxes.device)[None]
    down = (rows >= top) & (rows < top + height)
    right = (columns >= left) & (columns < left + width)
    return down[:, :, None] & right[:, None, :]


def bounding(changed: Tensor) -> Tensor:
    """int64 `[m]`: pixels of the smallest rectangle around the true places of `changed` `[m, h, w]`; 0 where there is none."""
    return _extent(changed.any(2)) * _extent(changed.any(1))


def _extent(hit: Tensor) -> Tensor:
    places = torch.arange(hit.shape[1], device=hit.device)[None]
    last = torch.where(hit, places, -1).amax(1)
    first = torch.where(hit, places, hit.shape[1]).amin(1)
    return (last - first + 1).clamp_min(0)


def spread(mask: Tensor, x: Tensor) -> Tensor:
    """A mask `[m, h, w]` for every channel of pictures laid out as `x`."""
    pictures, back = upright(x)
    return back(mask[:, None].expand(-1, pictures.shape[1], -1, -1))


def walls(g: Tensor, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The way from every pixel to the wall of the box that `g` points to; 1 where there is none."""
    room = torch.where(g > 0, high - x, x - low).clamp_min(0)
    return g.sign() * torch.where(room.isfinite(), room, 1.0)
