"""How bad a finding is: three factors that the report shows, multiplied. Our own rubric, and no CVSS score.

`score = 10 x impact x knowledge x cost`, between 0.1 and 10, rounded to one decimal.

- impact, 0 to 1: the measured effect, taken at the end of its interval nearest to harmless, on the scale that the rule
  states. Little evidence therefore gives a low score.
- knowledge, 0 to 1: how little the attacker must know or hold. Answers alone 1.0; the training data, or data of the same
  distribution, 0.9; the model's insides 0.8.
- cost, 0 to 1: how little it costs him, one step down for each factor of ten (see `cheap`).

Bands: 9 and above critical, 7 high, 4 medium, below that low; the same numbers that code-scanning services use.
"""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass

from vauban.schema.log import Severity

BANDS: tuple[tuple[float, Severity], ...] = ((9.0, "critical"), (7.0, "high"), (4.0, "medium"), (0.0, "low"))
ANSWERS, DATA, INSIDES = 1.0, 0.9, 0.8
_INSIDE = frozenset({"logits", "gradients", "features", "weights_read", "weights_write", "artifact", "unknown"})
_DATA = frozenset({"data_read", "data_write", "training"})


@dataclass(frozen=True)
class Score:
    """The three factors, each from 0 to 1. `note` marks what is worth knowing but no weakness by itself."""

    impact: float
    knowledge: float = 1.0
    cost: float = 1.0
    note: bool = False

    @property
    def value(self) -> float:
        raw = 10 * clamp(self.impact) * clamp(self.knowledge) * clamp(self.cost)
        return max(0.1, round(raw, 1))

    @property
    def severity(self) -> Severity:
        return "info" if self.note else next(name for floor, name in BANDS if self.value >= floor)

    @property
    def inputs(self) -> dict[str, float]:
        factors = {"impact": self.impact, "knowledge": self.knowledge, "cost": self.cost}
        return {name: round(clamp(value), 3) for name, value in factors.items()}


def clamp(value: float) -> float:
    return min(1.0, max(0.0, value))


def scale(value: float, harmless: float, full: float) -> float:
    """Impact on a straight line: 0 at `harmless`, 1 at `full` and beyond."""
    return clamp((value - harmless) / (full - harmless))


def knowledge(access: Set[str]) -> float:
    """The factor for what the attacker had to see."""
    if access & _INSIDE:
        return INSIDES
    return DATA if access & _DATA else ANSWERS


def cheap(amount: float, free: float, step: float = 0.05) -> float:
    """1 up to `free`, then `step` less for each factor of ten, never below 0.7."""
    if amount <= free:
        return 1.0
    return max(0.7, 1.0 - step * math.log10(amount / free))
