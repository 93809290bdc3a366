"""junit.xml: one test case a check, for services that show tests.

A check that carries an unaccepted finding fails; one that broke or was cut short is an error, never a pass; one that
was skipped or does not apply is skipped.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import ClassVar

from vauban.reports.text import full, title
from vauban.schema.log import Attempt, AuditLog, Finding

FAILING = ("critical", "high", "medium")
ILLEGAL = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold."""


class JUnit:
    filename: ClassVar[str] = "junit.xml"

    def __init__(self, lang: str = "en") -> None:
        pass

    def render(self, log: AuditLog) -> str:
        suite = ET.Element("testsuite", name=_clean(f"vauban {log.target.id}"), timestamp=_clean(log.run.started))
        for number, attempt in enumerate(log.attempts):
            _case(suite, attempt, _against(log.findings, number))
        for key, tags in {
            "tests": ["testcase"],
            "failures": ["failure"],
            "errors": ["error"],
            "skipped": ["skipped"],
        }.items():
            suite.set(key, str(sum(len(list(suite.iter(tag))) for tag in tags)))
        suite.set("time", f"{sum(a.cost.seconds for a in log.attempts):.3f}")
        root = ET.Element("testsuites")
        root.append(suite)
        ET.indent(root)
        return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _against(findings: list[Finding], number: int) -> list[Finding]:
    """Findings that count against an attempt: those that name it first among their evidence."""
    open_ = (f for f in findings if f.suppressed is None and f.severity in FAILING)
    return [f for f in open_ if f.evidence.attempts[:1] == [number]]


def _case(suite: ET.Element, attempt: Attempt, findings: list[Finding]) -> None:
    name = f"{attempt.check} {attempt.threat}" if attempt.threat else attempt.check
    family = attempt.check.partition(".")[0]
    case = ET.SubElement(
        suite, "testcase", classname=_clean(f"vauban.{family}"), name=_clean(name), time=f"{attempt.cost.seconds:.3f}"
    )
    if attempt.state in ("error", "inconclusive"):
        ET.SubElement(case, "error", type=attempt.state, message=_clean(attempt.reason or attempt.state))
    elif attempt.state != "assessed":
        ET.SubElement(case, "skipped", message=_clean(attempt.reason or attempt.state.replace("_", " ")))
    elif findings:
        failure = ET.SubElement(case, "failure", type=findings[0].rule, message=_clean(findings[0].claim))
        failure.text = _clean(
            "\n".join(f"{f.severity} {f.score:.1f} {f.rule}: {f.claim}\n{f.reproduce}" for f in findings)
        )
    if attempt.measurements:
        out = ET.SubElement(case, "system-out")
        out.text = _clean("\n".join(f"{title(m.name)}: {full(m)}" for m in attempt.measurements))


def _clean(text: str) -> str:
    return ILLEGAL.sub("\ufffd", text)
