"""Plain facts that the poisoning checks note beside their measurements."""

from __future__ import annotations

from vauban.schema.log import Attempt


def noted(attempt: Attempt, name: str) -> float | None:
    """A number among the facts; None where there is none of that name."""
    value = attempt.facts.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def poisoned_share(attempt: Attempt) -> float | None:
    """Share of the training rows that were changed, 0 to 1."""
    share = noted(attempt, "fraction")
    return share if share is not None and 0 < share <= 1 else None
