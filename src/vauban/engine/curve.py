"""How accuracy falls as the attacker gets more room: one search without a radius, or a run a radius."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from vauban.core.goal import Goal
from vauban.core.space import Continuous
from vauban.engine.case import Case, Check
from vauban.engine.doubts import curve_monotone
from vauban.engine.doubts.probe import subset
from vauban.engine.evasion_run import Run
from vauban.engine.measure import rate
from vauban.engine.verify import verify
from vauban.schema.errors import BadThreat
from vauban.schema.log import Cost, Curve, Doubt, Series

RADII = {
    "smoke": (0.5, 1.0, 2.0),
    "standard": (0.25, 0.5, 1.0, 1.5, 2.0, 4.0),
    "deep": (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0),
}
"""Where an attack is run anew for every point of the curve, as multiples of the radius."""
FINE = (0.125, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
"""Where one search gives all points."""
Again = Callable[[float, Tensor], Run]
"""(radius, rows that need not be attacked `[n]`) -> the same attack there."""


def nearest(result: Run, again: Again) -> Run | None:
    """The nearest success for each input that is answered rightly; None where nothing looks for it, or time is short."""
    if "u" in result.outcomes:
        return None
    try:
        found = again(torch.inf, torch.tensor([letter == "w" for letter in result.outcomes]))
    except BadThreat:  # nothing looks for the nearest success in this space with these rights
        return None
    return found if "u" not in found.outcomes else None


def distances(result: Run, near: Run, base: float) -> Tensor:
    """How far each input's nearest known success is, float64 `[n]`; inf where none is known."""
    far = torch.full((len(result.outcomes),), torch.inf, dtype=torch.float64)
    for run, most in ((near, torch.inf), (result, base)):
        broken = torch.tensor([letter == "b" for letter in run.outcomes])
        far = torch.where(broken, torch.minimum(far, run.distance.clamp_max(most)), far)
    return far


def by_distance(check: Check, base: float, unit: str, result: Run, far: Tensor) -> Curve:
    """The curve from the distances of the nearest successes."""
    right = torch.tensor([letter != "w" for letter in result.outcomes])
    radii = [0.0, *(base * factor for factor in FINE)]
    return _curve(check, base, unit, [(r, int((right & (far > r)).sum())) for r in radii], len(right))


def by_runs(
    check: Check, case: Case, base: float, unit: str, widest: float, result: Run, again: Again
) -> tuple[Curve, list[Doubt]]:
    """The curve from a run a radius, upwards: what is broken at a smaller radius stays broken."""
    closed = torch.tensor([letter == "w" for letter in result.outcomes])
    points = [(0.0, int((~closed).sum()))]
    for factor in RADII[case.profile]:
        if base * factor > widest:
            break
        now = result.outcomes if factor == 1.0 else again(base * factor, closed).outcomes
        if "u" in now:  # the time limit was reached: the curve ends with the radius before
            break
        closed = closed | torch.tensor([letter in "wb" for letter in now])
        points.append((base * factor, int((~closed).sum())))
    return _curve(check, base, unit, points, len(closed)), [curve_monotone([kept / len(closed) for _, kept in points])]


def _curve(check: Check, base: float, unit: str, points: list[tuple[float, int]], n: int) -> Curve:
    rates = [rate("", kept, n) for _, kept in points]
    series = Series(
        label=check.id,
        x=[radius for radius, _ in points],
        y=[kept / n for _, kept in points],
        low=[m.low for m in rates],
        high=[m.high for m in rates],
    )
    last, kept = max(point for point in points if point[0] <= base)
    return Curve(
        id="security_curve",
        title="Accuracy as the attacker gets more room",
        x_label=f"radius ({unit})",
        y_label="accuracy",
        series=[series],
        reading=f"At radius {last:g} the model is right on {kept / n:.0%} of the inputs, without an attack on {points[0][1] / n:.0%}.",
    )


def joined(result: Run, near: Run, goal: Goal, space: Continuous, radius: float, case: Case) -> Run:
    """`result` with the successes within its radius that only the search without a radius found, verified anew."""
    result = replace(result, cost=_sum(result.cost, near.cost))
    pairs = enumerate(zip(result.outcomes, near.outcomes, strict=True))
    rows = torch.tensor([i for i, (here, there) in pairs if (here, there) == ("h", "b")], dtype=torch.int64)
    if not len(rows):
        return result
    clean, aim = case.data.x_test[rows], result.plan.goal(subset(goal, rows))
    frame = space.frame(clean, case.data.ids[rows.numpy()])
    look = verify(result.plan.judge, aim, space, case.modality, case.domain, near.x[rows], frame, clean, radius)
    won = rows[look.broken]
    return replace(
        result,
        x=result.x.index_copy(0, won, look.x[look.broken]),
        outcomes="".join("b" if i in set(won.tolist()) else letter for i, letter in enumerate(result.outcomes)),
        margin=result.margin.index_copy(0, won, look.margin[look.broken]),
        distance=result.distance.index_copy(0, won, look.distance[look.broken]),
        queries=result.queries.index_add(0, won, near.queries[won]),
        verified=result.verified.joined(won, look, look.broken),
    )


def _sum(a: Cost, b: Cost) -> Cost:
    return Cost(queries=a.queries + b.queries, gradients=a.gradients + b.gradients, seconds=a.seconds + b.seconds)
