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
class View:
    log: AuditLog
    counts: dict[State, int]
    open: list[Shown]
    accepted: list[Shown]
    first_steps: list[Step]
    doubts: list[tuple[int, Attempt, Doubt]]
    doubts_passed: int
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
        leftover=leftover,
        dropped=album.dropped,
        gaps=[
            r
            for r in log.verdict.reasons
            if r not in log.verdict.sentence and not any(f.claim in r for f in log.findings)
        ],
        severities={s: severities[s] for s in SEVERITIES if severities[s]},
    )


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
