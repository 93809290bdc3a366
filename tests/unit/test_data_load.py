"""Data sets from files, tuples and names; what is wrong with them is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vauban.core.data import Data
from vauban.data.load import load_data
from vauban.schema.errors import BadData, CorruptFile, UnknownName

RNG = np.random.default_rng(0)
Y = np.arange(20) % 2


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("name", "rows", "shape", "kind", "labels", "features"),
    [
        ("demo:digits", (1000, 797), (1, 8, 8), "image", 10, 0),
        ("demo:breast-cancer", (398, 171), (30,), "tabular", 2, 30),
        ("demo:diabetes", (309, 133), (10,), "tabular", 0, 10),
    ],
)
def test_demos(name: str, rows: tuple[int, int], shape: tuple[int, ...], kind: str, labels: int, features: int) -> None:
    data = load_data(name)
    assert (len(data.x_train), len(data.x_test)) == rows
    assert (data.shape, data.kind, len(data.label_names), len(data.feature_names)) == (shape, kind, labels, features)
    assert data.sha256() == load_data(name).sha256()
    assert data.y_test.is_floating_point() == (name == "demo:diabetes")


def test_digits_lie_on_their_grid() -> None:
    data = load_data("demo:digits")
    assert data.step == 1 / 16
    levels = data.x_train * 16
    assert torch.equal(levels, levels.round())
    assert (float(data.x_train.min()), float(data.x_train.max())) == (0, 1)
    train = {row.numpy().tobytes() for row in data.x_train}
    assert sum(row.numpy().tobytes() in train for row in data.x_test) < 3


def test_npz_with_both_parts(tmp_path: Path) -> None:
    x = RNG.normal(size=(20, 3))
    data = load_data(npz(tmp_path / "d.npz", x_train=x, y_train=Y, x_test=x[:5], y_test=Y[:5]))
    assert (len(data.x_train), len(data.x_test), data.id, data.kind) == (20, 5, "d.npz", "tabular")
    assert not load_data(npz(tmp_path / "t.npz", x_test=x, y_test=Y)).has_train


def test_npz_with_one_part_is_cut_in_equal_shares(tmp_path: Path) -> None:
    x, y = RNG.normal(size=(200, 3)), np.repeat([0, 1], [50, 150])
    data = load_data(npz(tmp_path / "d.npz", x=x, y=y))
    assert (len(data.x_train), len(data.x_test)) == (140, 60)
    assert int((data.y_train == 0).sum()) == 35
    assert int((data.y_test == 0).sum()) == 15
    both = torch.cat([data.x_train, data.x_test])
    torch.testing.assert_close(both.sort(0).values, torch.from_numpy(x).float().sort(0).values)


@pytest.mark.parametrize(
    ("given", "wanted"), [((20, 4, 5), (1, 4, 5)), ((20, 4, 5, 3), (3, 4, 5)), ((20, 4, 5, 1), (1, 4, 5))]
)
def test_pictures_get_their_channels_first(given: tuple[int, ...], wanted: tuple[int, ...], tmp_path: Path) -> None:
    x = RNG.integers(0, 256, given, dtype=np.uint8)
    data = load_data(npz(tmp_path / "d.npz", x_test=x, y_test=Y))
    assert (data.shape, data.step, data.kind) == (wanted, 1 / 255, "image")
    expected = x if x.ndim == 3 else np.moveaxis(x, -1, 1)
    np.testing.assert_array_equal((data.x_test.numpy() * 255).round().reshape(expected.shape), expected)


@pytest.mark.data
def test_mnist(data_folder: Path) -> None:
    found = sorted(data_folder.rglob("*mnist*.npz"))
    if not found:
        pytest.skip("no mnist .npz in the data folder")
    data = load_data(found[0])
    assert (data.shape, data.step) == ((1, 28, 28), 1 / 255)


def test_tuples_and_data() -> None:
    x = RNG.normal(size=(20, 3))
    data = load_data((x, Y))
    assert load_data(data) is data
    assert not data.has_train
    assert load_data((x, Y, x[:4], Y[:4])).has_train
    with pytest.raises(BadData, match="tuple of 3 parts"):
        load_data((x, Y, x))


def csv(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_csv(tmp_path: Path) -> None:
    lines = [f"{i / 7},{'cat' if i % 2 else 'dog'},{i}" for i in range(20)]
    data = load_data(csv(tmp_path / "d.csv", "\n".join(["\ufeffa,animal,b", *lines])), label="animal")
    assert (data.feature_names, data.label_names) == (("a", "b"), ("cat", "dog"))
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert torch.equal(y, 1 - x[:, 1].long() % 2)
    assert data.y_test.dtype == torch.int64
    real = csv(tmp_path / "r.csv", "\n".join(["a,y", *(f"{i},{i / 3}" for i in range(20))]))
    assert load_data(real, label="y").y_test.dtype == torch.float64


@pytest.mark.parametrize(
    ("text", "label", "words"),
    [
        ("a,b\n1,2\n3,4", None, "needs --label COLUMN.*a, b"),
        ("a,b\n1,2\n3,4", "c", "no column 'c'"),
        ("a,b\nred,2\nblue,4", "b", "column 'a' holds 'red', which is no number"),
        ("a,b\n1,2\n3", "b", "line 3 has 1 cells under 2 columns"),
        ("a,b", "b", "no rows"),
        ("b\n1\n2", "b", "no column besides"),
        ("a,b\n1,0\nnan,1\n3,1\n4,0\n5,1", "b", "NaN"),
        ("a,b\n1,0\n2,1", "b", "too few to cut"),
    ],
)
def test_csv_that_cannot_be_used(text: str, label: str | None, words: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=words):
        load_data(csv(tmp_path / "d.csv", text), label=label)


X = RNG.normal(size=(20, 3))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": X}, "holds a: it must hold"),
        ({"x_train": X, "x_test": X, "y_test": Y}, "x_train without y_train"),
        ({"x_test": X, "y_test": Y[:5]}, r"y_test has shape \(5,\) for 20 rows"),
        ({"x_test": np.where(X > 1, np.nan, X), "y_test": Y}, "NaN or infinite"),
        ({"x_test": np.where(X > 1, np.inf, X), "y_test": Y}, "NaN or infinite"),
        ({"x_test": X[:0], "y_test": Y[:0]}, "empty"),
        ({"x": X[:0], "y": Y[:0]}, "empty"),
        ({"x_test": X[:, 0], "y_test": Y}, "must be"),
        ({"x_test": X + 1j, "y_test": Y}, "real numbers"),
        ({"x_test": X.astype(str), "y_test": Y}, "numbers"),
        ({"x_test": X, "y_test": Y.astype(str)}, "labels must be class numbers"),
        ({"x_test": X, "y_test": Y, "x_train": X[:, :2], "y_train": Y}, "same shape"),
        ({"x_test": X, "y_test": np.array([None] * 20)}, "Python objects"),
    ],
)
def test_npz_that_cannot_be_used(arrays: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=words):
        load_data(npz(tmp_path / "d.npz", **arrays))


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_damaged_files(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"d{suffix}"
    with pytest.raises(UnknownName, match="no file"):
        load_data(path)
    path.touch()
    with pytest.raises(CorruptFile, match="empty"):
        load_data(path)
    path.write_bytes(np.random.default_rng(0).bytes(2000))
    with pytest.raises(CorruptFile, match="damaged or something else"):
        load_data(path, label="y")


def test_truncated_npz(tmp_path: Path) -> None:
    path = npz(tmp_path / "d.npz", x=X, y=Y)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CorruptFile):
        load_data(path)


def test_names_of_nothing() -> None:
    with pytest.raises(UnknownName, match="did you mean demo:digits"):
        load_data("demo:digit")
    with pytest.raises(BadData, match="of no kind that is read"):
        load_data("d.xlsx")


def test_parquet_is_not_read_yet(tmp_path: Path) -> None:
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadData, match="save it as"):
        load_data(tmp_path / "d.parquet")


def test_float_pictures_keep_their_values() -> None:
    data = Data(None, None, np.full((4, 1, 2, 2), 0.5), np.array([0, 1, 0, 1]))
    assert data.step is None
    assert float(data.x_test[0, 0, 0, 0]) == 0.5
