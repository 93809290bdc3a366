"""JSON, schema, SARIF, JUnit, Markdown, terminal and the writing of files."""

from __future__ import annotations

import errno
import json
import os
import re
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vauban.reports import schema, terminal
from vauban.reports.canonical import Json, finite
from vauban.reports.catalog import REPORTERS
from vauban.reports.junit import JUnit
from vauban.reports.markdown import Markdown, escape
from vauban.reports.sarif import Sarif, document, fingerprint, location
from vauban.reports.write import write
from vauban.schema.errors import BadOption, DiskFull, UnknownName
from vauban.schema.log import Attempt, AuditLog, Cost, Verdict

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NASTY = '<script>alert("x")</script> & \x07 [bold]@someone[/bold] | `code` ]]> 网络\nnext'


def nasty(log: AuditLog) -> AuditLog:
    """The log with hostile words wherever a model, a file or a user may have put them."""
    attempts = [a.model_copy(update={"reason": NASTY, "threat": NASTY, "caveats": [NASTY]}) for a in log.attempts]
    findings = [f.model_copy(update={"claim": NASTY, "reproduce": NASTY, "remedies": [NASTY]}) for f in log.findings]
    target = log.target.model_copy(update={"id": NASTY, "facts": {NASTY: NASTY}})
    verdict = log.verdict.model_copy(update={"sentence": NASTY})
    return log.model_copy(update={"attempts": attempts, "findings": findings, "target": target, "verdict": verdict})


def empty(log: AuditLog) -> AuditLog:
    nothing = Verdict(state="inconclusive", assessed=0, not_assessed=0)
    return log.model_copy(
        update={"attempts": [], "findings": [], "verdict": nothing, "before_after": None, "notes": []}
    )


@pytest.fixture(params=["rich", "nasty", "empty"])
def any_log(request: pytest.FixtureRequest, log: AuditLog) -> AuditLog:
    return {"rich": lambda x: x, "nasty": nasty, "empty": empty}[request.param](log)


@pytest.mark.parametrize("name", REPORTERS.ids())
def test_each_format_is_the_same_twice(name: str, any_log: AuditLog) -> None:
    reporter = REPORTERS.load(name)
    first = reporter().render(any_log)
    assert first
    assert first == reporter().render(any_log)


def test_json_gives_the_log_back(any_log: AuditLog) -> None:
    assert AuditLog.model_validate_json(Json().render(any_log)) == any_log


def test_json_keeps_the_order_of_the_schema(log: AuditLog) -> None:
    assert list(json.loads(Json().render(log))) == list(AuditLog.model_fields)


@given(
    st.recursive(st.floats() | st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x, max_size=3))
)
@settings(deadline=None, max_examples=30)
def test_finite_can_always_be_written(value: Any) -> None:
    json.dumps(finite(value), allow_nan=False)


def test_published_schema_is_current() -> None:
    held = (ROOT / "docs" / "report.schema.json").read_text(encoding="utf-8")
    assert held == schema.text(), "run: python -m vauban.reports.schema > docs/report.schema.json"


def test_report_is_valid_against_the_published_schema(any_log: AuditLog) -> None:
    jsonschema.Draft202012Validator(json.loads(schema.text())).validate(json.loads(Json().render(any_log)))


# SARIF


@pytest.fixture(scope="session")
def official() -> Any:
    loaded = json.loads((HERE / "data" / "sarif-2.1.0.schema.json").read_text(encoding="utf-8-sig"))
    return jsonschema.validators.validator_for(loaded)(loaded, format_checker=jsonschema.FormatChecker())


def test_sarif_is_valid_against_the_official_schema(any_log: AuditLog, official: Any) -> None:
    official.validate(json.loads(Sarif().render(any_log)))


def test_official_schema_refuses_what_is_wrong(log: AuditLog, official: Any) -> None:
    broken = document(log)
    broken["runs"][0]["results"][0]["level"] = "catastrophe"
    assert not official.is_valid(broken)


def test_sarif_has_what_code_scanning_asks_for(log: AuditLog) -> None:
    run = document(log)["runs"][0]
    rules = run["tool"]["driver"]["rules"]
    assert len(run["results"]) == len(log.findings)
    for result in run["results"]:
        rule = rules[result["ruleIndex"]]
        assert rule["id"] == result["ruleId"]
        assert rule["shortDescription"]["text"]
        assert rule["fullDescription"]["text"]
        assert rule["help"]["text"]
        assert 0 < float(rule["properties"]["security-severity"]) <= 10
        region = result["locations"][0]["physicalLocation"]["region"]
        assert set(region) == {"startLine", "startColumn", "endLine", "endColumn"}
        assert result["partialFingerprints"]


def test_sarif_tells_of_checks_that_broke_and_of_what_was_accepted(log: AuditLog) -> None:
    run = document(log)["runs"][0]
    told = [n["descriptor"]["id"] for n in run["invocations"][0]["toolExecutionNotifications"]]
    assert told == [a.check for a in log.attempts if a.state in ("error", "inconclusive")]
    assert run["invocations"][0]["executionSuccessful"] is False
    accepted = [r["ruleId"] for r in run["results"] if r.get("suppressions")]
    assert accepted == ["extraction.exact_copy"]


def test_fingerprint_outlives_new_numbers_and_tells_findings_apart(log: AuditLog) -> None:
    first = log.findings[0]
    assert fingerprint(first, log) == fingerprint(first.model_copy(update={"score": 1.0, "claim": "other"}), log)
    assert len({fingerprint(f, log) for f in log.findings}) == len(log.findings)


@pytest.mark.parametrize(
    ("id", "want"),
    [
        ("model.pt2", "model.pt2"),
        ("out/my model.onnx", "out/my%20model.onnx"),
        ("/srv/model.pt2", "srv/model.pt2"),
        ("demo:digits-cnn", "vauban.yaml"),
        ("https://host/v2", "vauban.yaml"),
        ("pkg.module:model", "vauban.yaml"),
    ],
)
def test_location(log: AuditLog, id: str, want: str) -> None:
    assert location(log.model_copy(update={"target": log.target.model_copy(update={"id": id})})) == want


# JUnit


def test_junit_has_one_case_a_check_and_counts_right(any_log: AuditLog) -> None:
    suite = ET.fromstring(JUnit().render(any_log).encode())[0]
    cases = list(suite)
    assert len(cases) == len(any_log.attempts) == int(suite.attrib["tests"])
    for attribute, tag in {"failures": "failure", "errors": "error", "skipped": "skipped"}.items():
        assert int(suite.attrib[attribute]) == sum(case.find(tag) is not None for case in cases)


def test_junit_states(log: AuditLog) -> None:
    cases = list(ET.fromstring(JUnit().render(log).encode())[0])
    blamed = {f.evidence.attempts[0] for f in log.findings if not f.suppressed and f.severity not in ("low", "info")}
    for i, (case, attempt) in enumerate(zip(cases, log.attempts, strict=True)):
        tags = {child.tag for child in case} - {"system-out"}
        want = {"error": {"error"}, "inconclusive": {"error"}, "skipped": {"skipped"}, "not_applicable": {"skipped"}}
        assert tags == want.get(attempt.state, {"failure"} if i in blamed else set())


# Markdown and terminal


def test_markdown_is_short_and_complete(log: AuditLog) -> None:
    text = Markdown().render(log)
    assert len(text) < 8000
    assert text.startswith("## Vauban: Failed")
    for attempt in log.attempts:
        assert f"`{attempt.check}`" in text


def test_markdown_cannot_be_broken_out_of(log: AuditLog) -> None:
    text = Markdown().render(nasty(log))
    prose = re.sub(r"`[^`]*`", "", text)
    assert "<script>" not in prose
    assert "@someone" not in prose
    widths = Counter(line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("| `"))
    assert set(widths) == {5}


@given(st.text())
@settings(deadline=None, max_examples=30)
def test_escaped_text_is_one_line(text: str) -> None:
    assert "\n" not in escape(text)
    assert "<" not in escape(text)


def test_terminal_shows_everything_and_reads_nothing_as_markup(log: AuditLog) -> None:
    text = terminal.render(log, width=140)
    assert "Failed" in text
    for attempt in log.attempts:
        assert attempt.check in text
    assert "[bold]" in terminal.render(nasty(log), width=140)


def test_checks_that_were_left_out_for_one_reason_share_a_line(log: AuditLog) -> None:
    out = log.attempts[0].model_copy(
        update={"state": "skipped", "reason": "not asked for", "measurements": [], "cost": Cost()}
    )
    few, many = ([out.model_copy(update={"check": f"evasion.x{i}"}) for i in range(n)] for n in (3, 7))
    short = terminal.render(log.model_copy(update={"attempts": [log.attempts[0], *few]}), width=140)
    long = terminal.render(log.model_copy(update={"attempts": [log.attempts[0], *many]}), width=140)
    assert "evasion.x2" in short
    assert "checks" not in short.splitlines()[-1]
    assert "evasion.x2" not in long
    assert "7 checks" in long
    assert log.attempts[0].check in long


# Writing


def test_write_puts_everything_in_its_place(log: AuditLog, tmp_path: Path) -> None:
    paths = write(log, tmp_path, ["html", "json", "sarif", "junit", "md"], langs=["en", "zh"])
    names = {p.relative_to(tmp_path).as_posix() for p in paths}
    fixed = {"report.html", "report.json", "report.sarif", "junit.xml", "summary.md", "report.zh.html", "summary.zh.md"}
    assert fixed <= names
    assert sum(n.endswith(".svg") for n in names) == sum(len(a.curves) for a in log.attempts)
    pictures = [p for p in paths if p.suffix == ".png"]
    assert len(pictures) == sum(len(e.pictures) for a in log.attempts for e in a.exhibits)
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)
    for svg in (p for p in paths if p.suffix == ".svg"):
        ET.fromstring(svg.read_bytes())
    assert not list(tmp_path.rglob(".*")), "no temporary file stays behind"


def test_hostile_names_stay_inside_the_folder(log: AuditLog, tmp_path: Path) -> None:
    odd = [a.model_copy(update={"threat": "../../../etc/x"}) for a in log.attempts]
    for path in write(log.model_copy(update={"attempts": odd}), tmp_path, ["json"]):
        assert path.resolve().is_relative_to(tmp_path.resolve())


def test_a_full_disk_leaves_the_old_report(log: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.json").write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="no room left"):
        write(log, tmp_path, ["json"])
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "old"


def test_unknown_format_or_language_writes_nothing(log: AuditLog, tmp_path: Path) -> None:
    with pytest.raises(UnknownName):
        write(log, tmp_path, ["json", "pdf"])
    with pytest.raises(BadOption, match="xx"):
        write(log, tmp_path, ["json"], langs=["xx"])
    assert not list(tmp_path.iterdir())


def test_a_picture_that_is_none_is_left_out(log: AuditLog, logs: ModuleType, tmp_path: Path) -> None:
    exhibit = logs.exhibit(1)
    bad = exhibit.model_copy(update={"pictures": [p.model_copy(update={"png": "?"}) for p in exhibit.pictures]})
    one = log.model_copy(update={"attempts": [Attempt(check="a.b", state="assessed", exhibits=[bad])], "findings": []})
    assert [p.name for p in write(one, tmp_path, ["json"])] == ["report.json"]
