"""How much of the training data an attempt changed."""

from __future__ import annotations

from vauban.schema.log import Attempt


def poisoned_share(attempt: Attempt) -> float | None:
    """Share of the training rows, 0 to 1, from what the check noted; None where it noted nothing usable."""
    noted = (*(attempt.facts.get(k) for k in ("fraction", "poison_fraction")), attempt.params.get("fraction"))
    return next((float(v) for v in noted if isinstance(v, int | float) and 0 < v <= 1), None)
