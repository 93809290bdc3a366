"""A hardened model comes back in the format that it came in, and a second audit of it says the same."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import vauban
from vauban.core.data import Data
from vauban.schema.errors import NotOffered
from vauban.schema.log import AuditLog
from vauban.targets.load import load_target
from vauban.targets.skops import written

HOW: dict[str, Any] = {
    "include": ["evasion.fgsm", "evasion.square"],
    "profile": "smoke",
    "samples": 12,
    "exclude": ["evasion.cascade"],
}


def table(classes: int = 2) -> Data:
    g = np.random.default_rng(0)
    x = g.uniform(0, 1, (160, 6)).astype(np.float32)
    y = np.digitize(x[:, 0] + 0.5 * x[:, 1] + 0.1 * g.normal(size=160), np.linspace(0.5, 1.0, classes + 1)[1:-1])
    return Data(x[:100], y[:100], x[100:], y[100:], id="table")


def saved(estimator: Any, data: Data, path: Path) -> Path:
    pytest.importorskip("skops")
    assert data.x_train is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator.fit(data.x_train.double().numpy(), data.y_train.numpy())
    path.write_bytes(written(estimator)["model.skops"])
    return path


def figures(log: AuditLog) -> dict[str, Any]:
    """All that was measured, but for what was spent on it in seconds."""
    return {
        f"{a.check} {a.threat}": (a.outcomes, [(m.name, m.value, m.low, m.high) for m in a.measurements])
        for a in log.attempts
        if a.state == "assessed"
    }


def confirmed(path: Path, data: Data, defence: str, out: Path, threat: str, name: str, **settings: Any) -> Any:
    """Harden the model in `path`; audit what lies in the run folder by itself; the numbers must be the same."""
    after = vauban.harden(str(path), data, defence=defence, threat=threat, out=out, settings={defence: settings}, **HOW)
    facts = json.loads((out / "model.json").read_text())
    assert name in facts["how_to_load"]
    assert (out / "model.safetensors").exists()
    second = load_target(out / name)
    assert second.sha256() == facts["sha256"] == after.log.target.sha256
    log = vauban.audit(second, data, threats=[threat], **{**HOW, "include": _made(after.log)})
    assert figures(log) == figures(after.log)
    assert figures(log)
    rows = after.comparison.changes
    assert rows
    assert all(_value(log, change.check, change.name) == change.after for change in rows)
    return after, second


def _made(log: AuditLog) -> list[str]:
    return sorted({a.check for a in log.attempts if a.state == "assessed"})


def _value(log: AuditLog, check: str, name: str) -> float | None:
    return next(m.value for a in log.attempts if a.check == check for m in a.measurements if m.name == name)


MLP = MLPClassifier((8,), max_iter=60, random_state=0, learning_rate_init=0.02)


@pytest.mark.parametrize(
    ("estimator", "defence", "settings"),
    [
        (make_pipeline(StandardScaler(), MLP), "train.trades", {"epochs": 2, "steps": 2}),
        (LogisticRegression(), "train.robust_linear", {}),
        (GradientBoostingClassifier(n_estimators=5), "train.robust_trees", {"trees": 5, "depth": 2}),
    ],
    ids=["mlp", "linear", "trees"],
)
def test_an_estimator_comes_back_as_an_estimator(estimator: Any, defence: str, settings: Any, tmp_path: Path) -> None:
    data = table()
    path = saved(estimator, data, tmp_path / "given.skops")
    after, second = confirmed(path, data, defence, tmp_path / "run", "linf:0.05", "model.skops", **settings)
    x = data.x_test
    assert torch.equal(second.forward(x).values, after.target.forward(x).values)
    assert not torch.equal(second.forward(x).values, load_target(path).forward(x).values)
    again = vauban.harden(
        str(path), data, defence=defence, threat="linf:0.05", out=tmp_path / "run", settings={defence: settings}, **HOW
    )
    assert again.target.sha256() == after.target.sha256()
    assert again.target.offers == after.target.offers


def test_an_exported_program_comes_back_as_one(tmp_path: Path) -> None:
    data, path = table(3), tmp_path / "given.pt2"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    batch = torch.export.Dim("batch", min=1)
    torch.export.save(torch.export.export(net, (torch.zeros(2, 6),), dynamic_shapes=({0: batch},)), path)
    confirmed(path, data, "train.pgd", tmp_path / "run", "linf:0.05", "model.pt2", epochs=2, steps=2)


def test_what_the_format_does_not_hold_comes_back_as_weights(tmp_path: Path) -> None:
    data = table()
    path = saved(make_pipeline(StandardScaler(), MLP), data, tmp_path / "given.skops")
    vauban.harden(str(path), data, defence="certify.smoothing", threat="linf:0.05", out=tmp_path / "run",
                  settings={"certify.smoothing": {"draws": 2}}, **HOW)  # fmt: skip
    assert not (tmp_path / "run" / "model.skops").exists()
    assert "not laid out like" in json.loads((tmp_path / "run" / "model.json").read_text())["how_to_load"]


def test_a_black_box_is_told_which_defences_there_are(tmp_path: Path) -> None:
    data = table()
    trees = saved(GradientBoostingClassifier(n_estimators=2), data, tmp_path / "t.skops")
    with pytest.raises(NotOffered, match=r"needs weights_read.*use one that can be used: train\.robust_trees\.$"):
        vauban.harden(str(trees), data, defence="train.trades", threat="linf:0.1", out=tmp_path / "run", **HOW)
    with pytest.raises(NotOffered, match=r"is made for linear models, and t\.skops is none: use one"):
        vauban.harden(str(trees), data, defence="train.robust_linear", threat="linf:0.1", **HOW)
    neighbours = KNeighborsClassifier().fit(data.x_train.numpy(), data.y_train.numpy())
    with pytest.raises(NotOffered, match="none can be used on it"):
        vauban.harden(neighbours, data, defence="train.pgd", threat="linf:0.1", **HOW)
    net = saved(MLP, data, tmp_path / "n.skops")
    with pytest.raises(
        NotOffered, match=r"and n\.skops is none: use one that can be used: .*train\.pgd, .*train\.trades"
    ):
        vauban.harden(str(net), data, defence="train.robust_trees", threat="linf:0.1", **HOW)
    assert not (tmp_path / "run").exists()


def german(folder: Path) -> Data:
    """German credit: numbers scaled to 0 to 1, codes as columns of 0 and 1; a fifth of the rows for the test."""
    with (folder / "german_credit" / "german.data").open() as file:
        rows = list(csv.reader(file, delimiter=" "))
    columns = []
    for cells in list(zip(*rows, strict=True))[:20]:
        if cells[0].startswith("A"):
            columns += [[float(cell == code) for cell in cells] for code in sorted(set(cells))]
        else:
            numbers = np.array(cells, dtype=float)
            columns.append(((numbers - numbers.min()) / np.ptp(numbers)).tolist())
    x, y = np.array(columns, dtype=np.float32).T, np.array([int(row[20]) - 1 for row in rows])
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    return Data(x[:800], y[:800], x[800:], y[800:], id="german")


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "defence", "settings"),
    [
        (
            make_pipeline(StandardScaler(), MLPClassifier((32,), max_iter=100, random_state=0)),
            "train.trades",
            {"epochs": 20},
        ),
        (make_pipeline(StandardScaler(), LogisticRegression()), "train.robust_linear", {}),
        (GradientBoostingClassifier(random_state=0), "train.robust_trees", {"trees": 50, "depth": 3}),
    ],
    ids=["mlp", "linear", "trees"],
)
def test_credit_is_hardened(
    estimator: Any, defence: str, settings: Any, data_folder: Path, tmp_path: Path
) -> None:  # fmt: skip
    data = german(data_folder)
    path = saved(estimator, data, tmp_path / "given.skops")
    after, _ = confirmed(path, data, defence, tmp_path / "run", "linf:0.1", "model.skops", **settings)
    told = {change.name: change for change in after.comparison.changes if change.check == "evasion.square"}
    change = told["evasion.robust_accuracy"]
    assert change.after > change.before
    assert after.comparison.facts["clean_accuracy_after"] > 0.6


def test_tables_from_files_work_by_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from vauban.cli.app import app

    data = table()
    saved(make_pipeline(StandardScaler(), MLP), data, tmp_path / "m.skops")
    np.savez(tmp_path / "d.npz", x_train=data.x_train, y_train=data.y_train, x_test=data.x_test, y_test=data.y_test)
    monkeypatch.chdir(tmp_path)
    words = ["--data", "d.npz", "--threat", "linf:0.05", "--include", "evasion.square", "--profile", "smoke"]
    made = CliRunner().invoke(
        app, ["harden", "m.skops", "--with", "train.trades", "--set", "epochs=2", *words, "--out", "run"]
    )
    assert made.exit_code in (0, 1), made.output
    again = CliRunner().invoke(app, ["audit", "run/model.skops", *words, "--out", "second"])
    assert again.exit_code in (0, 1), again.output
    first, second = (json.loads(Path(name, "report.json").read_text()) for name in ("run", "second"))
    square = [next(a for a in log["attempts"] if a["check"] == "evasion.square") for log in (first, second)]
    assert square[0]["measurements"] == square[1]["measurements"]
    assert first["target"]["sha256"] == second["target"]["sha256"]
