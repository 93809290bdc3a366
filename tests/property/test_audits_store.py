"""The journal: what goes in comes out, and nothing else is touched."""

from __future__ import annotations

import errno
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from vauban.audits import store
from vauban.audits.store import Journal
from vauban.engine.case import Outcome
from vauban.schema.errors import CorruptFile, DiskFull, RunFolder
from vauban.schema.log import Attempt, Measurement

IDENTITY = {"target": "a" * 64, "data": "b" * 64, "seed": 0}


def open_(folder: Path, identity: dict = IDENTITY):  # type: ignore[type-arg, no-untyped-def]
    return Journal.open(folder, identity, id="run", started="2026-01-01T00:00:00+00:00")


def outcome(check: str = "evasion.pgd", value: float | None = 0.5) -> Outcome:
    return Outcome(Attempt(check=check, state="assessed", measurements=[Measurement(name="m", value=value)]))


@settings(deadline=None, max_examples=20)
@given(
    rows=st.dictionaries(
        st.text("0123456789abcdef", min_size=64, max_size=64),
        st.floats(allow_nan=False, allow_infinity=False) | st.none(),
        max_size=6,
    ),
    cut=st.integers(0, 6),
)
def test_what_was_recorded_is_found_after_any_number_of_openings(tmp_path_factory, rows, cut) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("run")
    items = list(rows.items())
    for part in (items[:cut], items[cut:]):
        with open_(folder) as journal:
            for key, value in part:
                journal.record(key, outcome(value=value))
    with open_(folder) as journal:
        found = journal.finished()
    assert {k: a.measurements[0].value for k, a in found.items()} == rows


def test_arrays_lie_beside_the_row_that_names_them(tmp_path: Path) -> None:
    x = torch.arange(6.0).reshape(2, 3)
    with open_(tmp_path / "run") as journal:
        attempt = journal.record("f" * 64, Outcome(outcome().attempt, {"x": x.T}))
        assert journal.finished()["f" * 64] == attempt
    assert torch.equal(load_file(tmp_path / "run" / attempt.facts["samples"])["x"], x.T)


def test_a_resumed_run_keeps_its_id_and_beginning(tmp_path: Path) -> None:
    with open_(tmp_path / "run"):
        pass
    with Journal.open(tmp_path / "run", IDENTITY, id="other", started="later") as journal:
        assert (journal.id, journal.started) == ("run", "2026-01-01T00:00:00+00:00")


def test_the_folder_of_another_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    with open_(tmp_path) as journal:
        journal.record("a" * 64, outcome())
    before = (tmp_path / store.NAME).read_bytes()
    with pytest.raises(RunFolder, match="seed was 0, now 1"), open_(tmp_path, {**IDENTITY, "seed": 1}):
        pass
    assert (tmp_path / store.NAME).read_bytes() == before


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years")
    with pytest.raises(RunFolder, match=r"thesis\.txt"), open_(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolder, match="is a file"), open_(tmp_path / "run"):
        pass


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_damaged_journal_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / store.NAME).write_bytes(content)
    with pytest.raises(CorruptFile, match="damaged"), open_(tmp_path):
        pass
    assert (tmp_path / store.NAME).read_bytes() == content


def test_a_row_that_is_no_attempt_is_named(tmp_path: Path) -> None:
    with open_(tmp_path):
        pass
    base = sqlite3.connect(tmp_path / store.NAME)
    base.execute("INSERT INTO unit VALUES ('k', '{\"check\": 3}', NULL)")
    base.commit()
    base.close()
    with open_(tmp_path) as journal, pytest.raises(CorruptFile, match="a row cannot be read"):
        journal.finished()


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from vauban.audits.store import Journal\n"
        f"with Journal.open(Path({str(tmp_path)!r}), {IDENTITY!r}, id='r', started=''):\n"
        "    print('open', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(RunFolder, match="Another process"), open_(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    with open_(tmp_path) as journal:  # the lock died with its holder
        assert journal.finished() == {}


def test_a_full_disk_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_(tmp_path) as journal:
        journal.record("a" * 64, outcome())

        def full(path: Path, content: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(store, "write_whole", full)
        with pytest.raises(DiskFull, match="kept"):
            journal.record("b" * 64, Outcome(outcome().attempt, {"x": torch.zeros(2)}))
    with open_(tmp_path) as journal:
        assert set(journal.finished()) == {"a" * 64}


def test_a_full_database_is_a_full_disk(tmp_path: Path) -> None:
    with open_(tmp_path) as journal:
        journal.record("a" * 64, outcome())
        journal._base.execute("PRAGMA max_page_count=1")
        big = Attempt(check="x", state="assessed", reason="x" * 10_000_000)
        with pytest.raises(DiskFull):
            journal.record("b" * 64, Outcome(big))
        assert set(journal.finished()) == {"a" * 64}


def test_a_file_is_written_in_full_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    store.write_whole(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(store.os, "fsync", fail)
    with pytest.raises(OSError):
        store.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
