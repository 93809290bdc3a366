"""One attack on all samples: piece by piece, and as a whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from vauban.engine.react import Plan
from vauban.engine.verify import Verified
from vauban.schema.log import Cost, Doubt

WORDS = {"w": "broken", "b": "broken", "h": "held", "c": "certified", "u": "unknown"}


@dataclass(frozen=True)
class Run:
    """One attack on all samples, verified."""

    x: Tensor
    """The points to keep, `[n, ...]`: adversarial where broken, the clean input where held."""
    outcomes: str
    """`w`rong when clean, `b`roken, `h`eld, `u`nknown (the attack ended early)."""
    margin: Tensor
    distance: Tensor
    queries: Tensor
    cost: Cost
    verified: Verified
    clean_margin: Tensor
    doubts: list[Doubt]
    notes: list[str]
    facts: dict[str, Any]
    proved: bool
    """Proofs were tried, whether or not one was found."""
    plan: Plan
    """How the attack was changed by what was doubted."""
    closest: Tensor
    """The best points that the search saw, `[n, ...]`."""
    claimed: Tensor
    """bool `[n]`: the search said that it broke them."""
    lost: int
    """Rows whose success was seen on the way and not returned by the attack itself."""

    @property
    def status(self) -> list[str]:
        """broken, held, certified or unknown, a word a sample."""
        return [WORDS[letter] for letter in self.outcomes]


@dataclass(frozen=True)
class Piece:
    rows: Tensor
    x: Tensor
    queries: Tensor
    gradients: Tensor
    certified: Tensor
    late: bool
    """The deadline passed before the attack was through."""
    reached: Tensor
    """Rows that the search says it broke."""
    closest: Tensor
    """The best point that the search saw for each row."""
    lost: int
    """Rows that were broken on the way, and that the attack itself would not have returned so."""
    facts: dict[str, Any]

    def joined(self, rows: Tensor, more: Piece) -> Piece:
        """With what a second attack on `rows` (bool, of this piece's) did."""
        at = rows.nonzero().flatten()
        won = at[more.reached]
        x, reached = self.x.clone(), self.reached.clone()
        x[won], reached[won] = more.x[more.reached], True
        queries, gradients, certified = self.queries.clone(), self.gradients.clone(), self.certified.clone()
        queries[at] += more.queries
        gradients[at] += more.gradients
        certified[at] |= more.certified
        return replace(
            self,
            x=x,
            reached=reached,
            queries=queries,
            gradients=gradients,
            certified=certified,
            late=self.late or more.late,
        )
