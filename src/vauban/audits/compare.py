"""Two audits side by side, with an interval for every difference.

Where both judged the same samples one by one, the difference of two rates is paired: Newcombe's hybrid score interval
with the correlation of the pairs (Newcombe 1998, Statistics in Medicine 17:2635, method 10). Otherwise the two numbers
are taken as independent, and their own intervals are combined (MOVER: Zou and Donner 2008, Statistics in Medicine
27:1693; for two rates with Wilson intervals this is Newcombe 1998, Statistics in Medicine 17:873, method 10).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from vauban.rules.evasion.union import union
from vauban.schema.log import Attempt, AuditLog, Change, Comparison, Curve, Measurement, Series

Pair = tuple[Attempt, Attempt]
"""The same check and threat, before and after."""

Z = 1.959963984540054
"""Two-sided 95 %."""

GOOD_WHEN_HIGH: dict[str, bool] = {
    "evasion.clean_accuracy": True,
    "evasion.robust_accuracy": True,
    "evasion.certified_accuracy": True,
    "evasion.median_distance": True,
    "evasion.nearest_median": True,
    "leakage.membership.auc": False,
    "leakage.membership.tpr_at_fpr_1pct": False,
    "leakage.membership.tpr_at_fpr_0.1pct": False,
    "leakage.epsilon_lower_bound": False,
    "leakage.attribute.advantage": False,
    "leakage.property.auc": False,
    "leakage.reconstruction.psnr": False,
    "extraction.agreement": False,
    "extraction.accuracy": False,
    "extraction.max_parameter_error": True,
    "poisoning.attack_success_rate": False,
    "poisoning.clean_accuracy": True,
    "poisoning.detection_auc": True,
    "poisoning.detection_fpr_clean": False,
    "poisoning.trigger_index": False,
    "tampering.flips_to_collapse": True,
}
"""For each outcome, whether a larger value is the safer one. Controls and costs are none, and are never judged."""

WORST: dict[str, Callable[[Iterable[float]], float]] = {
    "evasion.certified_accuracy": max,
    "leakage.membership.auc": max,
    "leakage.membership.tpr_at_fpr_1pct": max,
    "extraction.agreement": max,
    "poisoning.attack_success_rate": max,
    "tampering.flips_to_collapse": min,
}
"""Numbers of the headline, and which of several attacks speaks for all: the most successful one."""

CONTROLS = ("blind baseline", "null control")
"""First words of the lines that are no attack."""

OUTCOMES = {"evasion.robust_accuracy": "hc", "evasion.clean_accuracy": "bhcu"}
"""Letters of `Attempt.outcomes` that count as a success in a rate."""


def compare(before: AuditLog, after: AuditLog, defence: str | None = None) -> Comparison:
    """What changed from `before` to `after`: every measurement that both hold, check by check and threat by threat."""
    same = before.data.sha256 == after.data.sha256 and (before.data.samples, before.run.seed) == (
        after.data.samples,
        after.run.seed,
    )
    changes: list[Change] = []
    curves: list[Curve] = []
    both = list(pairs(before, after))
    for a, b in both:
        changes += [change(a, b, m, same) for m in a.measurements if b.measurement(m.name) is not None]
        curves += overlay(a, b)
    return Comparison(
        defence=defence,
        before=before.target.id,
        after=after.target.id,
        headline=headline(both, same),
        changes=changes,
        curves=curves,
        caveats=_caveats(before, after, same),
        facts={"before_run": before.run.id, "after_run": after.run.id, "same_samples": same},
    )


def pairs(before: AuditLog, after: AuditLog) -> Iterator[tuple[Attempt, Attempt]]:
    """Attempts with the same check and threat in both."""
    later = {(a.check, a.threat): a for a in after.attempts}
    for attempt in before.attempts:
        twin = later.get((attempt.check, attempt.threat))
        if twin is not None:
            yield attempt, twin


def headline(both: Sequence[Pair], same_samples: bool) -> list[Change]:
    """Clean accuracy once, accuracy under all attacks together for each threat, and the worst of every other number."""
    done = [(a, b) for a, b in both if (a.state, b.state) == ("assessed", "assessed")]
    rows = _under_attack([(a, b) for a, b in done if a.outcomes and b.outcomes], same_samples)
    for name, worst in WORST.items():
        found = [(a, b) for a, b in done if _value(a, name) is not None and _value(b, name) is not None]
        if not found:
            continue
        a, b = (_speaker([pair[side] for pair in found], name, worst) for side in (0, 1))
        first = a.measurement(name)
        assert first is not None, "it was looked for above"
        row = change(a, b, first, same_samples)
        who = a.check if a.check == b.check else f"{a.check} before, {b.check} after"
        rows.append(row.model_copy(update={"check": who}))
    return rows


def _under_attack(both: Sequence[Pair], same_samples: bool) -> list[Change]:
    """Each sample counts with its worst outcome over the attacks that both runs hold."""
    groups: dict[str | None, list[Pair]] = {}
    for a, b in both:
        groups.setdefault(a.threat, []).append((a, b))
    rows: list[Change] = []
    for found in groups.values():
        a, b = (_together([pair[side] for pair in found]) for side in (0, 1))
        clean, robust = (change(a, b, m, same_samples) for m in a.measurements)
        rows += [*([] if rows else [clean.model_copy(update={"check": "clean inputs", "threat": None})]), robust]
    return rows


def _together(attempts: Sequence[Attempt]) -> Attempt:
    worst = union(list(enumerate(attempts)))
    return Attempt(
        check=f"all {len(attempts)} attacks together" if len(attempts) > 1 else attempts[0].check,
        threat=attempts[0].threat,
        state="assessed",
        measurements=[worst.clean_accuracy, worst.robust_accuracy],
        outcomes=worst.outcomes,
    )


def _speaker(attempts: Sequence[Attempt], name: str, worst: Callable[[Iterable[float]], float]) -> Attempt:
    values = {i: value for i, a in enumerate(attempts) if (value := _value(a, name)) is not None}
    return attempts[next(i for i, value in values.items() if value == worst(values.values()))]


def _value(attempt: Attempt, name: str) -> float | None:
    found = attempt.measurement(name)
    return None if found is None else found.value


def change(a: Attempt, b: Attempt, first: Measurement, same_samples: bool) -> Change:
    """One measurement before and after. `better` is None where the interval holds 0 or no direction is known."""
    second = b.measurement(first.name)
    assert second is not None, "the caller looked it up"
    letters = OUTCOMES.get(first.name)
    if first.value is None or second.value is None:
        low = high = None
        method = "not measured on both sides"
    elif same_samples and letters and _paired(a.outcomes, b.outcomes):
        low, high = paired([c in letters for c in a.outcomes], [c in letters for c in b.outcomes])
        method = f"paired over {len(a.outcomes)} samples, Newcombe 95 %"
    else:
        low, high = independent(first, second)
        method = "independent, MOVER 95 %" if low is not None else "no interval known"
    return Change(
        check=a.check,
        threat=a.threat,
        name=first.name,
        before=first.value,
        after=second.value,
        difference=None if first.value is None or second.value is None else second.value - first.value,
        low=low,
        high=high,
        unit=first.unit,
        better=_better(first, second, low, high),
        method=method,
    )


def _paired(before: str, after: str) -> bool:
    """Whether both runs know the outcome of every sample."""
    return bool(before) and len(before) == len(after) and "u" not in before + after


def _better(before: Measurement, after: Measurement, low: float | None, high: float | None) -> bool | None:
    """A change by rounding alone is none."""
    if before.name not in GOOD_WHEN_HIGH or low is None or high is None:
        return None
    rounding = 1e-6 * max(abs(before.value or 0.0), abs(after.value or 0.0))
    if low <= rounding and high >= -rounding:
        return None
    return GOOD_WHEN_HIGH[before.name] == (low > 0)


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a rate (Wilson 1927), n > 0."""
    p = successes / n
    middle = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def paired(before: list[bool], after: list[bool]) -> tuple[float, float]:
    """Interval of rate(after) - rate(before) on the same samples; lists of one length > 0."""
    n = len(before)
    both = sum(b and a for b, a in zip(before, after, strict=True))
    only_after = sum(a and not b for b, a in zip(before, after, strict=True))
    only_before = sum(b and not a for b, a in zip(before, after, strict=True))
    neither = n - both - only_after - only_before
    p1, p2 = (both + only_after) / n, (both + only_before) / n
    (l1, u1), (l2, u2) = wilson(both + only_after, n), wilson(both + only_before, n)
    margins = (both + only_after) * (only_before + neither) * (both + only_before) * (only_after + neither)
    association = both * neither - only_after * only_before
    # Newcombe's continuity correction, towards 0, where the association is positive.
    corrected = max(association - n / 2, 0.0) if association > 0 else float(association)
    phi = corrected / math.sqrt(margins) if margins > 0 else 0.0
    d = p1 - p2
    low = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    high = (p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2
    return max(-1.0, d - math.sqrt(max(low, 0.0))), min(1.0, d + math.sqrt(max(high, 0.0)))


def independent(before: Measurement, after: Measurement) -> tuple[float | None, float | None]:
    """Interval of the difference of two numbers from different samples, from their own intervals."""
    if None in (before.value, before.low, before.high, after.value, after.low, after.high):
        return None, None
    v1, l1, u1 = float(after.value or 0), float(after.low or 0), float(after.high or 0)
    v2, l2, u2 = float(before.value or 0), float(before.low or 0), float(before.high or 0)
    d = v1 - v2
    return d - math.hypot(v1 - l1, u2 - v2), d + math.hypot(u1 - v1, v2 - l2)


def overlay(a: Attempt, b: Attempt) -> list[Curve]:
    """Each curve that both attempts hold and that moved, with the lines of both; a line that is the same in both is
    drawn once."""
    later = {c.id: c for c in b.curves}
    return [
        first.model_copy(
            update={
                "id": f"{a.check}.{a.threat or ''}.{first.id}",
                "title": f"{first.title} ({a.check})",
                "series": _lines(first, later[first.id]),
                "reading": "",
            }
        )
        for first in a.curves
        if first.id in later and first.series != later[first.id].series
    ]


def _lines(before: Curve, after: Curve) -> list[Series]:
    """Lines that differ, named by side, then those that do not. Controls stay with the attempts."""
    sides = [[s for s in curve.series if not s.label.startswith(CONTROLS)] for curve in (before, after)]
    shared = [s for s in sides[0] if s in sides[1]]
    moved = [[s for s in side if s not in shared] for side in sides]
    alone = all(len(side) <= 1 for side in moved)
    named = [
        s.model_copy(update={"label": when if alone else f"{s.label}, {when}"})
        for when, side in zip(("before", "after"), moved, strict=True)
        for s in side
    ]
    return [*named, *shared]


def _caveats(before: AuditLog, after: AuditLog, same: bool) -> list[str]:
    said = []
    if not same:
        said.append(
            "The two runs judged different samples (data, number of samples or seed differ): differences are taken as independent."
        )
    missing = {a.check for a in before.attempts if a.state == "assessed"} ^ {
        a.check for a in after.attempts if a.state == "assessed"
    }
    if missing:
        said.append(f"Assessed in one run only, so not compared: {', '.join(sorted(missing))}.")
    if before.run.profile != after.run.profile:
        said.append(f"Profiles differ: {before.run.profile} before, {after.run.profile} after.")
    return said
