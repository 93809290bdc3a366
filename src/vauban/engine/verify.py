"""Success is never self-declared: a fresh look at every claimed point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vauban.core.goal import Goal
from vauban.core.space import Continuous, Modality
from vauban.core.target import Domain, Target
from vauban.engine.batching import answers
from vauban.engine.oracle import slack


@dataclass(frozen=True)
class Verified:
    """What a fresh look found, all `[n]`."""

    margin: Tensor
    distance: Tensor
    """float64, in the space's own unit."""
    admissible: Tensor
    """Within radius (float64, up to float32 rounding of the coordinates), box and finite."""
    broken: Tensor
    """Admissible, and the goal is reached again."""
    stored: Tensor
    """The points after saving, `[n, ...]`."""
    survives: Tensor
    """Still broken after saving (8-bit rounding where the domain has a grid)."""


def verify(
    target: Target,
    goal: Goal,
    space: Continuous,
    modality: Modality,
    domain: Domain,
    x: Tensor,
    clean: Tensor,
    radius: float,
) -> Verified:
    """Re-score `x` `[n, ...]` on the target itself, outside every oracle, and re-check the constraint in float64."""
    margin = margins(target, goal, x)
    distance = space.distance(x, clean)
    room = radius + slack(radius, clean) if radius != float("inf") else radius
    admissible = space.allowed(x, clean).all & (distance <= room) & torch.isfinite(margin)
    stored = modality.stored(x, clean, domain)
    near = space.distance(stored, clean) <= room
    survives = near & space.allowed(stored, clean).all & (margins(target, goal, stored) > 0)
    return Verified(margin, distance, admissible, admissible & (margin > 0), stored, survives)


def margins(target: Target, goal: Goal, x: Tensor) -> Tensor:
    """Margins of the goal at `x`, `[n]`, from a fresh forward pass."""
    return goal.margin(answers(target, x), torch.arange(len(x), device=x.device)).to(torch.float32)
