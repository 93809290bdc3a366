"""Pictures in folders, one folder a class. Nothing is unpacked before its size is known."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vauban.core.data import Data
from vauban.parts.samples import split
from vauban.schema.errors import BadData, CorruptFile

ENDINGS = (".png", ".jpg", ".jpeg")
PARTS = ("train", "test")
LARGEST = 4096
"""Pixels that a side has at most."""
GREY, COLOUR = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Pillow's modes of eight bits a channel, that are read as one channel and as three."""
WIDTH = 4
"""Bytes of a value in memory."""


def read_folder(folder: Path) -> Data:
    """Pictures of a folder that holds a folder of .png, .jpg or .jpeg for each class.

    With `train/` and `test/` inside, each of which holds class folders, these are the parts; otherwise 70 % of the pictures are
    for training, always the same, with the classes in equal shares. Classes are numbered in the order of their names (of
    numbers, by value), grey pictures are `[n, 1, h, w]` and others `[n, 3, h, w]`, transparency is dropped. All
    must be of one size: none is resized. Raises BadData or CorruptFile naming the picture.
    """
    if all(_classes(folder / part) and not _files(folder / part) for part in PARTS):
        names = _ordered({c.name for part in PARTS for c in _classes(folder / part)})
        listed = [_listed(folder / part, names) for part in PARTS]
    elif (folder / "train").is_dir() and _classes(folder / "train") and not _files(folder / "train"):
        raise BadData(
            f"{folder} holds train/ with class folders, and no test/ like it: add one, or join both in one folder."
        )
    else:
        names = _ordered({c.name for c in _classes(folder)})
        listed = [_listed(folder, names)]
    if len(names) < 2:
        raise BadData(
            f"{folder} holds {len(names)} class folders: it must hold one for each class with its pictures, or train/ and test/ "
            "with these."
        )
    x, y = _read([path for part, _ in listed for path in part]), np.concatenate([labels for _, labels in listed])
    first = len(listed[0][0])
    if len(listed) == 1 and len(x) < 4:
        raise BadData(f"{folder} holds {len(x)} pictures, too few to cut into training and test pictures: add more.")
    x_train, y_train, x_test, y_test = (x[:first], y[:first], x[first:], y[first:]) if len(listed) == 2 else split(x, y)
    return Data(x_train, y_train, x_test, y_test, id=folder.name, kind="image", label_names=tuple(names))


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise CorruptFile(f"The folder {folder} cannot be read ({error.strerror}).") from None


def _classes(folder: Path) -> list[Path]:
    return [entry for entry in _visible(folder) if entry.is_dir()]


def _files(folder: Path) -> list[Path]:
    """Pictures directly inside."""
    return [entry for entry in _visible(folder) if entry.suffix.lower() in ENDINGS]


def _ordered(names: set[str]) -> list[str]:
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return sorted(names, key=lambda name: (int(name), name) if numbers else (0, name))


def _listed(folder: Path, names: Sequence[str]) -> tuple[list[Path], np.ndarray]:
    """The pictures below class folders, and their classes."""
    paths: list[Path] = []
    labels: list[int] = []
    for number, name in enumerate(names):
        inside = _visible(folder / name)
        odd = next((entry for entry in inside if entry.is_dir() or entry.suffix.lower() not in ENDINGS), None)
        if odd is not None:
            raise BadData(f"{odd} lies among pictures and is no {', '.join(ENDINGS)} file: move it elsewhere.")
        if not inside and (folder / name).is_dir():
            raise BadData(f"The class folder {folder / name} is empty: give it pictures, or remove it.")
        paths += inside
        labels += [number] * len(inside)
    return paths, np.array(labels, dtype=np.int64)


def _read(paths: Sequence[Path]) -> np.ndarray:
    """uint8 `[n, channels, height, width]`, after a look at the heads of all files."""
    looks = [_look(path) for path in paths]
    width, height = looks[0][0]
    other = next((i for i, (size, _) in enumerate(looks) if size != (width, height)), None)
    if other is not None:
        told = " x ".join(map(str, looks[other][0]))
        raise BadData(
            f"{paths[other]} has {told} pixels and {paths[0]} has {width} x {height}: all pictures must be of one size, bring them "
            "to it first."
        )
    channels = 1 if all(mode in GREY for _, mode in looks) else 3
    _fits(len(paths) * channels * height * width, paths[0].parent.parent)
    x = np.empty((len(paths), channels, height, width), dtype=np.uint8)
    for place, path in enumerate(paths):
        with _opened(path) as picture:
            pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
        x[place] = pixels[None] if channels == 1 else np.moveaxis(pixels, -1, 0)
    return x


def _look(path: Path) -> tuple[tuple[int, int], str]:
    """Size and mode of a picture, by its head alone."""
    with _opened(path) as picture:
        size, mode = tuple(picture.size), str(picture.mode)
    if max(size) > LARGEST:
        raise BadData(
            f"{path} has {size[0]} x {size[1]} pixels, and no side may have more than {LARGEST}: scale it down first."
        )
    if mode not in (*GREY, *COLOUR):
        raise BadData(f"{path} is of the kind {mode}, not of eight bits a channel: save it as 8-bit grey or colour.")
    return size, mode


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A picture, whatever reading it raises told in a sentence; what is large is no warning, for sizes are looked at here."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("PNG", "JPEG")) as picture:
                yield picture
    except Image.DecompressionBombError:
        raise BadData(f"{path} claims more pixels than can be meant: no side may have more than {LARGEST}.") from None
    except (OSError, EOFError, SyntaxError, ValueError, IndexError, OverflowError, MemoryError) as error:
        why = "it is damaged or no picture" if isinstance(error, OSError | EOFError | SyntaxError) else f"{error}"
        raise CorruptFile(f"{path} cannot be read as a picture ({why[:80]}): write it again or remove it.") from None


def _fits(values: int, folder: Path) -> None:
    """Refuse what this machine's memory does not hold."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    if there is not None and values * WIDTH > there:
        raise BadData(
            f"The pictures of {folder} take {values * WIDTH / 2**30:.1f} GiB in memory, and there are {there / 2**30:.1f}: "
            "give fewer or smaller ones."
        )
