"""The attacker who knows model and detector, and goes against both together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vauban.core.rng import Rng
from vauban.core.space import Continuous
from vauban.defences.detect.watched import WatchedTarget
from vauban.engine.context import HouseContext
from vauban.parts.estimators import unit
from vauban.parts.losses import margin

FIRST = 0.5
"""First step of a feature, as a share of what the radius leaves to each; steps fall to nothing along a cosine."""
FADING = (0.9, 0.99)
"""Share of the old in the running means of slopes and of their squares."""
AT_ONCE = 64
"""Rows whose graphs are kept at a time."""


class Prey(Protocol):
    """Rows, and what attacks on the model alone made of them."""

    @property
    def x(self) -> Tensor: ...

    @property
    def y(self) -> Tensor: ...

    @property
    def right(self) -> Tensor: ...

    @property
    def changed(self) -> dict[str, Tensor]: ...

    @property
    def context(self) -> HouseContext: ...


@dataclass(frozen=True, kw_only=True)
class Joint:
    """Two ways, of which the better counts, row by row.

    The first climbs the margin of the rejecting model, in which a refusal counts as the true class (Auto-PGD on the model of
    Carlini and Wagner 2017, arXiv:1705.07263, section 3.2). The second begins where the model alone was fooled, and descends the
    suspicion while it stays fooled: steps go against the suspicion where the model is fooled, and along its margin where it is
    not (selective gradient descent, Bryniarski et al. 2021, arXiv:2106.15023, section 4.1), by Adam as in Carlini and Wagner: signs
    alone, which change every feature alike, leave noise that detectors see.

    Args:
        steps: gradients of a run of either way.
        restarts: runs of the first way, and starting points of the second.
        lead: by which the model must be fooled, in logits, before suspicion is descended.
    """

    steps: int = 100
    restarts: int = 2
    lead: float = 0.05

    def __post_init__(self) -> None:
        if self.steps < 2 or self.restarts < 1 or not self.lead >= 0:
            raise ValueError("steps must be at least 2, restarts at least 1, lead not negative")

    def __call__(self, made: WatchedTarget, prey: Prey, rng: Rng) -> tuple[Tensor, Tensor]:
        """Of every row the point that fools the model with the least suspicion, and bool `[n]`: it does, and was right before."""
        rows = prey.right.nonzero().flatten()
        x, y, space, radius = prey.x[rows], prey.y[rows], prey.context.space, prey.context.radius
        assert space is not None
        assert radius is not None
        attack = prey.context.attack("evasion.apgd", steps=self.steps, restarts=self.restarts, loss="margin")
        own = attack(made, x, y, Rng(rng.child("apgd").seed, rng.ids[rows.numpy()]), made.domain)
        # what an attack in another room made is brought into this one
        starts = torch.stack([own, *(space.project(z[rows], x, radius) for z in prey.changed.values())])
        points, fooled = prey.x.clone(), torch.zeros_like(prey.right)
        for part in torch.arange(len(rows)).split(AT_ONCE):
            hunt = Hunt(made, x[part], y[part], space, radius, self)
            for start in hunt.nearest(starts[:, part], self.restarts):
                hunt.descend(start)
            points[rows[part]], fooled[rows[part]] = hunt.best, hunt.least.isfinite()
        return points, fooled


class Hunt:
    """A few rows under attack, and the least suspicious point of each that fools the model."""

    def __init__(self, made: WatchedTarget, x: Tensor, y: Tensor, space: Continuous, radius: float, how: Joint) -> None:
        self.made, self.x, self.y, self.space, self.radius, self.how = made, x, y, space, radius, how
        # what each feature may change if all change alike
        self.reach = (
            space.steepest(torch.ones_like(x), x, radius).flatten(1).abs().mean(1).reshape(-1, *[1] * (x.dim() - 1))
        )
        self.best, self.least = x.clone(), torch.full((len(x),), torch.inf, device=x.device)

    def look(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Margin and suspicion `[m]` of points; the best are remembered."""
        outputs, score = self.made.seen(z)
        lead = margin(outputs, self.y)
        better = ((lead > 0) & (score < self.least)).detach()
        self.best = torch.where(better.reshape(-1, *[1] * (z.dim() - 1)), z.detach(), self.best)
        self.least = torch.where(better, score.detach(), self.least)
        return lead, score

    @torch.no_grad()
    def nearest(self, starts: Tensor, many: int) -> list[Tensor]:
        """Of points `[k, m, ...]`, the `many` to begin with, row by row: those that fool with the least suspicion first."""
        seen = [self.look(z) for z in starts]
        order = torch.stack([torch.where(lead > 0, score, torch.inf) for lead, score in seen]).argsort(
            dim=0, stable=True
        )
        each = torch.arange(starts.shape[1], device=starts.device)
        return [starts[place, each] for place in order[:many]]

    def descend(self, z: Tensor) -> None:
        """Go down the suspicion where the model is fooled, and up the margin where it is not."""
        first, second = torch.zeros_like(z), torch.zeros_like(z)
        for step in range(self.how.steps):
            leaf = z.detach().requires_grad_(True)
            with torch.enable_grad():
                lead, score = self.look(leaf)
                aim = torch.where(lead > self.how.lead, -score, lead)
                (slope,) = torch.autograd.grad(aim.sum(), leaf)
            # slopes of the two aims are of different size: only their directions are averaged
            slope = unit(slope.nan_to_num())
            first = FADING[0] * first + (1 - FADING[0]) * slope
            second = FADING[1] * second + (1 - FADING[1]) * slope.square()
            mean, size = first / (1 - FADING[0] ** (step + 1)), second / (1 - FADING[1] ** (step + 1))
            away = mean / (size.sqrt() + 1e-8) * FIRST * (1 + math.cos(math.pi * step / self.how.steps)) / 2
            z = self.space.project(z + away * self.reach, self.x, self.radius)
        with torch.no_grad():
            self.look(z)
