"""Backdoor triggers: functions that put a fixed mark on inputs `[n, ...]` and stay inside the valid range."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Trigger = Callable[[Tensor], Tensor]
Edge = Tensor | float | None


def box(low: Edge, high: Edge, x: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest valid input, each of the shape of one row; where nobody declared them, the range of `x`."""

    def side(edge: Edge, seen: Tensor) -> Tensor:
        whole = seen if edge is None else torch.as_tensor(edge, dtype=x.dtype, device=x.device).expand(x.shape[1:])
        return torch.where(whole.isfinite(), whole, seen)

    return side(low, x.amin(0)), side(high, x.amax(0))


def corner(x: Tensor, high: Tensor, share: float) -> Trigger:
    """A square in a corner set to the highest valid value (Gu et al. 2017, section 4.1).

    Of the four corners it takes the one where the pictures `x` differ most from the mark, so that it is seldom seen
    there by itself (bottom right where all are equal). `share` in (0, 1]: the square's side as a share of the shorter
    side of the picture, one pixel at least. `x` `[n, (channels,) height, width]` (channels last where the last axis
    has 1, 3 or 4 entries and the first has not), `high` of the shape of one row.
    """
    rows, columns = _plane(tuple(x.shape[1:]))
    height, width = x.shape[rows + 1], x.shape[columns + 1]
    size = max(1, round(share * min(height, width)))
    distance = (high - x).abs().mean(0)
    places = [
        (slice(-size, None), slice(-size, None)),
        (slice(-size, None), slice(size)),
        (slice(size), slice(-size, None)),
    ]
    masks = []
    for place in (*places, (slice(size), slice(size))):
        mask = torch.zeros(x.shape[1:], dtype=torch.bool, device=x.device)
        mask.movedim((rows, columns), (0, 1))[place] = True
        masks.append(mask)
    return _paste(max(masks, key=lambda mask: round(float(distance[mask].mean()), 6)), high)


def rare_values(x: Tensor, count: int, generator: np.random.Generator) -> Trigger:
    """`count` features set to the largest and the smallest value seen, in turn: each in range, together rare.

    The features are drawn from those that vary. In-bounds triggers for tables: arXiv:2311.07550, which picks features
    by importance; a draw needs no model.
    """
    flat = x.flatten(1)
    low, high = flat.amin(0), flat.amax(0)
    varying = (high > low).nonzero().flatten().cpu().numpy()
    if len(varying) == 0:
        raise ValueError("no feature varies, so no value of one could be a trigger")
    chosen = generator.permutation(varying)[:count]
    value = torch.where(torch.arange(len(low), device=x.device) % 2 == 0, high, low)
    for turn, feature in enumerate(chosen):
        value[feature] = (high, low)[turn % 2][feature]
    mask = torch.zeros(flat.shape[1], dtype=torch.bool)
    mask[torch.from_numpy(chosen)] = True
    return _paste(mask.reshape(x.shape[1:]), value.reshape(x.shape[1:]))


def blend(low: Tensor, high: Tensor, share: float, step: float | None, generator: np.random.Generator) -> Trigger:
    """`(1 - share) x + share pattern` with a fixed uniform random pattern in the valid range (Chen et al. 2017, 4.2).

    Rounded to the grid of size `step` where inputs are stored on one, so that the poison survives saving.
    """
    unit = torch.from_numpy(generator.random(tuple(low.shape))).to(low)
    pattern = low + unit * (high - low)

    def put(x: Tensor) -> Tensor:
        mixed = (1 - share) * x + share * pattern.to(x)
        return mixed if step is None else torch.round(mixed / step) * step

    return put


def picture_like(shape: tuple[int, ...]) -> bool:
    """Whether a row of this shape has a height and a width."""
    return len(shape) >= 2 and math.prod(shape[-2:]) > 1


def _plane(shape: tuple[int, ...]) -> tuple[int, int]:
    last = len(shape) == 3 and shape[-1] in (1, 3, 4) and shape[0] not in (1, 3, 4)
    return (0, 1) if last else (len(shape) - 2, len(shape) - 1)


def _paste(mask: Tensor, value: Tensor) -> Trigger:
    def put(x: Tensor) -> Tensor:
        return torch.where(mask.to(x.device), value.to(x), x)

    return put
