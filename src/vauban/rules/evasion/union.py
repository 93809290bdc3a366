"""Many attacks on the same samples, taken together: a sample is safe only where every one of them failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from vauban.rules.base import Numbered, interval, rate
from vauban.schema.log import Attempt, Measurement

ORDER = "wbchu-"
"""From what weighs most to what weighs least: one attack that breaks a sample outweighs all that did not."""
UNSEEN = "-"
"""A sample that no attack was given. `u` was given to one that time cut short: it is right, and nothing broke it so far."""

FULL_SHARE = 0.5
"""Share of right answers broken from which the impact is full: every second answer can be had wrong."""


@dataclass(frozen=True)
class Union:
    """The worst outcome of each sample over all attacks, one letter a sample."""

    outcomes: str

    @property
    def right(self) -> int:
        """Samples that were right when clean."""
        return sum(letter in "bchu" for letter in self.outcomes)

    @property
    def undecided(self) -> int:
        """Of these, samples that were not broken before the time was up."""
        return self.outcomes.count("u")

    @property
    def broken(self) -> int:
        return self.outcomes.count("b")

    @property
    def robust_accuracy(self) -> Measurement:
        """Share of all examined samples that are right and were not broken by any attack: with undecided ones, at most that."""
        return rate("evasion.robust_accuracy", sum(letter in "chu" for letter in self.outcomes), self._seen)

    @property
    def clean_accuracy(self) -> Measurement:
        return rate("evasion.clean_accuracy", self.right, self._seen)

    @property
    def _seen(self) -> int:
        return sum(letter != UNSEEN for letter in self.outcomes)

    @property
    def broken_share(self) -> Measurement:
        """Share of the samples that were right before and are wrong after."""
        return rate("evasion.broken_share", self.broken, self.right)

    @property
    def broken_low(self) -> float:
        """Lower end of the interval of `broken_share`; 0 where nothing was right to begin with."""
        return interval(self.broken, self.right)[0] if self.right else 0.0


def union(found: Sequence[Numbered]) -> Union:
    """All attempts together. A shorter string of outcomes speaks of the first samples only; the rest is unseen."""
    columns = zip_longest(*(a.outcomes for _, a in found), fillvalue=UNSEEN)
    return Union("".join(min(letters, key=ORDER.index) for letters in columns))


def strongest_first(found: Sequence[Numbered]) -> list[Numbered]:
    """The attempt that broke most comes first, so that it is the one to be run again."""
    return sorted(found, key=lambda row: -row[1].outcomes.count("b"))


def with_outcomes(attempts: Sequence[Attempt]) -> list[Numbered]:
    """Evasion attempts that were carried through, and those cut short that broke something: an example stays an example."""
    rows = [(i, a) for i, a in enumerate(attempts) if a.check.startswith("evasion.") and a.outcomes]
    return [(i, a) for i, a in rows if a.state == "assessed" or (a.state == "inconclusive" and "b" in a.outcomes)]
