"""Data sets from files, by suffix. Nothing in a file is executed: arrays are read without pickle."""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from vauban.core.data import Data
from vauban.data.demo import DEMOS
from vauban.data.folder import read_folder
from vauban.parts.samples import split
from vauban.schema.errors import BadData, CorruptFile, UnknownName

_FULL = ("x_train", "y_train", "x_test", "y_test")


def load_data(spec: Any, *, label: str | None = None) -> Data:
    """A data set from what stands for it.

    `spec` is a path (`.npz` with x_train, y_train, x_test, y_test, or x, y; `.csv` with `label` naming the column to
    predict), a folder of class folders of pictures (`read_folder`), a `demo:` name, a tuple `(x, y)` or `(x_train, y_train, x_test, y_test)`, or Data. A single part is cut
    into 70 % training and 30 % test rows, always the same, with the classes in equal shares.

    uint8 pictures become float32 in [0, 1] with a grid of 1/255; `[n, h, w]` becomes `[n, 1, h, w]` and `[n, h, w, 3]`
    becomes `[n, 3, h, w]`. Raises UnknownName where there is no such file or demo, CorruptFile where it cannot be
    read, BadData where what it holds cannot be used.
    """
    if isinstance(spec, Data):
        return spec
    if isinstance(spec, DataLoader | Dataset):
        raise BadData("A torch loader holds one part of the data: give vauban.Data.of(train_loader, test_loader).")
    if isinstance(spec, tuple | list):
        return _from_parts(tuple(spec), "data")
    text = str(spec)
    if text.startswith("demo:"):
        return DEMOS.load(text)()
    path = Path(text)
    if path.is_dir():
        return read_folder(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise BadData(f"The data {text!r} is of no kind that is read here: give {_kinds()}, or demo:digits.")
    if not path.is_file():
        raise UnknownName(f"There is no file {text!r}: check the path of the data.")
    if path.stat().st_size == 0:
        raise CorruptFile(f"The data file {text!r} is empty: write it again.")
    return reader(path, label)


def _from_parts(parts: tuple[Any, ...], id: str) -> Data:
    if len(parts) == 4:
        return Data(*parts, id=id)
    if len(parts) == 2:
        return Data(None, None, *parts, id=id)
    raise BadData(f"A tuple of {len(parts)} parts is no data set: give (x, y) or (x_train, y_train, x_test, y_test).")


def read_npz(path: Path, label: str | None) -> Data:
    """Arrays by name; object arrays (which would be unpickled) are refused."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            names = set(file.files)
            arrays = {name: np.asarray(file[name]) for name in (*_FULL, "x", "y") if name in names}
    except ValueError as error:
        if "pickle" in str(error).lower() and zipfile.is_zipfile(path):
            raise BadData(f"{path} holds Python objects, which are not read: save plain number arrays.") from None
        raise _corrupt(path, "an .npz file") from None
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError):
        raise _corrupt(path, "an .npz file") from None
    if {"x", "y"} <= arrays.keys() and "x_test" not in arrays:
        return _cut(arrays["x"], arrays["y"], path.name)
    if not {"x_test", "y_test"} <= arrays.keys():
        held = ", ".join(sorted(names)) or "nothing"
        raise BadData(f"{path} holds {held}: it must hold x_train, y_train, x_test and y_test, or x and y.")
    if "x_train" in arrays and "y_train" not in arrays:
        raise BadData(f"{path} holds x_train without y_train: give both or neither.")
    x = {name: pictures(arrays[name]) for name in ("x_train", "x_test") if name in arrays}
    return Data(
        x.get("x_train"),
        arrays.get("y_train") if "x_train" in x else None,
        x["x_test"],
        arrays["y_test"],
        id=path.name,
        kind=_kind(x["x_test"]),
    )


def pictures(x: np.ndarray) -> np.ndarray:
    """uint8 `[n, h, w]` as `[n, 1, h, w]`, and `[n, h, w, 1 or 3]` as `[n, c, h, w]`; anything else as it is."""
    if x.dtype == np.uint8 and x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
        return np.ascontiguousarray(np.moveaxis(x, -1, 1))
    return x


def _kind(x: np.ndarray) -> str:
    return "image" if x.ndim == 4 else "tabular"


def _cut(x: np.ndarray, y: np.ndarray, id: str, **facts: Any) -> Data:
    x = pictures(x)
    whole = Data(None, None, x, y, id=id)  # refuses what cannot be used, in its own words
    y = whole.y_test.numpy()
    if len(x) < 4:
        raise BadData(f"{id} has {len(x)} rows, too few to cut into training and test rows: give x_test and y_test.")
    return Data(*split(x, y), id=id, kind=_kind(x), **facts)


def read_csv(path: Path, label: str | None) -> Data:
    """A header line, then numbers; the column `label` holds class names, class numbers or values to predict."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file) if line]
    except (UnicodeDecodeError, csv.Error, OSError):
        raise _corrupt(path, "a .csv file") from None
    if len(lines) < 2:
        raise BadData(f"{path} has no rows below its header: give at least a few.")
    header, body = [name.strip() for name in lines[0]], lines[1:]
    if label is None:
        raise BadData(f"{path} needs --label COLUMN, the column to predict: one of {', '.join(header)}.")
    if label not in header:
        raise BadData(f"{path} has no column {label!r}: its columns are {', '.join(header)}.")
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise BadData(f"{path} has {header.count(twice)} columns called {twice!r}: give each its own name.")
    ragged = next((i for i, row in enumerate(body, 2) if len(row) != len(header)), None)
    if ragged is not None:
        raise BadData(f"{path} line {ragged} has {len(body[ragged - 2])} cells under {len(header)} columns: repair it.")
    at = header.index(label)
    names = [name for i, name in enumerate(header) if i != at]
    if not names:
        raise BadData(f"{path} has no column besides {label!r}: there must be at least one feature.")
    x = np.stack([_numbers(path, name, [row[header.index(name)] for row in body]) for name in names], 1)
    y, words = _targets([row[at].strip() for row in body])
    return _cut(x, y, path.name, feature_names=tuple(names), label_names=words)


def _numbers(path: Path, name: str, cells: list[str]) -> np.ndarray:
    try:
        return np.array([float(cell) for cell in cells])
    except ValueError:
        pass
    odd = next(cell for cell in cells if not _is_number(cell))
    raise BadData(
        f"{path}: the column {name!r} holds {odd!r}, which is no number: encode it as numbers (or remove it) first."
    )


def _targets(cells: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Whole numbers from 0 are class numbers, other numbers are values, words are classes in alphabetical order."""
    if all(_is_number(cell) for cell in cells):
        values = np.array([float(cell) for cell in cells])
        whole = bool(
            np.isfinite(values).all() and (values == np.round(values)).all() and not any("." in c for c in cells)
        )
        return (values.astype(np.int64) if whole else values), ()
    words, numbers = np.unique(np.array(cells), return_inverse=True)
    return numbers.astype(np.int64), tuple(str(word) for word in words)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _parquet(path: Path, label: str | None) -> Data:
    raise BadData(f"{path}: this version does not read .parquet; save it as .csv or .npz.")


def _corrupt(path: Path, what: str) -> CorruptFile:
    return CorruptFile(f"{path} cannot be read as {what}: it is damaged or something else; write it again.")


READERS: Mapping[str, Callable[[Path, str | None], Data]] = {
    ".npz": read_npz,
    ".csv": read_csv,
    ".parquet": _parquet,
}


def _kinds() -> str:
    return "a .npz or .csv file, a folder of class folders of pictures"
