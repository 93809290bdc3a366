"""summary.md: what a reviewer of a pull request reads."""

from __future__ import annotations

import re
from collections import Counter
from typing import ClassVar

from vauban.reports.text import full, key, number, outcome, signed, title
from vauban.reports.view import STATES, headline, warned
from vauban.reports.words import Translate, translator
from vauban.schema.log import AuditLog, Comparison, Finding

WORDS = {"pass": "Passed", "fail": "Failed", "inconclusive": "No verdict"}
MOST = 10


class Markdown:
    filename: ClassVar[str] = "summary.md"

    def __init__(self, lang: str = "en") -> None:
        self.t: Translate = translator(lang)

    def render(self, log: AuditLog) -> str:
        t = self.t
        seen = Counter(a.state for a in log.attempts)
        counts = ", ".join(f"{seen[s]} {t(s.replace('_', ' '))}" for s in STATES if seen[s])
        lines = [f"## Vauban: {t(WORDS[log.verdict.state])}", "", escape(log.verdict.sentence), ""]
        lines += [f"`{code(log.target.id)}` · `{code(log.data.id)}` · {counts or t('Nothing was examined.')}", ""]
        lines += self._warned(log)
        if log.before_after is not None:
            lines += self._compared(log.before_after)
        lines += self._findings([f for f in log.findings if f.suppressed is None])
        lines += self._coverage(log)
        return "\n".join(lines).rstrip() + "\n"

    def _warned(self, log: AuditLog) -> list[str]:
        t = self.t
        rows = [
            f"- **{t(w.doubt.verdict)}** {escape(w.doubt.text)} {escape(w.doubt.remedy)}".rstrip() for w in warned(log)
        ]
        return [f"### {t('Before you believe the numbers')}", "", *rows, ""] if rows else []

    def _compared(self, comparison: Comparison) -> list[str]:
        t = self.t
        rows = [
            f"| {escape(t(title(c.name)))} | {escape(c.threat or '')} | {number(c.before, c.unit)} | {number(c.after, c.unit)} | "
            f"{signed(c.difference, c.unit)} | {t(outcome(c))} |"
            for c in headline(comparison)
        ]
        head = [
            f"| {t('Measured')} | {t('Threat')} | {t('Before')} | {t('After')} | {t('Change')} | |",
            "|---|---|---:|---:|---:|---|",
        ]
        chosen = comparison.choice
        why = [f"{t('How the defence was chosen')}: {escape(' '.join(chosen.reasons))}", ""] if chosen else []
        return [f"### {t('Before and after')}", "", *head, *rows, "", *why]

    def _findings(self, findings: list[Finding]) -> list[str]:
        t = self.t
        if not findings:
            return []
        rows = [
            f"| {t(f.severity)} {f.score:.1f} | `{f.rule}` | {escape(f.claim)} | {escape(f.remedies[0] if f.remedies else '')} |"
            for f in findings[:MOST]
        ]
        more = [f"| | | … {len(findings) - MOST} | |"] if len(findings) > MOST else []
        head = [f"| | {t('Finding')} | | {t('What to do')} |", "|---|---|---|---|"]
        return [f"### {t('Findings')}", "", *head, *rows, *more, ""]

    def _coverage(self, log: AuditLog) -> list[str]:
        t = self.t
        rows = []
        for a in log.attempts:
            m = key(a)
            result = f"{t(title(m.name))} {full(m)}" if m is not None else a.reason
            state = t(a.state.replace("_", " "))
            rows.append(f"| `{code(a.check)}` | {escape(a.threat or '')} | {state} | {escape(result)} |")
        head = [f"| {t('Check')} | {t('Threat')} | {t('State')} | {t('Result or reason')} |", "|---|---|---|---|"]
        summary = f"<details><summary>{t('What was examined')}</summary>"
        return [summary, "", *head, *rows, "", "</details>"]


def escape(text: str) -> str:
    """Text that stays text in a table cell: no markup, no line break, nobody is mentioned."""
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")
    return re.sub(r"([\\`*_\[\]|#!~])", r"\\\1", flat)


def code(text: str) -> str:
    """Text within backticks."""
    return " ".join(text.split()).replace("`", "'").replace("|", "\\|")
