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
    evasion: tuple[str, ...]
    """Attacks on inputs that it makes unasked; the cascade stands for those that it is made of."""
    beyond: tuple[str, ...]
    """The same, where the room is none that the cascade searches: knobs, patches."""
    rooms: tuple[str, ...]
    """Rooms of pictures that it adds to the norms where the user names none."""
    left_out: tuple[str, ...]
    """Checks that take too long for this profile; they stand in the log as skipped."""
    text: str


PLAIN = ("evasion.noise", "evasion.fgsm")
"""What an attack has to beat."""
STRONGEST = "evasion.cascade"
"""Within a norm; it stands for every attack that is left out there."""
BASELINES = (*PLAIN, STRONGEST)
OTHER_WAYS = ("evasion.square", "evasion.hop_skip_jump", "evasion.universal", "evasion.feature")
"""Attackers who see less, and ways in that a radius around each input does not show."""
BEYOND = ("evasion.noise", "evasion.grid", "evasion.apgd", "evasion.patch", "evasion.universal_patch")
"""For rooms that are no norm: every setting of few knobs, gradients for many, patches."""

PROFILES: dict[str, Profile] = {
    p.id: p
    for p in (
        Profile(
            id="smoke",
            samples=64,
            seconds=60,
            evasion=BASELINES,
            beyond=BEYOND,
            rooms=(),
            left_out=("leakage.lira", "leakage.rmia", *OTHER_WAYS),
            text="under a minute: is anything plainly broken? No reference models, no decision-based attack.",
        ),
        Profile(
            id="standard",
            samples=256,
            seconds=1800,
            evasion=(*BASELINES, *OTHER_WAYS),
            beyond=BEYOND,
            rooms=(),
            left_out=(),
            text="up to half an hour: every check at the settings its authors recommend.",
        ),
        Profile(
            id="deep",
            samples=1000,
            seconds=None,
            evasion=(*BASELINES, *OTHER_WAYS, "evasion.fmn", "evasion.rays", "evasion.surfree"),
            beyond=BEYOND,
            rooms=("rigid:30", "corruption:3"),
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
