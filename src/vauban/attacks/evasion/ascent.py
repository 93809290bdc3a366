"""The ascents of APGD: a step size for every row that adapts itself, and returns to the best point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front
from vauban.attacks.evasion.sparse_ascent import climb as _sparse
from vauban.core.attack import EvasionScene
from vauban.core.oracle import Look, Loss
from vauban.parts.projections import per_row
from vauban.parts.schedules import checkpoints

MOMENTUM = 0.75
RISES = 0.75
NARROWING: Mapping[str, tuple[tuple[float, float], ...]] = dict.fromkeys(
    ("l2", "l1"), ((8.0, 0.2), (4.0, 0.2), (2.0, 0.2), (1.0, 0.4))
)
"""Space -> radii as multiples of the scene's, and their shares of the steps. In linf wider balls lead astray."""
FAR = 100.0
"""How many times as far the random start of a sparse ascent is taken before it is projected."""
SPARSE = frozenset({"l1"})
"""Spaces in which a step changes few coordinates."""


@dataclass
class _State:
    """Per row: where it is, was, and was best; `[m, ...]`."""

    at: Tensor
    before: Tensor
    slope: Tensor
    value: Tensor
    best: Tensor
    best_slope: Tensor
    top: Tensor
    """The largest loss so far."""
    size: Tensor
    """The step as a share of the radius."""
    rises: Tensor
    """Steps since the last checkpoint at which the loss grew."""
    old_top: Tensor
    old_size: Tensor
    """Largest loss and step size as of the last checkpoint."""

    @classmethod
    def start(cls, z: Tensor, value: Tensor, slope: Tensor) -> _State:
        full = torch.full_like(value, 2.0)
        return cls(z, z, slope, value, z, slope, value, full, torch.zeros_like(value), value, full)

    def parts(self) -> list[Tensor]:
        return [getattr(self, part.name) for part in fields(self)]

    def record(self, value: Tensor, slope: Tensor) -> None:
        """What was found at `at`."""
        self.rises = self.rises + (value > self.value)
        better = value > self.top
        mask = per_row(better, self.at).bool()
        self.best = torch.where(mask, self.at, self.best)
        self.best_slope = torch.where(mask, slope, self.best_slope)
        self.top = torch.where(better, value, self.top)
        self.value, self.slope = value, slope

    def review(self, window: int) -> None:
        """At a checkpoint: rows that do not get on halve their step and go back to their best point."""
        stalled = (self.size == self.old_size) & (self.top == self.old_top)
        poor = (self.rises < RISES * window) | stalled
        self.old_size, self.old_top = self.size, self.top
        self.rises = torch.zeros_like(self.rises)
        self.size = torch.where(poor, self.size / 2, self.size)
        mask = per_row(poor, self.at).bool()
        self.at = torch.where(mask, self.best, self.at)
        self.before = torch.where(mask, self.best, self.before)
        self.slope = torch.where(mask, self.best_slope, self.slope)
        self.value = torch.where(poor, self.top, self.value)


Ask = Callable[[Loss, Tensor, Tensor], Look]
"""(loss, points, rows) -> the look: one of the oracle's questions."""


def ascend(scene: EvasionScene, front: Front, z: Tensor, loss: Loss, steps: int, ask: Ask | None = None) -> Tensor:
    """Maximise `loss` from `z` `[m, ...]` for the rows of `front`, until they are decided or after `steps` gradients.

    Gives the points of the largest loss, of the rows that `front` is left with. `ask` is the oracle's `value_and_grad` unless
    given. Within the scene's radius one query more than gradients: the last point counts, too.
    """
    way = _sparse if scene.space.name in SPARSE else _dense
    return way(scene, front, z, loss, steps, ask or scene.oracle.value_and_grad)


def _dense(scene: EvasionScene, front: Front, z: Tensor, loss: Loss, steps: int, ask: Ask) -> Tensor:
    """Croce and Hein 2020 (arXiv:2003.01690, algorithm 1).

    Departure: a row that goes back to its best point forgets its momentum, which pointed from another place.
    """
    space = scene.space
    marks = checkpoints(steps)
    state: _State | None = None
    since = 0
    for number in range(steps):
        look = ask(loss, z, front.rows)
        if state is None:
            state = _State.start(z, look.value, look.grad)
        else:
            state.record(look.value, look.grad)
        state = _State(*front.narrow(look.open, *state.parts()))
        if not len(front):
            return state.best
        if number in marks:
            state.review(number - since)
            since = number
        trial = front.project(state.at + space.steepest(state.slope, state.at, state.size * front.radius))
        if number:
            trial = state.at + MOMENTUM * (trial - state.at) + (1 - MOMENTUM) * (state.at - state.before)
            trial = front.project(trial)
        state.before, state.at = state.at, trial
        z = trial
    front.look(z)
    return z if state is None else state.best


def close_in(scene: EvasionScene, front: Front, start: Tensor, loss: Loss, steps: int, wide: bool = True) -> None:
    """`ascend` in balls that shrink to the scene's, where `wide`: each run begins where the one before it was best.

    Gradients that vanish around the input, as on models hardened in another norm, are found again farther away.
    Croce and Hein 2021 (arXiv:2103.01208, section 4.2), with radii of 8, 4, 2, 1 instead of 3, 2, 1, and in L2, too.
    """
    balls = NARROWING.get(scene.space.name, ()) if wide else ()
    # what lies outside the radius must not become the best point
    scout = partial(scene.oracle.value_and_grad, keep=False)
    z, left = start, steps
    if balls:
        # in L1 the projection of a long way keeps few coordinates, which is where sparse steps begin
        z = front.x + (FAR if scene.space.name in SPARSE else balls[0][0]) * (start - front.x)
    for ratio, share in balls[:-1]:
        now = round(share * steps)
        there = Front(scene, front.rows, ratio * scene.radius)
        z = ascend(scene, there, there.project(z), loss, now, scout)
        front, left = Front(scene, there.rows), left - now
        if not len(front):
            return
    ascend(scene, front, front.project(z), loss, left)
