"""A short search for inputs that refute a claim, so that no work goes into proving what is false."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vauban.parts.bounds.alpha import Claims, Never
from vauban.parts.bounds.graph import Graph
from vauban.parts.bounds.intervals import Region
from vauban.parts.projections import SPACES

_STEPS = 60
_ROWS = 128


@dataclass(frozen=True, eq=False)
class Counter:
    """The worst inputs met `[n, ...]` and the smallest claim there `[n]`."""

    x: Tensor
    margin: Tensor


def counter(graph: Graph, area: Region, claims: Claims, stop: Never) -> Counter:
    """Projected descent of the smallest claim of every row, in float64, by steps that shrink."""
    out, least = area.x.clone(), torch.full_like(claims.rest[:, 0], torch.inf)
    for rows in torch.arange(len(area), device=area.x.device).split(_ROWS):
        if stop():
            break
        found = _descend(graph, area[rows], claims[rows])
        out[rows], least[rows] = found.x, found.margin
    return Counter(out, least)


def _descend(graph: Graph, area: Region, claims: Claims) -> Counter:
    x = area.x
    space = SPACES[area.order]()
    # the box of the region keeps the valid box too
    within = space.within(x, area.radius)
    best, least = x.clone(), torch.full_like(claims.rest[:, 0], torch.inf)
    z = x.clone()
    for step in range(_STEPS):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            worst = ((claims.a @ graph.forward(z)[:, :, None])[:, :, 0] + claims.rest).amin(1)
            (slope,) = torch.autograd.grad(worst.sum(), z)
        better = worst.detach() < least
        least = torch.where(better, worst.detach(), least)
        wide = better.reshape(-1, *(1,) * (x.dim() - 1))
        best = torch.where(wide, z.detach(), best)
        pace = area.radius * 0.6 * (1 - step / _STEPS)
        moved = z.detach() + space.steepest(-slope, z.detach(), pace)
        z = within(moved.maximum(area.low).minimum(area.high))
        z = z.maximum(area.low).minimum(area.high)
    return Counter(best, least)
