"""The demonstration: all five families have a finding before hardening, and the report holds a before and after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vauban.audits.config import resolve
from vauban.cli.app import app
from vauban.cli.demo import configuration

FAMILIES = {"evasion", "extraction", "leakage", "poisoning", "tampering"}


def test_its_configuration_is_valid() -> None:
    assert resolve(configuration(), None, {}).defence == "train.pgd"


@pytest.mark.slow
def test_the_demonstration(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "run"), "--json"])
    assert result.exit_code == 0, result.stderr
    after = json.loads(result.stdout)
    before = json.loads((tmp_path / "run/before/report.json").read_text())
    assert {f["rule"].partition(".")[0] for f in before["findings"]} == FAMILIES
    assert after["before_after"]["changes"]
    assert (tmp_path / "run/report.html").stat().st_size < 5_000_000
