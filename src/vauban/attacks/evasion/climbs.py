"""What the rows of an ascent remember, and how they step: densely with momentum, or sparsely in L1."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import ClassVar, Self

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front
from vauban.core.attack import EvasionScene
from vauban.core.oracle import Look
from vauban.parts.projections import per_row
from vauban.parts.schedules import checkpoints

MOMENTUM = 0.75
RISES = 0.75
EVERY = 0.04
"""Of a sparse run: its share between two reviews."""
SPARSER = 0.95
"""A best point with fewer changes than that share of the last one's starts over from there with full steps."""
SLOWER = 1.5
SMALLEST = 0.1
"""Sparse steps get that many times shorter at a review, down to that share of the radius."""


@dataclass
class Climb(ABC):
    """Per row: where it is, and was best; `[m, ...]`."""

    spread: ClassVar[float]
    """How many times as far a random start is taken before it is projected onto a wider ball."""

    at: Tensor
    slope: Tensor
    best: Tensor
    best_slope: Tensor
    top: Tensor
    """The largest loss so far."""
    size: Tensor
    """The step as a share of the radius."""

    @classmethod
    @abstractmethod
    def start(cls, z: Tensor, look: Look, x: Tensor) -> Self:
        """At the first look."""

    @staticmethod
    @abstractmethod
    def reviews(steps: int) -> Collection[int]:
        """The steps of a run at which rows look back."""

    @abstractmethod
    def review(self, window: int, x: Tensor) -> None:
        """Look back at the last `window` steps, which began from the inputs `x`."""

    @abstractmethod
    def move(self, scene: EvasionScene, front: Front, first: bool) -> None:
        """On to the next point."""

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

    def go_back(self, rows: Tensor) -> Tensor:
        """The rows where `rows` `[m]` holds return to their best point; gives the mask, `[m, ...]`."""
        mask = per_row(rows, self.at).bool()
        self.at = torch.where(mask, self.best, self.at)
        self.slope = torch.where(mask, self.best_slope, self.slope)
        return mask


@dataclass
class Dense(Climb):
    """Croce and Hein 2020 (arXiv:2003.01690, algorithm 1).

    Departure: a row that goes back to its best point forgets its momentum, which pointed from another place.
    """

    spread: ClassVar[float] = 8.0

    before: Tensor
    value: Tensor
    rises: Tensor
    """Steps since the last checkpoint at which the loss grew."""
    old_top: Tensor
    old_size: Tensor
    """Largest loss and step size as of the last checkpoint."""

    @classmethod
    def start(cls, z: Tensor, look: Look, x: Tensor) -> Self:
        full, value = torch.full_like(look.value, 2.0), look.value
        return cls(z, look.grad, z, look.grad, value, full, z, value, torch.zeros_like(value), value, full)

    @staticmethod
    def reviews(steps: int) -> Collection[int]:
        return checkpoints(steps)

    def record(self, value: Tensor, slope: Tensor) -> None:
        self.rises = self.rises + (value > self.value)
        super().record(value, slope)
        self.value = value

    def review(self, window: int, x: Tensor) -> None:
        """Rows that do not get on halve their step and go back to their best point."""
        stalled = (self.size == self.old_size) & (self.top == self.old_top)
        poor = (self.rises < RISES * window) | stalled
        self.old_size, self.old_top = self.size, self.top
        self.rises = torch.zeros_like(self.rises)
        self.size = torch.where(poor, self.size / 2, self.size)
        self.before = torch.where(self.go_back(poor), self.best, self.before)
        self.value = torch.where(poor, self.top, self.value)

    def move(self, scene: EvasionScene, front: Front, first: bool) -> None:
        trial = front.project(self.at + scene.space.steepest(self.slope, self.at, self.size * front.radius))
        if not first:
            trial = self.at + MOMENTUM * (trial - self.at) + (1 - MOMENTUM) * (self.at - self.before)
            trial = front.project(trial)
        self.before, self.at = self.at, trial


@dataclass
class Sparse(Climb):
    """Each step changes a few coordinates, fewer the sparser the best point so far is.

    Croce and Hein 2021 (arXiv:2103.01208, section 4.1 and algorithm 1). Departure: coordinates that the box does not let go
    on are not counted among the steepest.
    """

    # the projection of a long way keeps few coordinates, which is where sparse steps begin
    spread: ClassVar[float] = 100.0

    share: Tensor
    """Of the coordinates, that a step changes."""
    changed: Tensor
    """Coordinates in which the best point differed from the input at the last review."""

    @classmethod
    def start(cls, z: Tensor, look: Look, x: Tensor) -> Self:
        changed = _changes(z, x)
        share = changed / x[0].numel() / SLOWER
        return cls(z, look.grad, z, look.grad, look.value, torch.ones_like(changed), share, changed)

    @staticmethod
    def reviews(steps: int) -> Collection[int]:
        every = max(1, int(EVERY * steps))
        return range(every, steps, every)

    def review(self, window: int, x: Tensor) -> None:
        """Rows whose best point got sparser go back to it with full steps; the steps of the others shrink."""
        changed = _changes(self.best, x)
        sparser = changed < SPARSER * self.changed
        self.size = torch.where(sparser, 1.0, (self.size / SLOWER).clamp_min(SMALLEST))
        self.share = changed / x[0].numel() / SLOWER
        self.changed = changed
        self.go_back(sparser)

    def move(self, scene: EvasionScene, front: Front, first: bool) -> None:
        """Equal changes of the steepest coordinates that may still go on, `size` of the radius in all."""
        low, high = (side.to(self.at) for side in (scene.space.low, scene.space.high))
        stuck = ((self.slope > 0) & (self.at >= high)) | ((self.slope < 0) & (self.at <= low))
        slope = torch.where(stuck, 0, self.slope).flatten(1)
        steep = slope.abs()
        last = (self.share * slope.shape[1]).long().clamp(1, slope.shape[1]) - 1
        least = steep.sort(1, descending=True).values.gather(1, last[:, None])
        signs = torch.where(steep >= least, slope.sign(), 0)
        amount = self.size * front.radius / signs.abs().sum(1).clamp_min(1)
        self.at = front.project(self.at + (signs * amount[:, None].to(signs)).view_as(self.at))


def _changes(z: Tensor, x: Tensor) -> Tensor:
    return (z != x).flatten(1).sum(1).to(torch.float64)
