"""What attacks that look for the nearest success share: what was found so far, the classes to go for, the last steps."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front
from vauban.attacks.evasion.rivals import compared, towards
from vauban.attacks.evasion.settings import at_least
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.goal import Goal
from vauban.core.oracle import Look, Loss
from vauban.core.rng import Rng
from vauban.core.target import Outputs
from vauban.parts.halfspace import cross, size
from vauban.parts.projections import per_row
from vauban.schema.cards import AttackCard

COMPARED = 9
"""Classes that are ranked at most, a gradient each."""
OVER = 1e-3
"""Share by which a step goes further than the linearised border, for rounding not to keep it on this side."""
MISLED = 1.2
"""Where a success was found that many times nearer than the slopes at the input promise, these lead astray."""
FREE = range(1, 3)
"""The runs, of those that a search makes, in which misled rows follow whatever class comes nearest on the way."""
LAST = {"linf": 10, "l2": 10, "l1": 10, "l0": 10}
"""Steps at the end of a search that mend what it found, at most."""


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


@dataclass(frozen=True, kw_only=True)
class Minimal:
    """An attack that follows one loss at a time: towards each of the nearest classes in turn, then settles.

    Rows whose first run found a success much nearer than the slopes at the input promise follow the largest class in the two
    after it: the order of the classes came from these slopes. Subclasses say how one such run goes.
    """

    card: ClassVar[AttackCard]
    shortest: ClassVar[int] = 50
    """Steps of a run at least: with fewer for each class, fewer classes are gone for."""

    steps: int = 500
    targets: int = 3

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 4)
        at_least("targets", self.targets, 1)

    def price(self, classes: int | None) -> Price:
        """`steps` gradients, and up to three queries to rank classes."""
        return Price(queries=self.steps + 3, gradients=self.steps)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]`: the nearest successes, or one within the radius where it is finite."""
        found = Nearest(scene)
        losses, left = self._ways(scene, found)
        last = min(LAST[scene.space.name], left // 5)
        for number, side in enumerate(losses):
            front = Front(scene)
            found.astray = found.misled() & (number in FREE)
            loss = unled(scene.oracle.goal, side, found.astray) if bool(found.astray.any()) else side
            if len(front):
                self.run(scene, front, found, loss, (left - last) // len(losses), rng.child(self.card.id, number))
        SETTLE[scene.space.name](scene, found, last)
        return Perturbed(scene.oracle.best.x)

    def _ways(self, scene: EvasionScene, found: Nearest) -> tuple[list[Loss], int]:
        """The losses to follow, and the steps that are left for them."""
        goal = scene.oracle.goal
        led = compared(scene, min(COMPARED, self.steps // 20)) if self.targets > 1 else 0
        front = Front(scene)
        # where a budget cannot pay for the comparison, there is none
        if not led or not len(front) or not bool(scene.oracle.open(front.rows, led).all()):
            return [levelled(goal, side) for side in goal.objectives("margin")], self.steps
        rows, order = front.rows, ranked(scene, front, led, found)
        if self.steps < 2 * self.shortest:
            return [goal.margin], self.steps - led
        losses = []
        for column in range(min(self.targets, self.steps // self.shortest, led)):
            wanted = torch.zeros(len(scene.x), dtype=torch.int64, device=front.x.device)
            wanted[rows] = order[:, column]
            losses.append(towards(goal, wanted))
        return losses, self.steps - led

    @abstractmethod
    def run(self, scene: EvasionScene, front: Front, found: Nearest, loss: Loss, steps: int, rng: Rng) -> None:
        """One run from the clean inputs, of `steps` gradients, that shows `found` every point it looks at."""


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


def put_back(scene: EvasionScene, found: Nearest, steps: int) -> None:
    """In L0: change the features of the nearest success as far as the box lets them help, and put the least useful back.

    The first step is onto the border of the linearisation, as in `settle`. Then as many are put back at once as a linear model would allow; half as many where that was too many; one by one, the next least useful
    each time, once a single one was.
    """
    front = Front(scene)
    front.narrow(found.distance[front.rows].isfinite())
    z = best = found.x[front.rows]
    slope, margin = torch.zeros_like(z), torch.full((len(front),), torch.inf, dtype=z.dtype, device=z.device)
    many = torch.full((len(front),), z[:1].numel(), dtype=torch.int64, device=z.device)
    skipped = torch.zeros_like(many)
    for number in range(steps):
        if not len(front):
            return
        look = scene.oracle.value_and_grad(scene.oracle.goal.margin, z, front.rows)
        better = found.see(z, front.rows, look.margin) | (number == 0)
        mask = per_row(better, z).bool()
        best, slope = torch.where(mask, z, best), torch.where(mask, look.grad, slope)
        margin = torch.where(better, look.margin, margin)
        failed = ~better & (number > 1)
        skipped = torch.where(better, 0, torch.where(failed & (many == 1), skipped + 1, skipped))
        many = torch.where(failed, (many // 2).clamp_min(1), many)
        if number == 0:
            gap = -margin.double() - (slope.double() * (front.x - best).double()).flatten(1).sum(1)
            z = cross(front.x, slope, gap * (1 + OVER), *box(scene, z), "l0")
        else:
            z, many = _without(scene, front.x, best, slope, margin, many, skipped)
        z, best, slope, margin, many, skipped = front.narrow(look.open, z, best, slope, margin, many, skipped)


def _without(
    scene: EvasionScene, x: Tensor, best: Tensor, slope: Tensor, margin: Tensor, many: Tensor, skipped: Tensor
) -> tuple[Tensor, Tensor]:
    """The point `best` with up to `many` `[m]` changes taken back, after the `skipped` least useful; and how many it were."""
    low, high = box(scene, x)
    wall = torch.where(slope > 0, high, low).expand_as(x)
    changed = best != x
    far = torch.where(changed & wall.isfinite() & (slope != 0), wall, best)
    use = (slope.double() * (far - x).double()).flatten(1)
    spare = margin.double() + (slope.double() * (far - best).double()).flatten(1).sum(1)
    order = torch.where(changed.flatten(1), use, torch.inf).argsort(dim=1, stable=True)
    place = torch.arange(order.shape[1], device=x.device)[None, :]
    worth = torch.where(changed.flatten(1), use, torch.inf).gather(1, order)
    fits = ((worth.cumsum(1) < spare[:, None]) & worth.isfinite()).sum(1)
    many = torch.minimum(many, fits.clamp_min(1))
    back = (place >= skipped[:, None]) & (place < (skipped + many)[:, None]) & worth.isfinite()
    gone = torch.zeros_like(back).scatter_(1, order, back).view_as(x)
    return torch.where(gone, x, far), many


SETTLE = {"linf": settle, "l2": settle, "l1": settle, "l0": put_back}
