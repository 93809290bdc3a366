"""The smallest change that crosses a plane without leaving the box: what linearised attacks are made of.

For each row: features whose growth counts `weight` (>= 0) each and that have `room` (>= 0, may be inf) to grow, and a
gain `gap` that they are to bring together; all float64, `[m, d]`, `[m, d]`, `[m]`. Found are growths `[m, d]` of the
smallest norm; where the box does not allow the gain, all the room is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vauban.parts.projections import per_row

Growth = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(weight, room, gap) -> growth."""


def _together(rate: Tensor, weight: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """Growths min(t rate, room) for the smallest t that brings the gain.

    The gain is piecewise linear in t, with a knee where each feature comes to its wall; all knees are sorted.
    """
    knee, order = torch.where(rate > 0, room / rate, 0).sort(dim=1)
    full = (weight * room).gather(1, order).nan_to_num(nan=0.0, posinf=torch.inf)
    speed = (weight * rate).gather(1, order)
    spent = torch.nn.functional.pad(full.cumsum(1), (1, 0))[:, :-1]
    # from the end, so that the last features' own speed is not lost in a difference of sums
    moving = speed.flip(1).cumsum(1).flip(1)
    reached = (spent + knee * moving).nan_to_num(nan=torch.inf) >= gap[:, None]
    piece = (~reached).sum(1, keepdim=True)
    at = piece.clamp_max(max(knee.shape[1] - 1, 0))
    time = (gap[:, None] - spent.gather(1, at)) / moving.gather(1, at).clamp_min(torch.finfo(gap.dtype).tiny)
    time = torch.where(piece < knee.shape[1], time.clamp_min(0), torch.inf)
    return torch.where(rate > 0, torch.minimum(time * rate, room), 0)


def _linf(weight: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    return _together((weight > 0).to(weight.dtype), weight, room, gap)


def _l2(weight: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    return _together(weight, weight, room, gap)


def _one_by_one(worth: Tensor, weight: Tensor, room: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
    """Growths of features in descending order of `worth`, each to its wall before the next begins, and that order."""
    order = worth.argsort(dim=1, descending=True, stable=True)
    gain = (weight * room).gather(1, order).nan_to_num(nan=0.0, posinf=torch.inf)
    spent = torch.nn.functional.pad(gain.cumsum(1), (1, 0))[:, :-1]
    missing = (gap[:, None] - spent).clamp_min(0)
    each = torch.minimum(
        missing / weight.gather(1, order).clamp_min(torch.finfo(gap.dtype).tiny), room.gather(1, order)
    )
    return torch.where(gain > 0, each, 0), order


def _l1(weight: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    each, order = _one_by_one(weight, weight, room, gap)
    return torch.zeros_like(weight).scatter_(1, order, each)


def _l0(weight: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    # without a wall: twice as far as the best feature alone would have to go
    steepest = weight.amax(1).clamp_min(torch.finfo(gap.dtype).tiny)
    room = torch.where(room.isfinite(), room, (2 * gap / steepest)[:, None])
    each, order = _one_by_one(weight * room, weight, room, gap)
    # how far the last one goes costs nothing here
    return torch.where(torch.zeros_like(weight).scatter_(1, order, each) > 0, room, 0)


GROWTHS: Mapping[str, Growth] = {"linf": _linf, "l2": _l2, "l1": _l1, "l0": _l0}


def cross(x: Tensor, slope: Tensor, gap: Tensor, low: Tensor, high: Tensor, norm: str) -> Tensor:
    """The point of the box nearest to `x` `[m, ...]` at which a function of slope `slope` has grown by `gap` `[m]`.

    `x` itself where the gap is not above zero. Computed in float64, row by row; inside the box.
    """
    w = slope.flatten(1).double()
    room = torch.where(slope > 0, high - x, x - low).clamp_min(0).flatten(1).double()
    # scaled, for sums of tiny weights would underflow
    scale = w.abs().amax(1).clamp_min(torch.finfo(w.dtype).tiny)
    growth = GROWTHS[norm]((w / scale[:, None]).abs(), room, (gap.double() / scale).clamp_min(0))
    moved = x.double() + (growth * w.sign()).view(x.shape)
    return torch.where(per_row(gap > 0, x).bool(), moved.to(x.dtype), x).clamp(low, high)


def size(x: Tensor, slope: Tensor, gap: Tensor, low: Tensor, high: Tensor, norm: str) -> Tensor:
    """The norm of that change, float64 `[m]`; inf where the box does not allow the gain."""
    w = slope.flatten(1).double().abs()
    room = torch.where(slope > 0, high - x, x - low).clamp_min(0).flatten(1).double()
    growth = GROWTHS[norm](w, room, gap.double().clamp_min(0))
    gained = torch.where(w > 0, w * growth, 0).sum(1)
    order = {"linf": torch.inf, "l2": 2.0, "l1": 1.0, "l0": 0.0}[norm]
    length = torch.linalg.vector_norm(growth, ord=order, dim=1)
    return torch.where(gained >= gap.double() * (1 - 1e-9), length, torch.inf)
