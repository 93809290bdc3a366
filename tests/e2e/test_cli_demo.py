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


BY_NAME = ("cascade", "noise", "fgsm", "pgd", "apgd", "apgd_targeted", "square", "hop_skip_jump")


@pytest.mark.slow
def test_the_demonstration(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "run"), "--json"])
    assert result.exit_code == 0, result.stderr
    after = json.loads(result.stdout)
    before = json.loads((tmp_path / "run/before/report.json").read_text())
    assert {f["rule"].partition(".")[0] for f in before["findings"]} == FAMILIES
    assert after["before_after"]["changes"]
    assert (tmp_path / "run/report.html").stat().st_size < 5_000_000


@pytest.mark.slow
def test_evasion_of_the_demo_model_depends_on_neither_run_nor_batch(tmp_path: Path) -> None:
    def numbers(name: str, *words: str) -> list[tuple[object, ...]]:
        command = ["audit", "demo:digits-cnn", "--data", "demo:digits", "--profile", "smoke"]
        command += [word for attack in BY_NAME for word in ("--include", f"evasion.{attack}")]
        command += [
            "--samples",
            "24",
            "--time-limit",
            "1h",
            "--threat",
            "linf:0.1",
            "--threat",
            "l2:0.5",
            "--json",
            "--out",
            name,
        ]
        result = CliRunner().invoke(app, [*command, *words])
        attempts = json.loads(result.stdout)["attempts"]
        return [(a["check"], a["threat"], a["state"], a["outcomes"], a["measurements"]) for a in attempts]

    first = numbers(str(tmp_path / "first"))
    assert sum(state == "assessed" for _, _, state, _, _ in first) == 2 * len(BY_NAME)
    assert numbers(str(tmp_path / "second")) == first
    for size in ("1", "7"):
        assert numbers(str(tmp_path / size), "--batch-size", size) == first
