"""The verbs that attack nothing, and what `import vauban` loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from vauban.cli.app import app
from vauban.cli.catalogue import known_ids

VERBS = [
    "audit",
    "attack",
    "harden",
    "demo",
    "compare",
    "gate",
    "report",
    "seal",
    "verify",
    "list",
    "explain",
    "inspect",
    "init",
    "doctor",
]  # DESIGN's list


def call(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def loaded(code: str) -> list[str]:
    """Which of the heavy packages a piece of Python loads."""
    heavy = ("torch", "numpy", "pydantic", "sklearn", "matplotlib", "vauban.api")
    tail = f"; import sys; print([m for m in {heavy!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stderr.splitlines()[-1].replace("'", '"'))
    return found


def test_import_loads_nothing_heavy() -> None:
    assert loaded("import vauban; dir(vauban); vauban.__version__") == []


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['vauban', '--help']\nfrom vauban.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    assert loaded(code + "0") == []


def test_the_python_face() -> None:
    import vauban

    assert all(getattr(vauban, name) is not None for name in vauban.__all__)
    with pytest.raises(AttributeError):
        vauban.nothing  # noqa: B018


def test_the_verbs_are_those_of_the_contract() -> None:
    assert sorted(c.name or "" for c in app.registered_commands) == sorted(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_json_and_helps(verb: str) -> None:
    result = call(verb, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_usage_errors_end_in_two() -> None:
    assert call("audit", "--nonsense").exit_code == 2
    assert call("scan").exit_code == 2


@pytest.mark.parametrize("name", known_ids())
def test_everything_has_a_page(name: str) -> None:
    page = json.loads(call("explain", name, "--json").stdout)
    assert page["id"] == name
    assert page["name"]
    assert len(call("explain", name).stdout) > 60


def test_explain_knows_the_neighbours() -> None:
    result = call("explain", "evasion.pgdd")
    assert result.exit_code == 2
    assert "did you mean evasion.pgd" in result.stderr


def test_list() -> None:
    rows = json.loads(call("list", "--json").stdout)
    assert {r["id"] for r in rows["attacks"]} >= {"evasion.apgd", "tampering.bit_flip"}
    assert set(json.loads(call("list", "defences", "--json").stdout)) == {"defences"}
    assert call("list", "nonsense").exit_code == 2


def test_init_never_overwrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("init").exit_code == 0
    (tmp_path / "vauban.yaml").write_text("seed: 7\n")
    assert call("init").exit_code == 2
    assert (tmp_path / "vauban.yaml").read_text() == "seed: 7\n"
    assert call("init", str(tmp_path / "absent/vauban.yaml")).exit_code == 2


def test_doctor() -> None:
    document = json.loads(call("doctor", "--json").stdout)
    assert document["broken"] == {}
    assert document["versions"]["torch"]


def test_inspect_attacks_nothing_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text("import torch\nnet = torch.nn.Linear(10, 1)\n")
    result = call("inspect", "model.py:net", "--data", "demo:diabetes", "--profile", "smoke", "--json")
    document = json.loads(result.stdout)
    assert document["task"] == "regression"
    assert document["cost"]["queries"] > 0
    assert {row["state"] for row in document["plan"]} >= {"planned", "not_applicable"}
    assert [p.name for p in tmp_path.iterdir() if p.name != "__pycache__"] == ["model.py"]


def test_seal_and_verify(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.arange(6.0)}, path)
    assert call("verify", str(path)).exit_code == 2
    assert call("seal", str(path)).exit_code == 0
    assert call("verify", str(path)).exit_code == 0
    weights = load_file(path)["w"].clone()
    weights[4] = -4.0  # one bit: the sign
    save_file({"w": weights}, path)
    result = call("verify", str(path), "--json")
    assert result.exit_code == 1
    changes = json.loads(result.stdout)["changes"]
    assert [(c["tensor"], c["index"], c["bits"]) for c in changes] == [("w", [4], [31])]


@pytest.mark.parametrize("verb", ["compare", "gate", "report"])
def test_no_run(verb: str, tmp_path: Path) -> None:
    words = [str(tmp_path)] * (2 if verb == "compare" else 1)
    assert call(verb, *words).exit_code == 2
    (tmp_path / "report.json").write_text("{}")
    result = call(verb, *words)
    assert "VB-CORRUPT" in result.stderr
    (tmp_path / "report.json").unlink()
    (tmp_path / "journal.sqlite").write_text("")
    assert "interrupted" in call(verb, *words).stderr
