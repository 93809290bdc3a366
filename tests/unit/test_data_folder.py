"""Pictures from class folders; what is wrong with them is said."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vauban.data.load import load_data
from vauban.schema.errors import BadData, CorruptFile, UsageError

RNG = np.random.default_rng(0)


def picture(path: Path, pixels: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def grey(side: int = 6) -> np.ndarray:
    return RNG.integers(0, 256, (side, side), dtype=np.uint8)


def classes(folder: Path, count: int = 5, names: tuple[str, ...] = ("cat", "dog")) -> dict[tuple[str, int], np.ndarray]:
    return {(name, i): picture(folder / name / f"{i}.png", grey()) for name in names for i in range(count)}


def test_a_folder_of_classes_is_cut_in_equal_shares(tmp_path: Path) -> None:
    made = classes(tmp_path / "pets", 10)
    data = load_data(str(tmp_path / "pets"))
    assert (len(data.x_train), len(data.x_test), data.shape) == (14, 6, (1, 6, 6))
    assert (data.id, data.kind, data.step, data.label_names) == ("pets", "image", 1 / 255, ("cat", "dog"))
    assert data.y_test.bincount().tolist() == [3, 3]
    found = {
        (x.numpy().tobytes(), int(y))
        for x, y in zip([*data.x_train, *data.x_test], [*data.y_train, *data.y_test], strict=True)
    }
    wanted = {
        ((p[None] / np.float32(255)).astype(np.float32).tobytes(), int(name == "dog")) for (name, _), p in made.items()
    }
    assert found == wanted
    assert load_data(str(tmp_path / "pets")).sha256() == data.sha256()


def test_train_and_test_inside_are_the_parts(tmp_path: Path) -> None:
    classes(tmp_path / "train", 3, ("9", "10"))
    last = classes(tmp_path / "test", 1, ("10", "9", "11"))
    picture(tmp_path / "train" / "11" / "a.jpg", grey())
    data = load_data(str(tmp_path))
    assert data.label_names == ("9", "10", "11")
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([0, 0, 0, 1, 1, 1, 2], [0, 1, 2])
    np.testing.assert_array_equal((data.x_test[1, 0].numpy() * 255).round(), last[("10", 0)])


def test_colour_has_three_channels_and_grey_beside_it_too(tmp_path: Path) -> None:
    classes(tmp_path)
    red = np.zeros((6, 6, 4), dtype=np.uint8)
    red[..., 0] = 255
    picture(tmp_path / "cat" / "red.png", red)
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "README.txt").write_text("of pets")
    data = load_data(str(tmp_path))
    rows = np.concatenate([data.x_train.numpy(), data.x_test.numpy()])
    assert rows.shape == (11, 3, 6, 6)
    spread = np.ptp(rows, axis=1).reshape(11, -1).max(1)
    assert sorted(spread) == [0.0] * 10 + [1.0]


def truncated(folder: Path) -> None:
    whole = folder / "cat" / "0.png"
    whole.write_bytes(whole.read_bytes()[:-25])


def text(folder: Path) -> None:
    (folder / "cat" / "2.png").write_text("this is no picture")


def bomb(folder: Path, side: int) -> None:
    """A head that claims side x side pixels, and nothing behind it."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in chunks
    )
    (folder / "cat" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (truncated, CorruptFile, r"cat/0\.png cannot be read as a picture"),
        (text, CorruptFile, r"cat/2\.png cannot be read as a picture \(it is damaged or no picture\)"),
        (lambda f: bomb(f, 60_000), BadData, r"1\.png claims more pixels than can be meant"),
        (lambda f: bomb(f, 12_000), BadData, r"1\.png has 12000 x 12000 pixels, and no side may have more than 4096"),
        (lambda f: picture(f / "dog" / "7.png", grey(5)), BadData, r"7\.png has 5 x 5 pixels and .*0\.png has 6 x 6"),
        (lambda f: picture(f / "dog" / "7.png", grey().astype(np.uint16)), BadData, r"not of eight bits a channel"),
        (lambda f: (f / "dog" / "notes.txt").write_text("a"), BadData, r"notes\.txt lies among pictures"),
        (lambda f: (f / "dog" / "more").mkdir(), BadData, r"more lies among pictures"),
        (lambda f: (f / "empty").mkdir(), BadData, r"empty is empty: give it pictures"),
    ],
    ids=["truncated", "text", "bomb", "large", "sizes", "16 bits", "odd file", "odd folder", "empty class"],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, spoil: Callable[[Path], object], error: type[UsageError], words: str
) -> None:
    classes(tmp_path)
    spoil(tmp_path)
    with pytest.raises(error, match=words):
        load_data(str(tmp_path))


def test_folders_that_hold_no_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="holds 0 class folders"):
        load_data(str(tmp_path))
    classes(tmp_path, names=("cat",))
    with pytest.raises(BadData, match="holds 1 class folders"):
        load_data(str(tmp_path))
    classes(tmp_path / "half" / "train")
    with pytest.raises(BadData, match=r"holds train/ with class folders, and no test/"):
        load_data(str(tmp_path / "half"))
    few = tmp_path / "few"
    classes(few, 1)
    with pytest.raises(BadData, match="2 pictures, too few"):
        load_data(str(few))
