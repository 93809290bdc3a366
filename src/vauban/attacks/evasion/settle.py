"""The last steps of a search for the nearest success: along the border of the model's linearisation."""

from __future__ import annotations

import torch

from vauban.attacks.evasion.front import Front
from vauban.attacks.evasion.nearest import OVER, Nearest, box
from vauban.core.attack import EvasionScene
from vauban.parts.halfspace import cross
from vauban.parts.projections import per_row


def settle(scene: EvasionScene, found: Nearest, steps: int) -> None:
    """From the nearest success so far onto the border of the model's linearisation there, where that is nearer still.

    The way to go is halved where it led nowhere; a jump that fell short is first mended along its own slope. On a linear
    model the first jump ends at the optimum.
    """
    front = Front(scene)
    front.narrow(found.distance[front.rows].isfinite())
    z = best = found.x[front.rows]
    slope, value = torch.zeros_like(z), torch.zeros(len(front), dtype=z.dtype, device=z.device)
    share, over = torch.ones_like(value), torch.full_like(value, OVER)
    jumped = torch.zeros(len(front), dtype=torch.bool, device=z.device)
    for number in range(steps):
        if not len(front):
            return
        look = scene.oracle.value_and_grad(scene.oracle.goal.margin, z, front.rows)
        better = found.see(z, front.rows, look.margin) | (number == 0)
        mask = per_row(better, z).bool()
        best, slope = torch.where(mask, z, best), torch.where(mask, look.grad, slope)
        value = torch.where(better, look.margin, value)
        short = jumped & (look.margin <= 0) & (number > 0)
        if number:
            share = torch.where(better, (share * 1.5).clamp_max(1.0), torch.where(short, share, share * 0.5))
            over = torch.where(better, over * 0.5, (over * 2).clamp_max(0.1))
        gap = -value.double() - (slope.double() * (front.x - best).double()).flatten(1).sum(1)
        there = cross(front.x, slope, gap * (1 + over), *box(scene, z), scene.space.name)
        mended = cross(z, look.grad, -look.margin * (1 + 10 * over), *box(scene, z), scene.space.name)
        jump = best + per_row(share, z) * (there - best)
        z = torch.clamp(torch.where(per_row(short, z).bool(), mended, jump), *box(scene, z))
        z, best, slope, value, share, over, jumped = front.narrow(look.open, z, best, slope, value, share, over, ~short)
