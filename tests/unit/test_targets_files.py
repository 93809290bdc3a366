"""Models from files, names and functions; hostile, damaged and unfitting ones."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from torch import nn

from vauban.core.target import Domain
from vauban.schema.access import Access
from vauban.schema.errors import (
    BadOption,
    BadTarget,
    CorruptFile,
    NotOffered,
    UnknownName,
    UntrustedFile,
    UsageError,
)
from vauban.targets import load
from vauban.targets.callable import CallableTarget
from vauban.targets.load import Maker, load_target, target

FACTORY = """
from torch import nn
def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
def wrong(): return 5
def failing(): raise OSError("no weights")
model = make().train()
"""


def make() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return make()


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "factory.py").write_text(FACTORY)
    return f"{tmp_path / 'factory.py'}:make"


X = torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("m.pt", lambda m, p: torch.save(m.state_dict(), p)),
        ("m.pth", lambda m, p: torch.save({"state_dict": m.state_dict(), "epoch": 3}, p)),
        ("nested.pt", lambda m, p: torch.save({"model": m.state_dict()}, p)),
        ("old.pt", lambda m, p: torch.save(m.state_dict(), p, _use_new_zipfile_serialization=False)),
        ("parallel.pt", lambda m, p: torch.save({f"module.{k}": v for k, v in m.state_dict().items()}, p)),
        ("m.safetensors", lambda m, p: save_file(m.state_dict(), p)),
    ],
)
def test_weights_with_a_factory(
    name: str, save: Callable[[nn.Module, Path], None], module: nn.Module, factory: str, tmp_path: Path
) -> None:
    save(module, tmp_path / name)
    found = load_target(tmp_path / name, factory=factory, bounds=(0, 1), classes=3)
    assert torch.equal(found.forward(X).values, module.eval()(X))
    assert found.domain == Domain(classes=3, low=0.0, high=1.0)
    assert found.id == name
    assert Access.TRAINING in found.offers


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.pkl", "m.pickle", "m.joblib", "old.pt"])
def test_pickles_are_refused_and_never_run(name: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / name
    if name in ("m.pt", "m.pth"):
        torch.save({"state_dict": Trap(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(UntrustedFile, match="can run code"):
        load_target(path, factory=make)
    assert not mark.exists()


def test_a_whole_module_needs_trust(module: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "whole.pt"
    torch.save(module, path)
    with pytest.raises(UntrustedFile, match=r"torch\.nn\.modules"):
        load_target(path)
    assert torch.equal(load_target(path, trust_pickle=True).forward(X).values, module(X))


def test_a_trusted_estimator(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(30, 2))
    estimator = LogisticRegression().fit(x, (x[:, 0] > 0).astype(int))
    joblib.dump(estimator, tmp_path / "m.joblib")
    found = load_target(tmp_path / "m.joblib", trust_pickle=True)
    np.testing.assert_array_equal(found.forward(torch.from_numpy(x)).labels, estimator.predict(x))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ".pt2", ".skops"])
@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("damage", ["foreign", "random", "zip", "truncated"])
def test_damaged_files(suffix: str, trust: bool, damage: str, module: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    if damage == "foreign":
        path.write_bytes(b"<html>not found</html>" * 50)
    elif damage == "random":
        path.write_bytes(np.random.default_rng(0).bytes(3000))
    elif damage == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.md", "hello")
    else:
        save(suffix, module, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CorruptFile, match="damaged or something else"):
        load_target(path, factory=make, trust_pickle=trust)


def save(suffix: str, module: nn.Module, path: Path) -> None:
    if suffix == ".safetensors":
        save_file(module.state_dict(), path)
    elif suffix == ".pt2":
        torch.export.save(torch.export.export(module.eval(), (X,)), path)
    elif suffix == ".skops":
        skops = pytest.importorskip("skops.io")
        skops.dump(LogisticRegression().fit([[0.0], [1.0]], [0, 1]), path)
    else:
        torch.save(module.state_dict(), path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".pt2", ".skops", ".pkl"])
def test_empty_files(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    path.touch()
    with pytest.raises(CorruptFile, match="is empty"):
        load_target(path)


def test_weights_that_do_not_fit(module: nn.Module, tmp_path: Path) -> None:
    state = module.state_dict()
    state["extra.weight"] = torch.zeros(1)
    del state["1.bias"]
    state["3.weight"] = torch.zeros(3, 9)
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(BadTarget) as caught:
        load_target(tmp_path / "m.pt", factory=make)
    for words in ("missing: 1.bias", "unexpected: extra.weight", "3.weight (3, 9) instead of (3, 4)"):
        assert words in str(caught.value)


def test_other_misfits(module: nn.Module, factory: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(module.state_dict(), path)
    with pytest.raises(BadTarget, match="without a model: give --factory"):
        load_target(path)
    with pytest.raises(BadTarget, match="returned something of type int"):
        load_target(path, factory=factory.replace("make", "wrong"))
    with pytest.raises(BadTarget, match="no weights"):
        load_target(path, factory=factory.replace("make", "failing"))
    with pytest.raises(UnknownName, match="has no 'nothing'"):
        load_target(path, factory=factory.replace("make", "nothing"))
    torch.save({"epoch": 3}, path)
    with pytest.raises(BadTarget, match="holds the keys epoch"):
        load_target(path, factory=make)


def test_python_objects_by_name(factory: str, tmp_path: Path) -> None:
    spec = factory.replace("make", "model")
    found = load_target(spec)
    assert found.id == spec
    assert found.forward(X).values.shape == (5, 3)
    (tmp_path / "bad.py").write_text("import nothing_of_this_name")
    with pytest.raises(BadTarget, match="cannot be imported"):
        load_target(f"{tmp_path / 'bad.py'}:model")
    with pytest.raises(UnknownName, match="no Python module 'nowhere_to_be_found'"):
        load_target("nowhere_to_be_found:model")
    assert load_target("math:prod").id == "math:prod"


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("missing.pt", UnknownName, "There is no file"),
        ("model.onnx", NotOffered, "does not read ONNX"),
        ("model.keras", NotOffered, "does not read Keras"),
        ("model.txt", NotOffered, "does not read LightGBM"),
        ("model.ubj", NotOffered, "does not read XGBoost"),
        (".", NotOffered, "does not read model folders"),
        ("https://example.org/v1", NotOffered, "does not attack endpoints"),
        ("model.xyz", UnknownName, "is no model file"),
        ("demo:digit-cnn", UnknownName, "did you mean demo:digits-cnn"),
    ],
)
def test_what_is_not_read_here(spec: str, error: type[UsageError], words: str) -> None:
    with pytest.raises(error, match=words):
        load_target(spec)


@pytest.mark.parametrize("bounds", [(1, 0), (0, 0), 5, ("a", "b"), (0, float("nan")), (0, 1, 2)])
def test_senseless_bounds(bounds: Any) -> None:
    with pytest.raises(BadOption, match="bounds"):
        target(make(), bounds=bounds)


def test_senseless_facts() -> None:
    with pytest.raises(BadOption, match="at least 2"):
        target(make(), classes=1)
    with pytest.raises(BadOption, match="classification or regression"):
        target(make(), task="ranking")
    for nothing in (3, "text", nn.Linear):
        with pytest.raises(BadTarget, match="cannot be attacked"):
            target(nothing)


@pytest.mark.parametrize(
    ("function", "kind", "offers"),
    [
        (lambda x: x.reshape(len(x), -1)[:, :3], "logits", Access.LABELS | Access.SCORES | Access.LOGITS),
        (lambda x: np.full((len(x), 4), 0.25), "probabilities", Access.LABELS | Access.SCORES),
        (lambda x: np.arange(len(x)), "labels", Access.LABELS),
        (lambda x: torch.from_numpy(x).flatten(1)[:, :1] * 50, "logits", Access.LABELS | Access.SCORES | Access.LOGITS),
    ],
)
def test_functions(function: Any, kind: str, offers: Access) -> None:
    found = target(function)
    outputs = found.forward(X)
    assert outputs.kind == kind
    assert found.offers == offers
    assert len(found.sha256()) == 64


@pytest.mark.parametrize("function", [lambda x: x[:2, 0], lambda x: 3.0, lambda x: np.zeros((len(x), 2, 2))])
def test_functions_of_the_wrong_shape(function: Any) -> None:
    with pytest.raises(BadTarget, match="returned shape"):
        target(function).forward(X)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_exported_programs(fixed: bool, count: int, module: nn.Module, tmp_path: Path) -> None:
    shapes = None if fixed else ({0: torch.export.Dim("rows", min=1)},)
    program = torch.export.export(module.eval(), (X[:3],), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "m.pt2")
    found = load_target(tmp_path / "m.pt2")
    x = X[:count].clone().requires_grad_(True)
    values = found.forward(x).values
    torch.testing.assert_close(values, module(x))
    (mine,) = torch.autograd.grad(values.square().sum(), x)
    (theirs,) = torch.autograd.grad(module(x).square().sum(), x)
    torch.testing.assert_close(mine, theirs)
    copy = found.clone()  # type: ignore[attr-defined]
    torch.testing.assert_close(copy(X[:count]), module(X[:count]))


def _rewritten(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def _model(change: Callable[[dict[str, Any]], None]) -> Callable[[str, bytes], bytes]:
    def edit(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        tree = json.loads(content)
        change(tree)
        return json.dumps(tree).encode()

    return edit


def _call(tree: dict[str, Any]) -> None:
    tree["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"


def _expression(tree: dict[str, Any]) -> None:
    tree["extra"] = {"as_expr": {"expr_str": "__import__('os').system('true')"}}


def _sample(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    torch.save(Trap(Path("never")), buffer)
    return buffer.getvalue() if name.endswith("sample_inputs/model.pt") else content


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_model(_call), "calls torch.os.system"),
        (_model(_expression), "evaluates the expression"),
        (_sample, "pickle of Python objects"),
    ],
)
def test_hostile_exports_are_refused(change: Any, words: str, module: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    save(".pt2", module, path)
    _rewritten(path, change)
    with pytest.raises(UntrustedFile, match=words):
        load_target(path)


def test_skops(tmp_path: Path) -> None:
    skops = pytest.importorskip("skops.io")
    x = np.random.default_rng(0).normal(size=(30, 2))
    estimator = LogisticRegression().fit(x, (x[:, 0] > 0).astype(int))
    skops.dump(estimator, tmp_path / "m.skops")
    found = load_target(tmp_path / "m.skops")
    np.testing.assert_array_equal(found.forward(torch.from_numpy(x)).labels, estimator.predict(x))
    estimator.note = Trap(tmp_path / "ran")
    skops.dump(estimator, tmp_path / "bad.skops")
    with pytest.raises(UntrustedFile, match="can run code"):
        load_target(tmp_path / "bad.skops")
    assert not (tmp_path / "ran").exists()


class Point:
    """An entry point of another package."""

    name = "theirs"

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def load(self) -> Any:
        if isinstance(self.thing, Exception):
            raise self.thing
        return self.thing


def test_plug_ins_come_first_and_broken_ones_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = Maker(lambda obj: obj == "theirs", lambda obj, asked: CallableTarget(len, id=asked.id))
    monkeypatch.setattr(load, "entry_points", lambda group: [Point(ImportError("gone")), Point(theirs)])
    with pytest.warns(UserWarning, match="theirs failed to load and is left out: gone"):
        assert target("theirs", id="mine").id == "mine"
