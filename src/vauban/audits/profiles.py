"""How thorough an audit is: samples, checks, time."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from vauban.schema.errors import UnknownName


@dataclass(frozen=True)
class Profile:
    """Defaults that an option overrides. Each attack names its own settings for a profile in `profiles`."""

    id: str
    samples: int
    """Test rows that are audited."""
    seconds: float | None
    """Time budget; what is left then is inconclusive, never passed. None means no limit."""
    left_out: tuple[str, ...]
    """Checks that take too long for this profile; they stand in the log as skipped."""
    text: str


DECISION_BASED = (
    "evasion.adba",
    "evasion.boundary",
    "evasion.geoda",
    "evasion.hop_skip_jump",
    "evasion.rays",
    "evasion.sign_opt",
    "evasion.surfree",
)
"""Attacks that see answers alone: thousands of queries a row."""

PROFILES: dict[str, Profile] = {
    p.id: p
    for p in (
        Profile(
            id="smoke",
            samples=64,
            seconds=60,
            left_out=(*DECISION_BASED, "evasion.universal", "leakage.lira", "leakage.rmia"),
            text="under a minute: is anything plainly broken? No reference models, no decision-based attack.",
        ),
        Profile(
            id="standard",
            samples=256,
            seconds=1800,
            left_out=(),
            text="up to half an hour: every check at the settings its authors recommend.",
        ),
        Profile(
            id="deep",
            samples=1000,
            seconds=None,
            left_out=(),
            text="no time limit: more samples, more steps, more restarts, more reference models.",
        ),
    )
}


def profile(id: str) -> Profile:
    """The profile of that name; raises UnknownName with those there are."""
    if id in PROFILES:
        return PROFILES[id]
    near = difflib.get_close_matches(id, PROFILES, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise UnknownName(f"There is no profile {id!r}{hint} Profiles are {', '.join(PROFILES)}.")
