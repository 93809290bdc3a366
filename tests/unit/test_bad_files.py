"""Foreign files under the name of a data set: one sentence, and nothing is unpickled."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vauban.attacks.catalog import ATTACKS
from vauban.audits.config import resolve
from vauban.core.registry import configure
from vauban.data.load import load_data
from vauban.schema.errors import BadData, BadOption, MissingExtra, UnknownName, UsageError
from vauban.targets.load import load_target


def a_plain_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones((4, 2)))


def an_archive_of_something_else(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hi")


def an_archive_with_the_right_names(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "hi")
        archive.writestr("y", "hi")


def flipped_bytes(path: Path) -> None:
    np.savez_compressed(path, x=np.random.default_rng(0).random((40, 4)), y=np.arange(40) % 2)
    content = bytearray(path.read_bytes())
    content[60:90] = b"\xff" * 30
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "make", [a_plain_array, an_archive_of_something_else, an_archive_with_the_right_names, flipped_bytes]
)
def test_a_foreign_npz_is_refused_in_a_sentence(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "data.npz"
    make(path)
    with pytest.raises(UsageError, match=r": |which are not read"):
        load_data(path)


def test_an_import_that_fails_is_told_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('first\\n\\tsecond')\n")
    with pytest.raises(UsageError, match=r"cannot be imported \(RuntimeError: first second\): repair it"):
        load_target(f"{tmp_path / 'broken.py'}:model")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lang": "xx"}, r"^--lang: .*choose from en"),
        ({"bounds": "0"}, r"^--bounds: write the smallest and the largest valid input, such as 0,1"),
        ({"bounds": "a,b"}, r"^--bounds: write the smallest"),
        ({"samples": -1}, r"^--samples: Input should be greater than 0 \(given: -1\)"),
        ({"formats": "pdf"}, r"^--format: formats\.0: Input should be 'html'"),
        ({"fail_on": "nope"}, r"^--fail-on: Input should be 'critical'"),
        ({"time_limit": "0s"}, r"^--time-limit: Input should be greater than 0"),
        ({"batch_size": 0}, r"^--batch-size: Input should be greater than 0"),
    ],
)
def test_a_bad_option_is_told_by_its_own_name_before_anything_runs(given: dict[str, object], said: str) -> None:
    with pytest.raises(BadOption, match=said):
        resolve(given, environ={})


def test_a_suggestion_ends_in_one_mark() -> None:
    with pytest.raises(UnknownName, match=r"\? `vauban list`"):
        ATTACKS.load("evasion.pdg")
    with pytest.raises(UnknownName, match=r"'zzz'\. `vauban list`"):
        ATTACKS.load("zzz")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.csv"
    path.write_text("a,a,label\n" + "1,2,0\n3,4,1\n" * 4)
    with pytest.raises(BadData, match="2 columns called 'a'"):
        load_data(path, label="label")


def test_an_unknown_setting_is_told_the_settings_alone() -> None:
    with pytest.raises(BadOption, match=r"has no setting 'stepz'; did you mean step\? It takes: steps, step,"):
        configure(ATTACKS.load("evasion.pgd"), {"stepz": 3})


def test_a_skops_file_without_skops_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.skops").write_bytes(b"something")
    monkeypatch.setitem(sys.modules, "skops", None)
    with pytest.raises(MissingExtra, match=r"pip install 'vauban\[skops\]'"):
        load_target(tmp_path / "model.skops")
