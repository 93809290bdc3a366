"""Success is never self-declared: a fresh look at every claimed point."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vauban.core.goal import Goal
from vauban.core.space import Continuous, Frame, Modality
from vauban.core.target import Domain, Target
from vauban.engine.batching import answers
from vauban.engine.oracle import slack


@dataclass(frozen=True)
class Verified:
    """What a fresh look found, all `[n]`."""

    x: Tensor
    """The inputs that were looked at, `[n, ...]`."""
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

    def joined(self, rows: Tensor, look: Verified, which: Tensor) -> Verified:
        """With what a later look found at `rows` `[k]`: its rows `which`, bool with k true."""
        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        return Verified(**{name: mine.index_copy(0, rows, getattr(look, name)[which]) for name, mine in kept.items()})


def verify(
    target: Target,
    goal: Goal,
    space: Continuous,
    modality: Modality,
    domain: Domain,
    points: Tensor,
    frame: Frame,
    clean: Tensor,
    radius: float,
) -> Verified:
    """Re-score `points` `[n, ...]` on the target itself, outside every oracle, and re-check the constraint in float64.

    Inputs are rendered once more from their points. Where points are knobs, the distance is theirs, and saving changes none.
    """
    x = frame.render(points, torch.arange(len(points), device=points.device))
    margin = margins(target, goal, x)
    distance = space.distance(points, frame.start)
    room = radius + slack(radius, frame.start) if radius != float("inf") else radius
    admissible = space.allowed(points, frame.start).all & (distance <= room) & torch.isfinite(margin)
    stored = modality.stored(x, None if space.knobs else clean, domain)
    if space.knobs:
        admissible &= modality.space("linf", domain).allowed(x, clean).all
        near = admissible
    else:
        near = (space.distance(stored, clean) <= room) & space.allowed(stored, clean).all
    survives = near & (margins(target, goal, stored) > 0)
    return Verified(x, margin, distance, admissible, admissible & (margin > 0), stored, survives)


def refused(target: Target, x: Tensor, refusal: int | None) -> Tensor:
    """Bool `[n]`: which inputs are answered by the class of a refusal; none where there is no such class."""
    if refusal is None:
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)
    return answers(target, x).labels == refusal


def margins(target: Target, goal: Goal, x: Tensor) -> Tensor:
    """Margins of the goal at `x`, `[n]`, from a fresh forward pass."""
    return goal.margin(answers(target, x), torch.arange(len(x), device=x.device)).to(torch.float32)
