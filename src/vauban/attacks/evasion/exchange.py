"""The last steps of a search for few features: one is put back, others are exchanged until that does no harm."""

from __future__ import annotations

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front
from vauban.attacks.evasion.nearest import OVER, Nearest, box
from vauban.core.attack import EvasionScene
from vauban.core.rng import Rng
from vauban.parts.halfspace import cross
from vauban.parts.projections import largest, per_row

CYCLE = 20
"""Steps in which the noise falls from the first to the second share of the largest worth, over and over."""
NOISE = (2.0, 0.05)


def exchange(scene: EvasionScene, found: Nearest, steps: int, rng: Rng) -> None:
    """From the nearest success so far to points with fewer changed features: `steps` gradients.

    The first step is onto the border of the linearisation, as in `settle`; on a linear model that is the optimum. Then, row by
    row, changes are put back, the least useful first and as many at once as a linear model would allow, half as many where that
    was too many. Where a single one was, the point without it is the base of an exchange: one changed feature, of little
    use, for another, of much promise, at the wall its slope points to. Use and promise are what a linear model at the base
    says, with noise. What does not lower the margin is the next base; a success begins the next count. Rows without a
    success begin at the input and change one feature after the other.
    """
    front = Front(scene)
    z = base = found.x[front.rows]
    slope, margin = torch.zeros_like(z), torch.full((len(front),), -torch.inf, dtype=z.dtype, device=z.device)
    many = torch.full((len(front),), z[:1].numel(), dtype=torch.int64, device=z.device)
    full = torch.ones_like(many, dtype=torch.bool)
    for number in range(steps):
        if not len(front):
            return
        look = scene.oracle.value_and_grad(scene.oracle.goal.margin, z, front.rows)
        won = found.see(z, front.rows, look.margin) | (number == 0)
        count = found.distance[front.rows]
        fewer = count - scene.space.distance(z, front.x)
        fresh, single = count.isinf(), (fewer == 1) & (many == 1)
        better = won | (single & full) | ((single | fresh) & (look.margin >= margin))
        # too many were put back at once
        many = torch.where(~better & ~fresh & (fewer > 1), many // 2, many).clamp_min(1)
        mask = per_row(better, z).bool()
        base, slope = torch.where(mask, z, base), torch.where(mask, look.grad, slope)
        margin = torch.where(better, look.margin, margin)
        full = torch.where(better, won, full) & ~fresh
        z, base, slope, margin, many, full, fresh = front.narrow(
            look.open & (count > 1), z, base, slope, margin, many, full, fresh
        )
        if number == 0:
            gap = -margin.double() - (slope.double() * (front.x - base).double()).flatten(1).sum(1)
            z = cross(front.x, slope, gap * (1 + OVER), *box(scene, z), "l0")
        else:
            wall = _walls(scene, front.x, slope)
            back, fits = _put_back(front.x, base, wall, slope, margin, many)
            many = torch.where(full, fits, many)
            noise = _temperature(number) * rng.normal(front.rows, z.shape[1:]).double()
            z = torch.where(per_row(full, z).bool(), back, _exchanged(front.x, base, wall, slope, noise, fresh))


def _temperature(number: int) -> float:
    return NOISE[0] * (NOISE[1] / NOISE[0]) ** ((number % CYCLE) / CYCLE)


def _walls(scene: EvasionScene, x: Tensor, slope: Tensor) -> Tensor:
    """Where each feature helps most, as far as the box goes."""
    low, high = box(scene, x)
    return torch.where(slope > 0, high, low).expand_as(x)


def _within_reach(x: Tensor, base: Tensor, wall: Tensor, slope: Tensor) -> Tensor:
    """`wall`; where the box is open, twice as far away as the farthest change of the row."""
    reach = 2 * (base - x).abs().flatten(1).amax(1).clamp(1, torch.finfo(x.dtype).max / 8)
    return torch.where(wall.isfinite(), wall, x + slope.sign() * per_row(reach, x))


def _put_back(
    x: Tensor, base: Tensor, wall: Tensor, slope: Tensor, margin: Tensor, many: Tensor
) -> tuple[Tensor, Tensor]:
    """`base` with its changes at their walls and up to `many` `[m]` of the least useful taken back; and how many it were."""
    changed = base != x
    far = torch.where(changed & wall.isfinite() & (slope != 0), wall, base)
    use = torch.where(changed, slope.double() * (far - x).double(), torch.inf).flatten(1)
    spare = margin.double() + (slope.double() * (far - base).double()).flatten(1).sum(1)
    fits = (use.sort(1).values.cumsum(1) < spare[:, None]).sum(1)
    many = torch.minimum(many, fits.clamp_min(1))
    return torch.where(largest(-use, many).view_as(x), x, far), many


def _exchanged(x: Tensor, base: Tensor, wall: Tensor, slope: Tensor, noise: Tensor, add: Tensor) -> Tensor:
    """`base` with one change made and another taken back, but where rows only `add` `[m]`; `noise` `[m, ...]` in units of
    the largest worth."""
    wall = _within_reach(x, base, wall, slope)
    changed = base != x
    free = (wall != x) & ~changed
    promise = (slope.double() * (wall - x).double()).flatten(1)
    noise = noise.flatten(1) * promise.amax(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    use = (slope.double() * (base - x).double()).flatten(1)
    out = torch.where(changed.flatten(1), noise - use, -torch.inf)
    into = torch.where(free.flatten(1), noise + promise, -torch.inf)
    one = torch.ones(len(x), dtype=torch.int64, device=x.device)
    gone, come = (largest(worth, one).view_as(x) for worth in (out, into))
    gone = gone & changed & ~per_row(add, x).bool()
    return torch.where(come & free, wall, torch.where(gone, x, base))
