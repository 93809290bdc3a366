"""Audits in rooms that are no norm: the attacks pick themselves, and the words fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from vauban.audits.plan import Request
from vauban.audits.runner import prepare
from vauban.cli.app import app
from vauban.data.load import load_data
from vauban.targets.load import load_target

QUICK = ("--include", "evasion", "--profile", "smoke", "--samples", "24")


def call(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def audited(threat: str, out: Path, *more: str) -> dict[str, Any]:
    words = ("audit", "demo:digits-cnn", "--data", "demo:digits", "--threat", threat, *QUICK, "--out", str(out), *more)
    result = call(*words)
    assert result.exit_code == 1, result.output
    found: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    ("threat", "attacks", "unit"),
    [
        ("rotation:30", {"evasion.grid"}, "degrees"),
        ("flow:0.5", {"evasion.apgd"}, "pixels"),
        ("patch:0.1", {"evasion.patch", "evasion.universal_patch"}, "share of the area"),
        ("corruption:3", {"evasion.grid"}, "severity"),
    ],
)
def test_an_audit_picks_the_attacks_and_finds_something(
    threat: str, attacks: set[str], unit: str, tmp_path: Path
) -> None:
    log = audited(threat, tmp_path / "run")
    made = {a["check"]: a for a in log["attempts"] if a["state"] == "assessed"}
    assert set(made) == {"evasion.noise", *attacks}
    assert {a["state"] for a in log["attempts"] if a["check"] not in made} == {"not_applicable"}
    strongest = max(made.values(), key=lambda a: a["outcomes"].count("b"))
    assert strongest["check"] in attacks
    distance = next(m for m in strongest["measurements"] if m["name"] == "evasion.median_distance")
    assert distance["unit"] == unit
    assert 0 < distance["value"] <= float(threat.partition(":")[2]) * (1 + 1e-6)
    robust = next(f for f in log["findings"] if f["rule"] == "evasion.not_robust")
    assert f"within {threat} ({unit})" in robust["claim"]
    assert f"--threat {threat}" in robust["reproduce"]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert f"{threat} ({unit})" in page
    kept = load_file(tmp_path / "run" / strongest["facts"]["samples"])
    assert kept["x"].shape[1:] == (1, 8, 8)
    assert len(kept["x"]) == strongest["outcomes"].count("b")
    assert strongest["exhibits"]


def test_a_grid_tells_what_broke_most_and_draws_accuracy_against_degrees(tmp_path: Path) -> None:
    log = audited("rigid:20", tmp_path / "run")
    grid = next(a for a in log["attempts"] if a["check"] == "evasion.grid")
    assert sum(grid["facts"]["broken_first_by"].values()) == grid["outcomes"].count("b") > 0
    curve = next(c for c in grid["curves"] if c["id"] == "security_curve")
    assert curve["x_label"] == "radius (degrees)"
    assert curve["series"][0]["y"] == sorted(curve["series"][0]["y"], reverse=True)


def test_a_curve_ends_where_a_knob_does(tmp_path: Path) -> None:
    log = audited("corruption:4", tmp_path / "run")
    grid = next(a for a in log["attempts"] if a["check"] == "evasion.grid")
    curve = next(c for c in grid["curves"] if c["id"] == "security_curve")
    assert curve["series"][0]["x"] == [0.0, 2.0, 4.0]


def refused(*words: str) -> str:
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert "error[VB-THREAT]" in result.stderr
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


def test_rows_that_are_no_pictures_have_none_of_these_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.random((40, 4), dtype=np.float32)
    y = (x[:, 0] < 0.5).astype(np.int64)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (tmp_path / "model.py").write_text("import torch\nnet = torch.nn.Linear(4, 2)\n")
    monkeypatch.chdir(tmp_path)
    said = refused("audit", "model.py:net", "--data", "data.npz", "--threat", "rotation:30", *QUICK)
    assert "no space 'rotation' for tabular data: use one of linf, l2, l1, l0" in said


@pytest.mark.parametrize(
    ("threat", "words"),
    [
        ("hue:30", "three channels, and these have 1: use brightness, contrast or gamma"),
        ("rotation:400", "goes further than rotation can (rotation:180): give a smaller radius, in degrees"),
        ("patch:1.5", "more than the whole range"),
        ("spin:3", "There is no space 'spin' for image data"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(threat: str, words: str) -> None:
    assert words in refused("audit", "demo:digits-cnn", "--data", "demo:digits", "--threat", threat, *QUICK)


def test_deep_audits_of_pictures_turn_and_corrupt_them_too() -> None:
    plain = Request(
        target=load_target("demo:digits-cnn"), data=load_data("demo:digits"), include=("evasion",), samples=8
    )
    for profile, more in (("standard", set()), ("deep", {"rigid:30", "corruption:3"})):
        plan = prepare(replace(plain, profile=profile)).plan
        made = {(u.check.threat.id, u.check.id) for u in plan.todo}
        assert {threat for threat, _ in made} == {"linf:0.1", "l2:1"} | more
        assert all((threat, "evasion.grid") in made for threat in more)
