"""vauban.explain and `vauban explain TARGET`: what is explained, what is refused, what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import vauban
from vauban.cli.app import app
from vauban.engine.attributing import attribute
from vauban.parts.attribution import IntegratedGradients
from vauban.schema.errors import BadData, BadOption, BadThreat, NotOffered, RunFolder, UnknownName

WEIGHT = torch.tensor([[2.0, -1.0, 0.0, 0.5]])
NAMES = ("age", "debt", "noise", "income")


def rows(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).uniform(0, 1, (count, 4)).astype("float32")
    return x, (x @ WEIGHT.numpy()[0] > 0.6).astype(int)


def table() -> vauban.Data:
    x, y = rows()
    return vauban.Data(x[:20], y[:20], x[20:], y[20:], feature_names=NAMES)


def linear(outputs: int = 1) -> nn.Module:
    """log-odds 8 (w x - 0.6): as one logit, or as two."""
    net = nn.Linear(4, outputs)
    with torch.no_grad():
        net.weight.zero_()
        net.bias.zero_()
        net.weight[-1] = 8 * WEIGHT[0]
        net.bias[-1] = -4.8
    return net


def pictures() -> tuple[nn.Module, vauban.Data]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    x = np.random.default_rng(1).uniform(0, 1, (12, 1, 8, 8)).astype("float32")
    y = net(torch.from_numpy(x)).argmax(1).numpy()
    y[0] = (y[0] + 1) % 3
    return net, vauban.Data(None, None, x, y)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
def test_a_linear_model_of_two_classes(method: str, outputs: int) -> None:
    """Both classes rest on the same features with opposite signs, whichever logit moves; the baseline is the mean row."""
    data = table()
    found = vauban.explain(
        vauban.target(linear(outputs), bounds=(0, 1), classes=2), data, rows=range(20), method=method
    )
    side = torch.where(data.x_test @ WEIGHT[0] > 0.6, 8.0, -8.0)[:, None]
    wanted = side * WEIGHT * (data.x_test - data.x_train.mean(0))
    np.testing.assert_allclose(found.attribution, wanted.numpy(), atol=2e-5)
    assert found.told.rows[3].largest[0].name in ("age", "debt")
    assert found.told.baseline == "mean"
    assert found.changed is None is found.difference


def test_one_class_for_all_rows() -> None:
    data, target = table(), vauban.target(linear(2), bounds=(0, 1), classes=2)
    one = vauban.explain(target, data, rows=(0, 1, 2), about=1, baseline="zero")
    other = vauban.explain(target, data, rows=(0, 1, 2), about=0, baseline="zero")
    np.testing.assert_allclose(one.attribution, (8 * WEIGHT * data.x_test[:3]).numpy(), atol=1e-5)
    np.testing.assert_allclose(one.attribution, -other.attribution, atol=1e-6)
    assert [row.clean.explained for row in one.told.rows] == ["1"] * 3
    assert [row.clean.label for row in one.told.rows] == [str(int(v)) for v in data.x_test[:3] @ WEIGHT[0] > 0.6]
    with pytest.raises(BadOption, match="0 to 1"):
        vauban.explain(target, data, about=2)


@pytest.mark.parametrize("method", ["integrated_gradients", "smooth_grad", "occlusion", "grad_cam"])
def test_a_row_is_explained_alike_in_any_company(method: str) -> None:
    net, data = pictures()
    before = {k: v.clone() for k, v in net.train().state_dict().items()}
    target = vauban.target(net, bounds=(0, 1), classes=3)
    together = vauban.explain(target, data, rows=(3, 7, 1), method=method, threat="linf:0.2", seed=4)
    alone = vauban.explain(target, data, rows=7, method=method, threat="linf:0.2", seed=4)
    np.testing.assert_array_equal(together.attribution[1], alone.attribution[0])
    assert together.attribution_changed is not None
    assert alone.attribution_changed is not None
    np.testing.assert_array_equal(together.attribution_changed[1], alone.attribution_changed[0])
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(part._forward_hooks for part in net.modules())


def test_attacked_rows_and_the_difference() -> None:
    net, data = pictures()
    found = vauban.explain(
        vauban.target(net, bounds=(0, 1), classes=3), data, rows=(0, 1, 2), attack="pgd", threat="linf:0.2"
    )
    first, *others = found.told.rows
    assert "wrong already" in first.status
    assert first.attacked is None
    assert found.changed is not None
    assert found.difference is not None
    assert not found.difference[0].any()
    broken = [i for i, row in enumerate(found.told.rows) if row.status == "broken"]
    assert broken, [row.status for row in others]
    for i in broken:
        row = found.told.rows[i]
        assert row.attacked is not None
        assert row.attacked.label != row.clean.label
        assert len(row.exhibit.pictures) == 6
        assert 0 < np.abs(found.changed[i] - found.x[i]).max() <= 0.2 + 1e-6
        assert found.difference[i].any()
        assert row.clean.gap is not None
        assert row.clean.gap < 0.05 * np.abs(found.attribution[i]).sum()


def scores(x: np.ndarray) -> np.ndarray:
    one = 1 / (1 + np.exp(-(8 * x @ WEIGHT.numpy()[0] - 4.8)))
    return np.stack([1 - one, one], 1)


@pytest.mark.parametrize("asked", [None, "integrated_gradients"])
def test_without_gradients_it_is_occluded_and_says_so(asked: str | None) -> None:
    data = table()
    found = vauban.explain(vauban.target(scores, bounds=(0, 1), classes=2), data, rows=(0, 1), method=asked)
    assert found.told.method == "occlusion"
    assert "no gradients" in found.told.notes[0]
    full = scores(data.x_test[:2].numpy())
    picked = full.argmax(1)
    for feature in range(4):
        covered = data.x_test[:2].clone()
        covered[:, feature] = data.x_train[:, feature].mean()
        fall = (full - scores(covered.numpy()))[[0, 1], picked]
        np.testing.assert_allclose(found.attribution[:, feature], fall, atol=1e-5)


def test_bare_labels_are_explained_by_whether_they_stay() -> None:
    target = vauban.target(lambda x: (x[:, 0] > 0.5).astype(int), bounds=(0, 1), classes=2)
    x, _ = rows()
    found = vauban.explain(target, (x, (x[:, 0] > 0.5).astype(int)), rows=range(40), baseline="zero")
    np.testing.assert_array_equal(found.attribution[:, 1:], 0)
    np.testing.assert_array_equal(found.attribution[:, 0], x[:, 0] > 0.5)


class Steps(nn.Module):
    """A model whose gradients say nothing: its inputs are rounded first."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(torch.round(x * 4) / 4)
        return out


def test_gradients_that_say_nothing_are_noticed() -> None:
    target = vauban.target(Steps(), bounds=(0, 1), classes=2)
    blocked = vauban.explain(target, table(), rows=(0, 1, 2), baseline="zero")
    assert not blocked.attribution.any()
    assert any("by up to 100 %" in note for note in blocked.told.notes)
    assert vauban.explain(target, table(), rows=(0, 1, 2), method="occlusion", baseline="zero").attribution.any()


class Hidden:
    """A target whose own gradients say nothing, with a version that lets them through."""

    def __init__(self) -> None:
        self.inner = vauban.target(Steps(), bounds=(0, 1), classes=2, kind="tabular")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def softened(self) -> Any:
        return vauban.target(linear(), bounds=(0, 1), classes=2)


def test_of_a_model_that_hides_its_gradients_the_softened_version_is_explained() -> None:
    data, hidden = table(), Hidden()
    found = attribute(
        hidden,  # type: ignore[arg-type]
        data.x_test,
        IntegratedGradients(),
        torch.zeros(4),
        domain=hidden.inner.domain,
        ids=data.ids,
        about=1,
    )
    assert torch.allclose(found.x, 8 * WEIGHT * data.x_test, atol=1e-5)


def test_a_regression_is_explained_by_its_value() -> None:
    x, _ = rows()
    y = (x @ WEIGHT.numpy()[0]).astype("float64")
    net = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(WEIGHT)
    found = vauban.explain(vauban.target(net, task="regression"), (x, y), rows=(0, 5), baseline="zero")
    np.testing.assert_allclose(found.attribution, WEIGHT.numpy() * x[[0, 5]], atol=1e-5)
    attacked = vauban.explain(vauban.target(net, task="regression"), (x, y), rows=3, threat="linf:0.3", baseline="zero")
    assert attacked.told.rows[0].status == "broken"
    assert attacked.changed is not None
    moved = (attacked.changed - x[[3]]) @ WEIGHT.numpy()[0]
    assert abs(float(moved[0])) > 0.5 * y.std()
    with pytest.raises(BadOption, match="no classes"):
        vauban.explain(vauban.target(net, task="regression"), (x, y), about=1)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"rows": 20}, BadData, "numbered from 0 to 19"),
    ({"rows": -1}, BadData, "no test row -1"),
    ({"rows": ()}, BadOption, "No rows"),
    ({"method": "lime"}, UnknownName, "integrated_gradients, smooth_grad, occlusion, grad_cam"),
    ({"method": "grad_cam"}, NotOffered, "works on image data, and this is tabular: choose integrated_gradients"),
    ({"baseline": "blur"}, UnknownName, "zero, low, mean"),
    ({"steps": 0}, BadOption, "at least 1"),
    ({"stpes": 3}, BadOption, "did you mean steps"),
    ({"attack": "leakage.lira"}, BadOption, "does not move inputs"),
    ({"attack": "nonsense"}, UnknownName, "no attack"),
    ({"threat": "linf:7"}, BadThreat, "smaller radius"),
    ({"attack": "evasion.patch", "threat": "linf:0.1"}, NotOffered, "cannot be made here"),
]


@pytest.mark.parametrize(("how", "error", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_what_cannot_be_done_is_said(how: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        vauban.explain(vauban.target(linear(), bounds=(0, 1), classes=2), table(), **how)


def test_grad_cam_of_a_picture_model_without_convolution() -> None:
    _, data = pictures()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(NotOffered, match="shows none: choose integrated_gradients"):
        vauban.explain(vauban.target(flat, bounds=(0, 1), classes=3), data, method="grad_cam")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    target = vauban.target(linear(), bounds=(0, 1), classes=2)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    for name in ("file", "full"):
        with pytest.raises(RunFolder, match=name):
            vauban.explain(target, table(), out=tmp_path / name)
    assert (tmp_path / "file").read_text() == (tmp_path / "full/mine").read_text() == "mine"
    found = vauban.explain(target, table(), rows=(2, 1), threat="linf:0.3", out=tmp_path / "new")
    kept = np.load(tmp_path / "new/explanation.npz")
    assert sorted(kept) == ["attribution", "attribution_changed", "changed", "rows", "x"]
    np.testing.assert_array_equal(kept["attribution"], found.attribution)
    assert kept["rows"].tolist() == [2, 1]
    assert json.loads((tmp_path / "new/explanation.json").read_text()) == found.told.model_dump(mode="json")
    assert "<svg" in (tmp_path / "new/explanation.html").read_text()


def test_the_command_line(tmp_path: Path) -> None:
    def call(*words: str) -> Any:
        return CliRunner().invoke(app, ["explain", "demo:digits-softmax", "--data", "demo:digits", *words])

    out = str(tmp_path / "out")
    told = call(
        "--input",
        "3,0",
        "--threat",
        "linf:0.3",
        "--set",
        "steps=20",
        "--method",
        "integrated_gradients",
        "--out",
        out,
        "--json",
    )
    assert told.exit_code == 0, told.stderr
    document = json.loads(told.stdout)
    assert [row["row"] for row in document["rows"]] == [3, 0]
    assert document["settings"]["steps"] == 20
    assert (document["attack"], document["threat"]) == ("evasion.pgd", "linf:0.3")
    assert (tmp_path / "out/explanation.html").exists()
    for words, said in (
        (["--method", "occlusion"], "--input 0,3"),
        (["--input", "x"], "--input"),
        (["--input", "0", "--set", "steps=3"], "name it"),
        (["--input", "0", "--threat", "linf:0.1", "--threat", "l2:1"], "2 threats"),
        (["--input", "0", "--out", out], "left as it was"),
    ):
        refused = call(*words)
        assert refused.exit_code == 2
        assert said in refused.stderr
    assert CliRunner().invoke(app, ["explain", "evasion.pgd"]).exit_code == 0
