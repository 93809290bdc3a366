"""Many attacks on the same samples, taken together: a sample is safe only where every one of them failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from vauban.rules.base import Numbered, interval, rate
from vauban.schema.log import Measurement

ORDER = "wbchu"
"""From what weighs most to what weighs least: one attack that breaks a sample outweighs all that did not."""


FULL_SHARE = 0.5
"""Share of right answers broken from which the impact is full: every second answer can be had wrong."""


@dataclass(frozen=True)
class Union:
    """The worst outcome of each sample over all attacks, one letter a sample."""

    outcomes: str

    @property
    def right(self) -> int:
        """Samples that were right when clean and that some attack finished on."""
        return sum(letter in "bch" for letter in self.outcomes)

    @property
    def broken(self) -> int:
        return self.outcomes.count("b")

    @property
    def robust_accuracy(self) -> Measurement:
        """Share of all examined samples that are right and were not broken by any attack."""
        known = sum(letter != "u" for letter in self.outcomes)
        return rate("evasion.robust_accuracy", sum(letter in "ch" for letter in self.outcomes), known)

    @property
    def clean_accuracy(self) -> Measurement:
        known = sum(letter != "u" for letter in self.outcomes)
        return rate("evasion.clean_accuracy", self.right, known)

    @property
    def broken_share(self) -> Measurement:
        """Share of the samples that were right before and are wrong after."""
        return rate("evasion.broken_share", self.broken, self.right)

    @property
    def broken_low(self) -> float:
        """Lower end of the interval of `broken_share`; 0 where nothing was right to begin with."""
        return interval(self.broken, self.right)[0] if self.right else 0.0


def union(found: Sequence[Numbered]) -> Union:
    """All attempts together. A shorter string of outcomes speaks of the first samples only; the rest is unknown."""
    columns = zip_longest(*(a.outcomes for _, a in found), fillvalue="u")
    return Union("".join(min(letters, key=ORDER.index) for letters in columns))


def strongest_first(found: Sequence[Numbered]) -> list[Numbered]:
    """The attempt that broke most comes first, so that it is the one to be run again."""
    return sorted(found, key=lambda row: -row[1].outcomes.count("b"))
