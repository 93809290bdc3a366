"""C. Was the attack carried through? The indicators of attack failure (Pintor et al., NeurIPS 2022, arXiv:2106.09947)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from vauban.engine.doubts.probe import Probe
from vauban.parts.goals import shunned
from vauban.schema.log import Doubt

STEPS = 20
"""Steps of the short attacks made here."""
HELD = 16
"""Held rows that are attacked again."""
MORE = 0.15
"""Share of the held rows that a little more of the same attack may break before the attack counts as unfinished."""
RISE = 0.05
"""Growth of the margin, as a share of its distance from zero, that a finished attack does not leave behind."""
SILENT = 0.02
LEFT = 0.1
SHAKEN = 1.0
"""Change of the margin in a tenth of the radius, as a share of the margin."""


@dataclass
class Aftermath:
    """What an attack left: held rows `probe.x` and the best point it found for each, `closest` `[n, ...]`.

    `probe` asks the stand-in that was attacked, `real` the model itself. `claimed` rows were broken on the stand-in,
    `kept` of them on the model; `silent` is the number of rows whose best point was broken and not returned.
    """

    probe: Probe
    real: Probe
    closest: Tensor
    claimed: int
    kept: int
    silent: int
    total: int
    """Samples that the attack was given."""

    @cached_property
    def gain(self) -> tuple[float, float]:
        """Share of held rows that STEPS more steps break, and the median growth of the margin of the others."""
        before = self.probe.margin(self.closest)
        best = self.probe.climb(STEPS, "further", start=self.closest)
        broken = self.broken(best.x)
        growth = (best.margin.double() - before) / before.abs().clamp_min(1e-12)
        return float(broken.double().mean()), float(growth[~broken].median()) if bool((~broken).any()) else 0.0

    def broken(self, x: Tensor) -> Tensor:
        """Rows that these points break on the model itself."""
        return self.real.margin(x) > 0


def _of_held(share: float, probe: Probe) -> str:
    return f"{round(share * len(probe))} of {len(probe)} held inputs"


def convergence(after: Aftermath) -> Doubt | None:
    """I4, and the curve of n against 2n steps."""
    if not len(after.probe):
        return None
    share, growth = after.gain
    unfinished = share > MORE
    return Doubt(
        id="convergence",
        verdict="warn" if unfinished else "pass",
        value=share,
        threshold=MORE,
        text=f"{STEPS} further steps break {_of_held(share, after.probe)}; on the others the margin grows by {growth:.1%}.",
        remedy="the attack had not come to its end: raise its steps (--set steps=)",
    )


def restart(after: Aftermath) -> Doubt | None:
    """One more random start."""
    if not len(after.probe):
        return None
    share = float(after.broken(after.probe.climb(STEPS, "restart").x).double().mean())
    return Doubt(
        id="restart_gain",
        verdict="warn" if share > MORE else "pass",
        value=share,
        threshold=MORE,
        text=f"One more random start of {STEPS} steps breaks {_of_held(share, after.probe)}.",
        remedy="one start is not enough here: raise restarts (--set restarts=)",
    )


def unbounded(after: Aftermath) -> Doubt | None:
    """I6: with all the room there is, every input can be changed into another class.

    A model that may refuse turns most of that room away, as it should: there a failure is a warning.
    """
    probe = after.probe
    if not len(probe) or probe.radius == float("inf"):
        return None
    low, high = (side.to(probe.x).expand_as(probe.x) for side in (probe.space.low, probe.space.high))
    bounded = bool(low.isfinite().all()) and bool(high.isfinite().all())
    room = float(probe.space.distance(low, high).max()) if bounded else 100 * probe.radius
    best = probe.climb(2 * STEPS, "unbounded", radius=max(room, probe.radius))
    share = float((~after.broken(best.x)).double().mean())
    failed = share > LEFT
    refuses = " The model may refuse, which most far points deserve." if shunned(probe.goal) is not None else ""
    return Doubt(
        id="unbounded",
        verdict="pass" if not failed else "warn" if refuses else "fail",
        value=share,
        threshold=LEFT,
        text=f"With unlimited room the attack still fails on {share:.0%} of the inputs tried.{refuses}"
        if failed
        else "With unlimited room the attack breaks what it should.",
        remedy="an attack that cannot win with all the room there is fails by itself: another loss, more steps, or no gradients",
    )


def unstable(after: Aftermath) -> Doubt | None:
    """I2: does the margin change wildly under tiny noise?"""
    probe = after.probe
    if not len(probe):
        return None
    here = probe.margin(after.closest)
    typical = probe.margin(probe.x).abs().clamp_min(1e-12)
    moved = torch.stack(
        [(probe.margin(after.closest + 0.1 * probe.signs("unstable", i)) - here).abs() for i in range(4)]
    )
    value = float((moved.mean(0) / typical).median())
    return Doubt(
        id="unstable",
        verdict="warn" if value > SHAKEN else "pass",
        value=value,
        threshold=SHAKEN,
        text=f"Noise of a tenth of the radius changes the margin by {value:.2f} of its size (median).",
        remedy="the attack climbs a surface of noise: average gradients over several points (EOT), or use no gradients",
    )


def noise(after: Aftermath) -> Doubt | None:
    """The baseline that every attack must beat."""
    probe = after.probe
    if not len(probe):
        return None
    hits = torch.stack([after.broken(probe.drawn("noise", number)) for number in range(5)]).any(0)
    return _beaten("noise_wins", "Random noise", hits, after)


def one_step(after: Aftermath) -> Doubt | None:
    """One step of the full radius must not beat many."""
    probe = after.probe
    slope = probe.slope(probe.losses["margin"]) if len(probe) and probe.radius != float("inf") else None
    if slope is None:
        return None
    leap = probe.space.project(probe.x + probe.space.steepest(slope, probe.x, probe.radius), probe.x, probe.radius)
    return _beaten("one_step_beats", "A single gradient step", after.broken(leap), after)


def _beaten(name: str, what: str, hits: Tensor, after: Aftermath) -> Doubt:
    share = float(hits.double().mean())
    return Doubt(
        id=name,
        verdict="fail" if share > MORE else "pass",
        value=share,
        threshold=MORE,
        text=f"{what} breaks {_of_held(share, after.probe)} that the attack did not.",
        remedy="an attack that loses against a baseline is broken itself: look at its gradients, loss and step size",
    )


def transfer(after: Aftermath) -> Doubt | None:
    """I5: what breaks the stand-in must break the model."""
    lost = after.claimed - after.kept
    share = lost / max(1, after.total)
    return Doubt(
        id="transfer_failure",
        verdict="fail" if share > SILENT and lost > 1 else "pass",
        value=share,
        threshold=SILENT,
        text=f"{lost} of {after.claimed} successes of the search did not hold when the model was asked again.",
        remedy="what was searched is not what answers: the model is random, or the stand-in for a layer is too unlike it",
    )


def silent(after: Aftermath) -> Doubt | None:
    """I3: a success on the way must not be lost."""
    share = after.silent / max(1, after.total)
    return Doubt(
        id="silent_success",
        verdict="fail" if share > SILENT else "pass",
        value=share,
        threshold=SILENT,
        text=f"{after.silent} inputs were broken on the way and not at the end."
        if after.silent
        else "The best point that was seen is the one that is kept.",
        remedy="keep the best point of a search, not its last",
    )


def curve_monotone(accuracy: Sequence[float | None]) -> Doubt:
    """More room must not help the model."""
    known = [a for a in accuracy if a is not None]
    rise = max((b - a for a, b in pairwise(known)), default=0.0)
    return Doubt(
        id="curve_monotone",
        verdict="warn" if rise > 0 else "pass",
        value=rise,
        threshold=0.0,
        text=f"Accuracy rises by {rise:.1%} where the attacker gets more room."
        if rise > 0
        else "Accuracy never rises where the attacker gets more room.",
        remedy="the attack is unfinished at the larger radius: more steps, or start from what broke at the smaller one",
    )
