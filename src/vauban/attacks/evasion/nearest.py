"""What attacks that look for the nearest success share: what was found so far, the classes to go for, measures."""

from __future__ import annotations

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front
from vauban.core.attack import EvasionScene
from vauban.core.goal import Goal
from vauban.core.oracle import Look, Loss
from vauban.core.target import Outputs
from vauban.parts.halfspace import cross, size

COMPARED = 9
"""Classes that are ranked at most, a gradient each."""
OVER = 1e-3
"""Share by which a step goes further than the linearised border, for rounding not to keep it on this side."""
MISLED = 1.2
"""Where a success was found that many times nearer than the slopes at the input promise, these lead astray."""


class Nearest:
    """The nearest success of every row of the scene so far, however far it is: `x` `[n, ...]`, `distance` `[n]`.

    The oracle keeps it, too, but within a finite radius only what lies inside: a search that comes from outside needs more.
    """

    def __init__(self, scene: EvasionScene) -> None:
        self._scene = scene
        self.x = scene.x.clone()
        self.distance = torch.full((len(scene.x),), torch.inf, dtype=torch.float64, device=scene.x.device)
        self.promised = torch.zeros_like(self.distance)
        """Where the model would give in if it were linear, `[n]`; 0 where nobody asked."""
        self.astray = torch.zeros_like(self.distance, dtype=torch.bool)
        """Rows `[n]` that do not follow these slopes in the run that is made."""

    def misled(self) -> Tensor:
        """bool `[n]`: rows whose slopes at the input see the border farther away than it was found."""
        return self.distance * MISLED < self.promised

    def see(self, z: Tensor, rows: Tensor, margin: Tensor) -> Tensor:
        """Keep what reaches the goal and is nearer than before; bool `[m]`: which rows got nearer."""
        nearer = torch.zeros(len(rows), dtype=torch.bool, device=z.device)
        hit = (margin > 0).nonzero().flatten()
        if len(hit):
            reach = self._scene.space.distance(z[hit], self._scene.x[rows[hit]])
            won = reach < self.distance[rows[hit]]
            hit = hit[won]
            nearer[hit] = True
            self.x[rows[hit]], self.distance[rows[hit]] = z[hit], reach[won]
        return nearer


def ranked(scene: EvasionScene, front: Front, most: int, found: Nearest) -> Tensor:
    """int64 `[m, most]` wrong classes, nearest first, by where a linear model would give in; `most` gradients a row.

    Where it would for the nearest is looked at. Up to three queries.
    """
    true = scene.oracle.goal.labels.to(front.x.device)[front.rows]
    if most + 1 == scene.classes:
        near = (true[:, None] + torch.arange(1, most + 1, device=true.device)) % (most + 1)
    else:
        scores = scene.oracle.scores(front.x, front.rows)
        near = scores.scatter(1, true[:, None], -torch.inf).topk(most, 1).indices
    slopes = scene.oracle.class_slopes(front.x, front.rows, near, true)
    gaps = slopes.scores.gather(1, true[:, None]) - slopes.scores.gather(1, near)
    pairs = list(zip(slopes.grad.unbind(1), gaps.unbind(1), strict=True))
    far = [size(front.x, grad, gap, *box(scene, front.x), scene.space.name) for grad, gap in pairs]
    distances = torch.stack(far, 1)
    order = distances.argsort(dim=1, stable=True)
    found.promised[front.rows] = distances.amin(1)
    front.narrow(slopes.open)
    first = order[slopes.open, 0]
    if len(front):
        at = torch.arange(len(first), device=first.device)
        slope, gap = slopes.grad[slopes.open][at, first], gaps[slopes.open][at, first]
        there = cross(front.x, slope, gap * (1 + OVER), *box(scene, front.x), scene.space.name)
        found.see(there, front.rows, scene.oracle.margins(there, front.rows))
    return near.gather(1, order)


def levelled(goal: Goal, side: Loss) -> Loss:
    """`side` lowered so that it is zero on the goal's border: the residual of a regression is not."""

    def loss(outputs: Outputs, rows: Tensor) -> Tensor:
        value, margin = side(outputs, rows), goal.margin(outputs, rows)
        return margin if side == goal.margin else value - (value.abs() - margin).detach()

    return loss


def unled(goal: Goal, side: Loss, astray: Tensor) -> Loss:
    """`side`, but the margin to whatever class is nearest to winning for the rows that are `astray` `[n]`."""

    def loss(outputs: Outputs, rows: Tensor) -> Tensor:
        return torch.where(astray[rows], goal.margin(outputs, rows), side(outputs, rows))

    return loss


def box(scene: EvasionScene, like: Tensor) -> tuple[Tensor, Tensor]:
    return scene.space.low.to(like), scene.space.high.to(like)


def scale(scene: EvasionScene, x: Tensor, look: Look) -> Tensor:
    """A length for steps, float64 `[m]`: how far in L2 a linear model would have to be followed from `x` to the border.

    Where there is no slope, or none that the box would let follow, the way to the farthest corner of the box, or 1.
    """
    gap = (-look.value).clamp_min(0) + torch.finfo(x.dtype).tiny
    straight = size(x, look.grad, gap, *box(scene, x), "l2")
    low, high = box(scene, x)
    corner = torch.linalg.vector_norm(torch.maximum(x - low, high - x).flatten(1).double(), dim=1)
    corner = torch.where(corner.isfinite(), corner, 1.0)
    return torch.where(straight.isfinite() & (straight > 0), straight, corner)
