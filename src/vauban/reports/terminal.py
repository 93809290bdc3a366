"""What the command line shows at the end of a run."""

from __future__ import annotations

import io
import sys
from collections import Counter

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from vauban.reports.text import full, key, number, outcome, seconds, signed, title
from vauban.reports.view import STATES, Warned, headline, view
from vauban.schema.log import Attempt, AuditLog, Comparison, Finding

TONES = {"pass": "green", "fail": "red", "inconclusive": "yellow"}
WORDS = {"pass": "Passed", "fail": "Failed", "inconclusive": "No verdict"}
SEVERITY = {"critical": "bold white on red", "high": "red", "medium": "yellow", "low": "green", "info": "cyan"}
STATE = {"assessed": "green", "inconclusive": "yellow", "error": "red", "skipped": "dim", "not_applicable": "dim"}
MANY = 4
"""Checks that were not begun for the same reason share a line from that number on."""


def render(log: AuditLog, width: int | None = None) -> str:
    """Verdict, before and after, findings, coverage as text; coloured where standard output is a terminal.

    Text from models and files is shown as it is, never read as markup.
    """
    console = Console(width=width, file=io.StringIO(), force_terminal=sys.stdout.isatty(), highlight=False)
    with console.capture() as captured:
        console.print(summary(log))
    return captured.get()


def summary(log: AuditLog) -> RenderableType:
    """The same as one thing for rich to print."""
    seen = view(log)
    counts = ", ".join(f"{n} {state.replace('_', ' ')}" for state in STATES if (n := seen.counts[state]))
    body = Text(log.verdict.sentence or "Too little could be examined.", style="bold")
    body.append(f"\n{counts or 'nothing examined'}", style="dim")
    tone = TONES[log.verdict.state]
    parts: list[RenderableType] = [
        Panel(body, title=Text(WORDS[log.verdict.state], style=f"bold {tone}"), border_style=tone, title_align="left")
    ]
    if seen.warned:
        parts.append(_warned(seen.warned))
    if log.before_after is not None:
        parts.append(_compared(log.before_after))
    if seen.open:
        parts.append(_findings([item.finding for item in seen.open]))
    parts.append(_coverage(log))
    parts += [Text(note, style="dim") for note in log.notes]
    return Group(*parts)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, no_wrap=place == 0)
    return table


def _warned(rows: list[Warned]) -> Table:
    table = _table("", "before you believe the numbers")
    for row in rows:
        tone = "red" if row.doubt.verdict == "fail" else "yellow"
        table.add_row(Text(row.doubt.verdict, style=tone), Text(row.doubt.text))
    return table


def _compared(comparison: Comparison) -> Table:
    table = _table("before and after", "before", "after", "change", "")
    for c in headline(comparison):
        word = outcome(c)
        tone = {"better": "green", "worse": "red"}.get(word, "dim")
        where = f"{title(c.name)}, {c.threat}" if c.threat and ":" in c.threat else title(c.name)
        row = (where, number(c.before, c.unit), number(c.after, c.unit), signed(c.difference, c.unit))
        table.add_row(*map(Text, row), Text(word, style=tone))
    return table


def _findings(findings: list[Finding]) -> Table:
    table = _table("", "finding", "")
    for f in findings:
        table.add_row(Text(f" {f.severity} {f.score:.1f} ", style=SEVERITY[f.severity]), Text(f.rule), Text(f.claim))
    return table


def _coverage(log: AuditLog) -> Table:
    table = _table("check", "state", "result or reason", "time")
    counts = Counter(map(_alike, log.attempts))
    many = {alike: count for alike, count in counts.items() if alike[1] and count >= MANY}
    for a in log.attempts:
        if _alike(a) not in many:
            m = key(a)
            result = f"{title(m.name)} {full(m)}" if m is not None else a.reason
            where = f"{a.check} {a.threat}" if a.threat and ":" in a.threat else a.check
            table.add_row(Text(where), _state(a.state), Text(result), Text(seconds(a.cost.seconds)))
    for (state, reason), count in many.items():
        table.add_row(Text(f"{count} checks"), _state(state), Text(reason), Text(""))
    return table


def _alike(a: Attempt) -> tuple[str, str]:
    """What makes attempts one line: that none was begun, and why."""
    return a.state, "" if key(a) is not None or a.cost.seconds else a.reason


def _state(state: str) -> Text:
    return Text(state.replace("_", " "), style=STATE[state])
