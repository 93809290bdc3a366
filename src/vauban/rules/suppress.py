"""Accepted findings: reason, owner and date are asked for, and what has expired counts again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from vauban.rules.catalog import RULES
from vauban.schema.errors import BadOption
from vauban.schema.log import Finding, Suppression

ASKED = {
    "rule": "the id of the rule, such as evasion.not_robust",
    "reason": "why the finding is accepted",
    "owner": "who accepts it",
    "until": "the day on which it counts again, such as 2027-01-31",
}


def read(rows: Sequence[Mapping[str, Any]]) -> list[Suppression]:
    """Suppressions from a configuration; raises BadOption naming the entry, what it lacks and what to write."""
    return [_one(number, row) for number, row in enumerate(rows, start=1)]


def _one(number: int, row: Mapping[str, Any]) -> Suppression:
    where = f"Suppression {number}" + (f" ({row['rule']})" if row.get("rule") else "")
    missing = [f"{key} ({ASKED[key]})" for key in ASKED if not str(row.get(key) or "").strip()]
    if missing:
        raise BadOption(
            f"{where} lacks {' and '.join(missing)}: an accepted finding needs a reason, an owner and a date."
        )
    unknown = sorted(set(row) - {*ASKED, "threat"})
    if unknown:
        raise BadOption(f"{where} has the unknown key {', '.join(unknown)}; it takes {', '.join([*ASKED, 'threat'])}.")
    if row["rule"] not in RULES:
        RULES.load(str(row["rule"]))
    text = {key: str(row[key]).strip() for key in ASKED}
    try:
        date.fromisoformat(text["until"])
    except ValueError:
        raise BadOption(f"{where} has until={text['until']!r}, which is no date: write it as 2027-01-31.") from None
    return Suppression(**text, threat=str(row["threat"]) if row.get("threat") else None)


def expired(suppression: Suppression, today: date) -> bool:
    """The day named is the last on which it holds."""
    return date.fromisoformat(suppression.until) < today


def covers(suppression: Suppression, finding: Finding) -> bool:
    return suppression.rule == finding.rule and suppression.threat in (None, finding.threat)


def apply(findings: Sequence[Finding], suppressions: Sequence[Suppression], today: date) -> list[Finding]:
    """The same findings with `suppressed` set where a suppression holds."""
    alive = [s for s in suppressions if not expired(s, today)]
    return [f.model_copy(update={"suppressed": next((s for s in alive if covers(s, f)), None)}) for f in findings]


def notes(findings: Sequence[Finding], suppressions: Sequence[Suppression], today: date) -> list[str]:
    """A sentence for each suppression that ran out or met nothing."""
    met = [any(covers(s, f) for f in findings) for s in suppressions]
    return [
        f"The suppression of {s.rule} by {s.owner} ran out on {s.until}: the finding counts again."
        if hit
        else f"The suppression of {s.rule} by {s.owner} (until {s.until}) met no finding: remove it."
        for s, hit in zip(suppressions, met, strict=True)
        if not hit or expired(s, today)
    ]
