"""The log arranged as the page shows it: nothing new is measured or judged here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from vauban.reports.charts import merged
from vauban.schema.log import SEVERITIES, Attempt, AuditLog, Change, Comparison, Curve, Doubt, Exhibit, Finding, State

STATES: tuple[State, ...] = ("assessed", "inconclusive", "error", "skipped", "not_applicable")
PICTURES = 24
"""Most pictures shown of one check."""
PICTURE_BYTES = 3_000_000
"""Most base64 in all pictures of a page, so that it stays under 5 MB."""
REMEDIES = 4
FEW = 8
LETTERS = 100
"""Samples shown in the matrix of attacks and samples."""
CHARTS = 2


@dataclass(frozen=True)
class Shown:
    """A finding with what is shown beside it."""

    number: int
    finding: Finding
    curves: list[Curve]
    exhibits: list[Exhibit]


@dataclass(frozen=True)
class Step:
    """A remedy and the findings that it answers."""

    text: str
    findings: list[Shown]


@dataclass
class Album:
    """Hands out each exhibit once and keeps the page small."""

    left: int = PICTURE_BYTES
    seen: set[int] = field(default_factory=set)
    dropped: int = 0

    def take(self, attempt: Attempt) -> list[Exhibit]:
        if id(attempt) in self.seen:
            return []
        self.seen.add(id(attempt))
        shown, room = [], PICTURES
        for exhibit in attempt.exhibits:
            kept = []
            for picture in exhibit.pictures[:room]:
                if len(picture.png) <= self.left:
                    kept.append(picture)
                    self.left -= len(picture.png)
            room -= len(kept)
            self.dropped += len(exhibit.pictures) - len(kept)
            if kept or exhibit.rows:
                shown.append(exhibit.model_copy(update={"pictures": kept}))
        return shown


@dataclass(frozen=True)
class Warned:
    """A doubt that remained, once, with the checks that raised it; none where it was found before the first attack."""

    doubt: Doubt
    checks: list[str]


@dataclass(frozen=True)
class Breaker:
    """What one attack broke under a threat: a row of the matrix of attacks and samples."""

    check: str
    threat: str
    broken: int
    alone: int
    """Samples that no other attack under the threat broke."""
    letters: str
    """One a sample, the first LETTERS of them."""


@dataclass(frozen=True)
class View:
    log: AuditLog
    counts: dict[State, int]
    open: list[Shown]
    accepted: list[Shown]
    first_steps: list[Step]
    doubts: list[tuple[int, Attempt, Doubt]]
    doubts_passed: int
    warned: list[Warned]
    """Every doubt that is no pass, worst first: what to know before a number is believed."""
    breakers: list[Breaker]
    leftover: dict[int, list[Exhibit]]
    """Exhibits of attempts that no finding points to."""
    dropped: int
    severities: dict[str, int]
    gaps: list[str]
    """Reasons of the verdict that are no findings."""


def view(log: AuditLog) -> View:
    album = Album()
    shown = [_show(number, f, log.attempts, album) for number, f in enumerate(log.findings, start=1)]
    leftover = {i: album.take(a) for i, a in enumerate(log.attempts)}
    open_ = [s for s in shown if s.finding.suppressed is None]
    counted = Counter(a.state for a in log.attempts)
    doubts = [(i, a, d) for i, a in enumerate(log.attempts) for d in a.doubts]
    severities = Counter(s.finding.severity for s in open_)
    return View(
        log=log,
        counts={state: counted[state] for state in STATES},
        open=open_,
        accepted=[s for s in shown if s.finding.suppressed is not None],
        first_steps=first_steps(open_),
        doubts=[row for row in doubts if row[2].verdict != "pass"],
        doubts_passed=sum(d.verdict == "pass" for _, _, d in doubts),
        warned=warned(log),
        breakers=breakers(log.attempts),
        leftover=leftover,
        dropped=album.dropped,
        gaps=[
            r
            for r in log.verdict.reasons
            if r not in log.verdict.sentence and not any(f.claim in r for f in log.findings)
        ],
        severities={s: severities[s] for s in SEVERITIES if severities[s]},
    )


def warned(log: AuditLog) -> list[Warned]:
    """One entry an id, with its worst verdict; failures first, then in the order of appearance."""
    found: dict[str, Warned] = {}
    for check, doubt in [("", d) for d in log.target.preflight] + [
        (a.check, d) for a in log.attempts for d in a.doubts
    ]:
        if doubt.verdict == "pass":
            continue
        known = found.setdefault(doubt.id, Warned(doubt, []))
        worse = doubt.verdict == "fail" and known.doubt.verdict != "fail"
        checks = list(dict.fromkeys([*known.checks, *([check] if check else [])]))
        found[doubt.id] = Warned(doubt if worse else known.doubt, checks)
    return sorted(found.values(), key=lambda row: row.doubt.verdict != "fail")


def breakers(attempts: Sequence[Attempt]) -> list[Breaker]:
    """Attacks against samples, under threats that more than one attack was carried through for."""
    groups: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        if attempt.state == "assessed" and attempt.outcomes and attempt.threat:
            groups.setdefault(attempt.threat, []).append(attempt)
    rows = []
    for threat, group in groups.items():
        if len(group) < 2:
            continue
        times = [sum(letter == "b" for letter in column) for column in zip(*(a.outcomes for a in group), strict=False)]
        for a in group:
            hits = [i for i, letter in enumerate(a.outcomes) if letter == "b"]
            alone = sum(i < len(times) and times[i] == 1 for i in hits)
            rows.append(Breaker(a.check, threat, len(hits), alone, a.outcomes[:LETTERS]))
    return rows


def headline(comparison: Comparison) -> list[Change]:
    """The few rows to show first: an older log has none, and then shows its first ones."""
    return comparison.headline or comparison.changes[:FEW]


def _show(number: int, finding: Finding, attempts: Sequence[Attempt], album: Album) -> Shown:
    pointed = [attempts[i] for i in finding.evidence.attempts if i < len(attempts)]
    curves = merged((a.check, c) for a in pointed for c in a.curves)[:CHARTS]
    return Shown(number, finding, curves, [e for a in pointed[:3] for e in album.take(a)])


def first_steps(shown: Sequence[Shown]) -> list[Step]:
    """The first remedy of each finding, worst finding first, like ones together."""
    steps: dict[str, list[Shown]] = {}
    for item in shown:
        if item.finding.remedies and item.finding.severity != "info":
            steps.setdefault(item.finding.remedies[0], []).append(item)
    return [Step(text, items) for text, items in list(steps.items())[:REMEDIES]]
