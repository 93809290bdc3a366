"""The command line on a small linear model: what it answers, what it writes, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from vauban.audits import runner as audits_runner
from vauban.audits import store
from vauban.cli.app import app

MODEL = """
import torch
torch.manual_seed(0)
net = torch.nn.Linear(4, 2)
with torch.no_grad():
    net.weight.copy_(torch.tensor([[1.0, 1, 0, 0], [-1, -1, 0, 0]]))
    net.bias.copy_(torch.tensor([-1.0, 1.0]))
def broken(x):
    raise RuntimeError("the model fell over")
def make():
    return torch.nn.Linear(4, 2)
nan = torch.nn.Linear(4, 2)
torch.nn.init.constant_(nan.weight, float("nan"))
chatty = torch.nn.Sequential(net)
chatty.register_forward_hook(lambda *_: print("I PRINT"))
"""
QUICK = ["--threat", "linf:0.1", "--profile", "smoke", "--samples", "12"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and data, which is where commands are run."""
    rng = np.random.default_rng(0)
    x = rng.random((80, 4), dtype=np.float32)
    y = (x[:, 0] + x[:, 1] < 1).astype(np.int64)
    np.savez(tmp_path / "data.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    (tmp_path / "model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith("VAUBAN_")]:
        monkeypatch.delenv(name)
    return tmp_path


def call(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def audit(*words: str, target: str = "model.py:net", data: str = "data.npz") -> Any:
    return call("audit", target, "--data", data, *QUICK, *words)


def refused(result: Any, code: str, status: int = 2) -> str:
    """The message, after checking that there is one sentence and no traceback."""
    assert result.exit_code == status, result.output
    assert f"error[{code}]" in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return str(result.stderr)


def same(one: Any, two: Any) -> bool:
    return timeless(one) == timeless(two)


def timeless(value: Any) -> Any:
    """A report without times and ids."""
    if isinstance(value, dict):
        left_out = {"started", "finished", "seconds", "argv", "forward_seconds", "backward_seconds"}
        return {
            k: timeless(v) for k, v in value.items() if k not in left_out and not (k == "id" and "started" in value)
        }
    return [timeless(v) for v in value] if isinstance(value, list) else value


# What it answers -------------------------------------------------------------------------------------------------


def test_audit_writes_what_it_answers(place: Path) -> None:
    result = audit("--include", "evasion", "--out", "run", "--json", "--format", "html,sarif,junit,md")
    document = json.loads(result.stdout)
    assert document == json.loads((place / "run/report.json").read_text())
    assert result.exit_code == {"pass": 0, "fail": 1, "inconclusive": 3}[document["verdict"]["state"]]
    for name in ("report.html", "report.sarif", "junit.xml", "summary.md", "journal.sqlite"):
        assert (place / "run" / name).stat().st_size > 0
    assert document["run"]["config"]["samples"] == document["data"]["samples"] == 12
    assert all(a["reason"] for a in document["attempts"] if a["state"] != "assessed")
    assert any("leakage" in note for note in document["notes"])


def test_the_same_seed_gives_the_same_numbers_whatever_the_batch(place: Path) -> None:
    words = ("--include", "evasion", "--json", "--out")
    runs = [audit(*words, f"run{size}", *(["--batch-size", size] if size else [])) for size in ("", "1", "7")]
    first, *others = [json.loads(r.stdout)["attempts"] for r in runs]
    for other in others:
        assert [a["outcomes"] for a in first] == [a["outcomes"] for a in other]
        assert same([a["measurements"] for a in first], [a["measurements"] for a in other])
    again = json.loads(audit(*words, "again").stdout)["attempts"]
    assert same(first, again)


def test_json_stays_pure_whatever_the_model_prints(place: Path) -> None:
    result = audit("--include", "evasion.fgsm", "--json", target="model.py:chatty")
    json.loads(result.stdout)
    assert "I PRINT" in result.stderr


def test_one_attack_with_its_settings(place: Path) -> None:
    result = call("attack", "evasion.pgd", "model.py:net", "--data", "data.npz", *QUICK, "--set", "steps=3", "--json")
    attempts = json.loads(result.stdout)["attempts"]
    assert [a["check"] for a in attempts] == ["evasion.pgd"]
    assert str(attempts[0]["params"]["steps"]) == "3"


def test_the_command_of_a_finding_can_be_run(place: Path) -> None:
    import shlex

    log = json.loads(audit("--json", "--out", "run").stdout)
    assert log["findings"]
    for finding in log["findings"][:3]:
        program, *words = shlex.split(finding["reproduce"])
        assert program == "vauban"
        assert call(*words).exit_code in (0, 1)


def test_compare_gate_report(place: Path) -> None:
    for seed in ("0", "1"):
        audit("--include", "evasion.fgsm", "--out", f"run{seed}", "--seed", seed)
    comparison = json.loads(call("compare", "run0", "run1", "--json").stdout)
    assert {c["name"] for c in comparison["changes"]} >= {"evasion.robust_accuracy"}
    assert call("compare", "run0", "run0").exit_code == 0
    assert call("gate", "run0", "--baseline", "run0").exit_code == 0
    Path("vauban.yaml").write_text("gates: [{metric: robust_accuracy, min: 1.01}]\nfail_on: never\n")
    assert call("gate", "run0", "--config", "vauban.yaml").exit_code == 1
    Path("vauban.yaml").write_text("gates: [{metric: membership.auc, min: 0}]\nfail_on: never\n")
    assert call("gate", "run0", "--config", "vauban.yaml").exit_code == 3
    assert call("report", "run0", "--format", "md").exit_code == 0
    assert (place / "run0/summary.md").exists()


# Resume ----------------------------------------------------------------------------------------------------------


def test_a_limit_leaves_the_rest_open_and_more_time_goes_on(place: Path) -> None:
    short = json.loads(audit("--include", "evasion", "--out", "run", "--json", "--query-limit", "60").stdout)
    states = {a["state"] for a in short["attempts"]}
    assert "inconclusive" in states
    assert sum(a["cost"]["queries"] for a in short["attempts"]) <= 60
    whole = json.loads(audit("--include", "evasion", "--out", "run", "--json").stdout)
    fresh = json.loads(audit("--include", "evasion", "--out", "other", "--json").stdout)
    assert "inconclusive" not in {a["state"] for a in whole["attempts"]}
    assert same(whole["attempts"], fresh["attempts"])
    assert whole["run"]["id"] == short["run"]["id"]


def test_no_time_is_no_pass(place: Path) -> None:
    result = audit("--include", "evasion", "--out", "run", "--json", "--time-limit", "0.000001s")
    assert result.exit_code == 3
    assert {a["state"] for a in json.loads(result.stdout)["attempts"]} <= {"inconclusive", "skipped", "not_applicable"}


def test_ctrl_c_keeps_what_is_finished(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = audits_runner.execute, []

    def interrupted(check: Any, case: Any) -> Any:
        calls.append(check.id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(check, case)

    monkeypatch.setattr(audits_runner, "execute", interrupted)
    result = audit("--include", "evasion", "--out", "run")
    assert result.exit_code == 130
    assert "resume" in result.stderr
    assert not (place / "run/report.json").exists()
    first = list(calls)
    audit("--include", "evasion", "--out", "run")
    assert calls[3:][0] == first[2]
    assert not set(first[:2]) & set(calls[3:])


def test_a_full_disk_ends_in_a_sentence(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_whole", full)
    result = audit("--include", "evasion", "--out", "run")
    assert "disk" in refused(result, "VB-DISK", 4)
    monkeypatch.undo()


def test_kill_minus_nine_loses_at_most_the_unit_under_way(place: Path) -> None:
    words = ["audit", "model.py:net", "--data", "data.npz", *QUICK, "--include", "evasion"]
    command = [sys.executable, "-m", "vauban", *words, "--out", "killed"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    done = 0
    for line in process.stderr:
        done += line.startswith("[")
        if done == 3:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stderr.close()
    assert process.returncode == -signal.SIGKILL
    resumed = call(*words, "--out", "killed", "--json")
    kept = [line for line in resumed.stderr.splitlines() if "(kept)" in line]
    assert len(kept) >= 3
    whole = call(*words, "--out", "whole", "--json")
    assert "(kept)" not in whole.stderr
    assert same(json.loads(resumed.stdout), json.loads(whole.stdout))


# Bad input -------------------------------------------------------------------------------------------------------


def test_another_run_and_another_thing(place: Path) -> None:
    audit("--include", "evasion.fgsm", "--out", "run")
    before = (place / "run/report.json").read_bytes()
    assert "seed was 0, now 1" in refused(
        audit("--include", "evasion.fgsm", "--out", "run", "--seed", "1"), "VB-FOLDER"
    )
    assert (place / "run/report.json").read_bytes() == before
    (place / "mine").mkdir()
    (place / "mine/notes.txt").write_text("mine")
    refused(audit("--out", "mine"), "VB-FOLDER")
    assert [p.name for p in (place / "mine").iterdir()] == ["notes.txt"]
    refused(audit("--out", "model.py"), "VB-FOLDER")


def rows(**changes: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        x = np.random.default_rng(0).random((20, 4), dtype=np.float32)
        y = np.arange(20) % 2
        np.savez(path, **{"x_test": x, "y_test": y, **{k: v(x, y) for k, v in changes.items()}})

    return write


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (rows(x_test=lambda x, y: x[:0], y_test=lambda x, y: y[:0]), "VB-DATA"),
        (rows(x_test=lambda x, y: np.where(x > 0.9, np.nan, x)), "VB-DATA"),
        (rows(x_test=lambda x, y: np.where(x > 0.9, np.inf, x)), "VB-DATA"),
        (rows(y_test=lambda x, y: y + 5), "VB-DATA"),
        (rows(y_test=lambda x, y: y * 0), "VB-DATA"),
        (rows(y_test=lambda x, y: y[:7]), "VB-DATA"),
        (rows(y_test=lambda x, y: np.array(list("ab") * 10)), "VB-DATA"),
        (rows(x_test=lambda x, y: x[:, :3]), "VB-TARGET"),
        (rows(x_test=lambda x, y: x.astype(complex)), "VB-DATA"),
        (lambda path: path.write_bytes(b"PK\x03\x04 cut off"), "VB-CORRUPT"),
        (lambda path: path.write_bytes(b""), "VB-CORRUPT"),
        (lambda path: np.savez(path, x_test=np.array([object()]), y_test=np.array([0])), "VB-DATA"),
        (lambda path: None, "VB-NAME"),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # numpy leaves a damaged file open
def test_data_that_cannot_be_used(place: Path, make: Callable[[Path], Any], code: str) -> None:
    make(place / "bad.npz")
    refused(audit("--out", "run", data="bad.npz"), code)
    assert not (place / "run").exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--threat", "linf:0"], "VB-THREAT"),
        (["--threat", "linf:1e9"], "VB-THREAT"),
        (["--threat", "tokens:0.1"], "VB-THREAT"),
        (["--samples", "0"], "VB-OPTION"),
        (["--profile", "brief"], "VB-NAME"),
        (["--include", "evasion.pdg"], "VB-NAME"),
        (["--time-limit", "soon"], "VB-OPTION"),
        (["--fail-on", "red"], "VB-OPTION"),
        (["--executor", "ray"], "VB-EXTRA"),
        (["--classes", "7"], "VB-TARGET"),
        (["--bounds", "1,0"], "VB-OPTION"),
        (["--bounds", "0.4,0.6"], "VB-UNITS"),
        (["--format", "pdf"], "VB-OPTION"),
        (["--config", "nowhere.yaml"], "VB-NAME"),
    ],
)
def test_options_that_cannot_be_used(place: Path, words: list[str], code: str) -> None:
    refused(audit("--out", "run", *words), code)
    assert not (place / "run").exists()


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("model.py:broken", "VB-TARGET"),
        ("model.py:nan", "VB-TARGET"),
        ("model.py:absent", "VB-NAME"),
        ("demo:nothing", "VB-NAME"),
        ("nowhere.pt2", "VB-NAME"),
        ("data.npz", "VB-NAME"),
        ("thing.pkl", "VB-UNTRUSTED"),
        ("http://localhost:1", "VB-ACCESS"),
    ],
)
def test_models_that_cannot_be_used(place: Path, target: str, code: str) -> None:
    import pickle

    (place / "thing.pkl").write_bytes(pickle.dumps({"a": 1}))
    refused(audit("--out", "run", target=target), code)
    assert not (place / "run").exists()


def test_a_missing_extra_names_the_command(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skops", None)
    monkeypatch.setitem(sys.modules, "skops.io", None)
    (place / "model.skops").write_bytes(b"PK\x03\x04")
    assert "pip install 'vauban[skops]'" in refused(audit(target="model.skops"), "VB-EXTRA")


def test_errors_under_json_are_json(place: Path) -> None:
    result = audit("--json", "--threat", "linf:0")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["code"] == "VB-THREAT"


def test_an_unforeseen_error_is_one_sentence(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fall(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("nought")

    monkeypatch.setattr(audits_runner, "preflight", fall)
    assert "--debug" in refused(audit(), "VB-INTERNAL", 4)
    kept = refused(audit("--debug"), "VB-INTERNAL", 4).split("traceback in ")[1].split()[0]
    assert "ZeroDivisionError" in Path(kept).read_text()
    Path(kept).unlink()


def test_transfer_is_assessed_from_data_and_answers_alone(place: Path) -> None:
    result = audit("--include", "evasion.transfer", "--json")
    (attempt,) = [a for a in json.loads(result.stdout)["attempts"] if a["check"] == "evasion.transfer"]
    assert attempt["state"] == "assessed"
    assert attempt["cost"]["gradients"] == 0
    facts = attempt["facts"]
    right = sum(letter != "w" for letter in attempt["outcomes"])
    assert facts["answers"] == right * (40 - 2)
    assert facts["substitutes"] == 2
    assert sum(facts["carried_over"]) == attempt["outcomes"].count("b")
    # the clean look at every row, the answers learnt from, and the candidates of whoever was not broken by the first
    asked = right + (right - facts["carried_over"][0])
    assert attempt["cost"]["queries"] == len(attempt["outcomes"]) + facts["answers"] + asked
