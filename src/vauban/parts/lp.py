"""The two one-parameter problems behind exact projections onto a ball cut by a box.

Both are given, for each row, how far every coordinate wants to go (`size`, >= 0) and how far the box lets it go
(`room`, >= 0, may be inf), as `[n, d]`; signs play no part.
"""

from __future__ import annotations

import torch
from torch import Tensor


def l2_scale(size: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    """`s` `[n]` in [0, 1] such that min(s * size, room) is the nearest point to `size` in ball and box.

    The optimality conditions of min ||w - size|| with ||w|| <= radius, 0 <= w <= room give w = min(size / (1 + m), room)
    for one multiplier m >= 0 a row, so only s = 1 / (1 + m) is sought: sum min(s size, room)^2 = radius^2. Taking the
    coordinates that are stopped at s_k as the only ones ever stopped overestimates the left side, so its root s_(k+1)
    rises to the solution from below and hits it once the set of stopped coordinates no longer grows: finitely many
    steps, in practice two to five.
    """
    radius2 = radius.square()
    scale = (radius / size.norm(dim=1).clamp_min(torch.finfo(size.dtype).tiny)).clamp_max(1.0)
    while True:
        stopped = size * scale[:, None] >= room
        spent = torch.where(stopped, room, 0).square().sum(1)
        free = torch.where(stopped, 0, size).square().sum(1)
        wider = ((radius2 - spent).clamp_min(0) / free).sqrt().nan_to_num(nan=1.0).clamp_max(1.0)
        rising = wider > scale * (1 + 1e-6)
        if not bool(rising.any()):
            return torch.maximum(scale, wider)
        scale = torch.where(rising, wider, scale)


def l1_threshold(size: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    """`t` `[n]` >= 0 such that min(max(size - t, 0), room) is the nearest point to `size` in ball and box.

    The optimality conditions give that form with one multiplier t a row, zero where the box alone suffices. The sum
    over coordinates falls in t, piecewise linearly, with a knee where each coordinate leaves the box's wall
    (size - room) and where it vanishes (size): all knees are sorted, and the line that crosses `radius` is solved.
    """
    room = torch.minimum(room, size)
    knees, order = torch.cat([size, size - room], 1).sort(dim=1, descending=True)
    started = (order < size.shape[1]).to(size.dtype) * 2 - 1
    moving = started.cumsum(1)[:, :-1]
    sums = (moving * (knees[:, :-1] - knees[:, 1:])).cumsum(1)
    # sums[:, k] is the total at knees[:, k + 1]; the first to reach the radius ends the piece that is wanted
    piece = (sums < radius[:, None]).sum(1, keepdim=True).clamp_max(sums.shape[1] - 1)
    excess = sums.gather(1, piece) - radius[:, None]
    threshold = knees.gather(1, piece + 1) + excess / moving.gather(1, piece).clamp_min(1)
    return torch.where(room.sum(1) <= radius, 0.0, threshold.squeeze(1).clamp_min(0))
