"""The ascent of APGD in L1: each step changes a few coordinates, fewer the sparser the best point so far is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front
from vauban.core.attack import EvasionScene
from vauban.core.oracle import Look, Loss
from vauban.parts.projections import per_row

EVERY = 0.04
"""Share of the run between two reviews."""
SPARSER = 0.95
"""A best point with fewer changes than that share of the last one's starts over from there with full steps."""
SLOWER = 1.5
SMALLEST = 0.1
"""Steps get that many times shorter at a review, down to that share of the radius."""


@dataclass
class _State:
    """Per row, `[m, ...]`."""

    at: Tensor
    slope: Tensor
    best: Tensor
    best_slope: Tensor
    top: Tensor
    """The largest loss so far."""
    size: Tensor
    """The step as a share of the radius."""
    share: Tensor
    """Of the coordinates, that a step changes."""
    changed: Tensor
    """Coordinates in which the best point differed from the input at the last review."""

    def parts(self) -> list[Tensor]:
        return [getattr(self, part.name) for part in fields(self)]

    def record(self, value: Tensor, slope: Tensor) -> None:
        """What was found at `at`."""
        better = value > self.top
        mask = per_row(better, self.at).bool()
        self.best = torch.where(mask, self.at, self.best)
        self.best_slope = torch.where(mask, slope, self.best_slope)
        self.top = torch.where(better, value, self.top)
        self.slope = slope

    def review(self, x: Tensor) -> None:
        """Rows whose best point got sparser go back to it with full steps; the steps of the others shrink."""
        changed = _changes(self.best, x)
        sparser = changed < SPARSER * self.changed
        self.size = torch.where(sparser, 1.0, (self.size / SLOWER).clamp_min(SMALLEST))
        self.share = changed / x[0].numel() / SLOWER
        self.changed = changed
        mask = per_row(sparser, self.at).bool()
        self.at = torch.where(mask, self.best, self.at)
        self.slope = torch.where(mask, self.best_slope, self.slope)


def _changes(z: Tensor, x: Tensor) -> Tensor:
    return (z != x).flatten(1).sum(1).to(torch.float64)


def climb(
    scene: EvasionScene,
    front: Front,
    z: Tensor,
    loss: Loss,
    steps: int,
    ask: Callable[[Loss, Tensor, Tensor], Look],
) -> Tensor:
    """As `ascent.ascend`.

    Croce and Hein 2021 (arXiv:2103.01208, section 4.1 and algorithm 1). Departure: coordinates that the box does not let go
    on are not counted among the steepest.
    """
    every = max(1, int(EVERY * steps))
    state: _State | None = None
    for number in range(steps):
        look = ask(loss, z, front.rows)
        if state is None:
            state = _start(z, look, front.x)
        else:
            state.record(look.value, look.grad)
        state = _State(*front.narrow(look.open, *state.parts()))
        if not len(front):
            return state.best
        if number and number % every == 0:
            state.review(front.x)
        state.at = z = front.project(state.at + _step(scene, state, front.radius))
    front.look(z)
    return z if state is None else state.best


def _start(z: Tensor, look: Look, x: Tensor) -> _State:
    changed = _changes(z, x)
    share = changed / x[0].numel() / SLOWER
    return _State(z, look.grad, z, look.grad, look.value, torch.ones_like(changed), share, changed)


def _step(scene: EvasionScene, state: _State, radius: float) -> Tensor:
    """Equal changes of the steepest coordinates that may still go on, `size` of the radius in all."""
    low, high = (side.to(state.at) for side in (scene.space.low, scene.space.high))
    stuck = ((state.slope > 0) & (state.at >= high)) | ((state.slope < 0) & (state.at <= low))
    slope = torch.where(stuck, 0, state.slope).flatten(1)
    steep = slope.abs()
    last = (state.share * slope.shape[1]).long().clamp(1, slope.shape[1]) - 1
    least = steep.sort(1, descending=True).values.gather(1, last[:, None])
    signs = torch.where(steep >= least, slope.sign(), 0)
    amount = state.size * radius / signs.abs().sum(1).clamp_min(1)
    return (signs * amount[:, None].to(signs)).view_as(state.at)
