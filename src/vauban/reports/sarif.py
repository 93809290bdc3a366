"""report.sarif: SARIF 2.1.0 with the fields that code-scanning services ask for.

A model has no lines. Every result points to line 1 of the file that was audited, or of `vauban.yaml` where the target
is not a file. Checks that broke are tool notifications, so that an upload never hides them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePosixPath
from typing import Any, ClassVar
from urllib.parse import quote

from vauban.reports.canonical import finite
from vauban.schema.log import Attempt, AuditLog, Finding, Severity

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LEVELS: dict[Severity, str] = {"critical": "error", "high": "error", "medium": "warning", "low": "note", "info": "note"}
NOTIFIED = {"error": "error", "inconclusive": "warning"}
CONFIG = "vauban.yaml"


class Sarif:
    filename: ClassVar[str] = "report.sarif"

    def __init__(self, lang: str = "en") -> None:
        pass

    def render(self, log: AuditLog) -> str:
        return json.dumps(finite(document(log)), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def document(log: AuditLog) -> dict[str, Any]:
    """The whole log as one SARIF run."""
    rules = list({f.rule: f for f in log.findings}.values())
    order = {f.rule: i for i, f in enumerate(rules)}
    driver = {
        "name": "Vauban",
        "version": log.run.versions.get("vauban", "0"),
        "rules": [_rule(f) for f in rules],
    }
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": f"vauban/{log.target.id}/"},
        "invocations": [_invocation(log)],
        "results": [_result(f, order[f.rule], log) for f in log.findings],
        "columnKind": "utf16CodeUnits",
        "properties": {"verdict": log.verdict.model_dump(), "target": log.target.id, "data": log.data.id},
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def location(log: AuditLog) -> str:
    """The audited file as a relative URI, or the configuration where the target is no file."""
    name = log.target.id
    if ":" in name or not PurePosixPath(name).suffix:
        return CONFIG
    return quote(name.replace("\\", "/").lstrip("/"))


def fingerprint(finding: Finding, log: AuditLog) -> str:
    """The same weakness of the same target keeps its fingerprint, whatever the numbers of a run are."""
    words = "\x1f".join((finding.rule, finding.threat or "", log.target.id))
    return hashlib.sha256(words.encode()).hexdigest()[:32]


def _rule(f: Finding) -> dict[str, Any]:
    standards = [*f.standards.nist, *f.standards.atlas, *f.standards.owasp]
    remedies = "\n".join(f"- {r}" for r in f.remedies)
    about = "\n\n".join(part for part in (f.meaning, f.measured, f.false_positives) if part) or f.rule
    return {
        "id": f.rule,
        "name": "".join(word.title() for word in f.rule.replace(".", "_").split("_")),
        "shortDescription": {"text": f.name or f.rule},
        "fullDescription": {"text": f.meaning or f.name or f.rule},
        "help": {"text": f"{about}\n\nWhat to do:\n{remedies}", "markdown": f"{about}\n\n**What to do**\n\n{remedies}"},
        "defaultConfiguration": {"level": LEVELS[f.severity]},
        "properties": {"security-severity": f"{f.score:.1f}", "tags": ["security", "machine-learning", *standards]},
    }


def _result(f: Finding, index: int, log: AuditLog) -> dict[str, Any]:
    region = {"startLine": 1, "startColumn": 1, "endLine": 1, "endColumn": 1}
    result: dict[str, Any] = {
        "ruleId": f.rule,
        "ruleIndex": index,
        "level": LEVELS[f.severity],
        "kind": "fail",
        "message": {"text": f.claim},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": location(log)}, "region": region}}],
        "partialFingerprints": {"vaubanFinding/v1": fingerprint(f, log)},
        "properties": {
            "security-severity": f"{f.score:.1f}",
            "threat": f.threat,
            "measurements": [m.model_dump() for m in f.evidence.measurements],
            "reproduce": f.reproduce,
        },
    }
    if f.suppressed is not None:
        words = f"{f.suppressed.reason} ({f.suppressed.owner}, until {f.suppressed.until})"
        result["suppressions"] = [{"kind": "external", "status": "accepted", "justification": words}]
    return result


def _invocation(log: AuditLog) -> dict[str, Any]:
    return {
        "executionSuccessful": all(a.state != "error" for a in log.attempts),
        "commandLine": " ".join(log.run.argv),
        "startTimeUtc": log.run.started,
        "endTimeUtc": log.run.finished,
        "toolExecutionNotifications": [_notification(a) for a in log.attempts if a.state in NOTIFIED],
    }


def _notification(attempt: Attempt) -> dict[str, Any]:
    where = f" under {attempt.threat}" if attempt.threat else ""
    text = f"{attempt.check}{where} could not be carried through: {attempt.reason or attempt.state}"
    return {"level": NOTIFIED[attempt.state], "message": {"text": text}, "descriptor": {"id": attempt.check}}
