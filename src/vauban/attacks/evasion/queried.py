"""What attacks share that see scores alone: runs within a number of queries a row, and climbing estimated gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front
from vauban.core.attack import EvasionScene
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.parts.estimators import two_point, unit
from vauban.parts.projections import per_row

LARGEST = 2**23
"""Numbers held at once in an estimate: rows go in groups, with the same result."""


@dataclass(frozen=True)
class Run:
    """One way to the goal, for the rows that are open: a regression has two, which share the queries."""

    number: int
    loss: Loss
    front: Front
    left: Tensor
    """Queries that each row of the front may make, int64 `[m]`."""


def runs(scene: EvasionScene, queries: int, loss: str) -> Iterator[Run]:
    """A run for each loss of that name. The threat may allow fewer than `queries`, and not the same for every row."""
    sides = scene.oracle.goal.objectives(loss)
    for number, side in enumerate(sides):
        front = Front(scene)
        if not len(front):
            return
        most = scene.oracle.left(front.rows).div(len(sides) - number, rounding_mode="floor")
        yield Run(number, side, front, most.clamp_max(queries // len(sides)))


class Directions(Protocol):
    """Random directions `[m, count, ...]` along which answers are compared; their entries have variance 1."""

    def __call__(self, rng: Rng, rows: Tensor, count: int, shape: torch.Size) -> Tensor: ...


@dataclass(frozen=True)
class Climb:
    """Projected gradient ascent on gradients that are estimated from pairs of answers."""

    pairs: int
    """Pairs of probes a step."""
    probe: float
    """Length of a probe as a share of the radius, measured in the space's own norm."""
    step: float
    """Mean length of a step as a share of the radius; steps fall linearly."""
    memory: float
    """Weight of the estimates before."""
    directions: Directions

    def __call__(self, scene: EvasionScene, run: Run, rng: Rng) -> None:
        oracle, front = scene.oracle, run.front
        z, heading = front.x, torch.zeros_like(front.x)
        steps = run.left.div(2 * self.pairs + 1, rounding_mode="floor")
        for number in range(int(steps.max())):
            z, heading, steps = front.narrow(oracle.open(front.rows) & (number < steps), z, heading, steps)
            if not len(front):
                return
            parts = torch.arange(len(z), device=z.device).split(max(1, LARGEST // (2 * self.pairs * z[0].numel())))
            slope = torch.cat([self._estimate(scene, run, z[part], front.rows[part], rng) for part in parts])
            # of length 1, so that a steep place does not drown what was learnt elsewhere
            heading = self.memory * heading + unit(slope)
            z, heading, steps = front.narrow(oracle.open(front.rows), z, heading, steps)
            if not len(front):
                return
            size = scene.radius * self.step * 2 * (steps - number) / (steps + 1)
            z = front.project(z + scene.space.steepest(heading, z, size.to(z)))
            oracle.values(run.loss, z, front.rows)

    def _estimate(self, scene: EvasionScene, run: Run, z: Tensor, rows: Tensor, rng: Rng) -> Tensor:
        d = z[0].numel()
        length = self.probe * scene.radius / _SIZE[scene.space.name](d)
        away = length * self.directions(rng, rows, self.pairs, z.shape[1:]).to(z)
        low, high = scene.space.low.to(z), scene.space.high.to(z)
        here = z[:, None]
        points = torch.stack([torch.clamp(here + away, low, high), torch.clamp(here - away, low, high)], 2)
        asked = points.flatten(0, 2)
        found = scene.oracle.values(run.loss, asked, rows.repeat_interleave(2 * self.pairs)).view(len(z), -1, 2)
        return two_point(found[..., 0], found[..., 1], (points[:, :, 0] - points[:, :, 1]) / 2, length)


_SIZE = {"linf": lambda d: 1.0, "l2": lambda d: float(d**0.5), "l1": float}
"""Norm of a vector of `d` ones."""


def pick(better: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Rows of `new` where `better` `[m]` holds, of `old` elsewhere."""
    return torch.where(per_row(better, new).bool(), new, old)
