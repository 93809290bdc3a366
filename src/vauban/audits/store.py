"""The journal of a run: one row per finished unit, in SQLite, so that kill -9 loses the unit under way and no more.

The writer holds the file exclusively for as long as it lives (`locking_mode=EXCLUSIVE`): a second process on the
same folder is refused at once, and the lock dies with its process. Write-ahead logging is used where the file system
takes it, the rollback journal where it does not (some network disks).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors.torch import save

from vauban.engine.case import Outcome
from vauban.schema.errors import CorruptFile, DiskFull, RunFolder
from vauban.schema.log import Attempt

NAME = "journal.sqlite"
TABLES = """
CREATE TABLE IF NOT EXISTS run (id TEXT NOT NULL, started TEXT NOT NULL, identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS unit (key TEXT PRIMARY KEY, attempt TEXT NOT NULL, arrays TEXT) WITHOUT ROWID;
"""
OUR_OWN = frozenset({NAME, f"{NAME}-wal", f"{NAME}-shm", f"{NAME}-journal"})


class Journal:
    """The finished units of one run. Use `Journal.open` as a context manager."""

    def __init__(self, folder: Path, base: sqlite3.Connection) -> None:
        self.folder = folder
        self._base = base
        self.id = ""
        self.started = ""

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path, identity: Mapping[str, Any], *, id: str, started: str) -> Iterator[Journal]:
        """The journal in `folder`, new or continued.

        `identity` is what makes two runs the same run (model, data, settings); `id` and `started` are used if the
        run is new. Raises RunFolder where the folder holds another run or something else, where another process
        writes in it, or where it cannot be written; CorruptFile where the journal is damaged; DiskFull.
        """
        _prepare(folder)
        with guarded(folder):
            base = sqlite3.connect(folder / NAME, isolation_level=None, timeout=0.2)
        try:
            journal = cls(folder, base)
            with guarded(folder):
                journal._begin(json.loads(json.dumps(identity)), id, started)
            yield journal
        finally:
            base.close()

    def finished(self) -> dict[str, Attempt]:
        """The attempts recorded so far, by unit key."""
        with guarded(self.folder):
            rows = self._base.execute("SELECT key, attempt FROM unit").fetchall()
        try:
            return {key: Attempt.model_validate_json(text) for key, text in rows}
        except ValidationError as error:
            raise _corrupt(self.folder, "a row cannot be read") from error

    def record(self, key: str, outcome: Outcome) -> Attempt:
        """Write one finished unit, its arrays first; returns the attempt as it is recorded."""
        attempt, name = outcome.attempt, None
        with guarded(self.folder):
            if outcome.arrays:
                name = f"samples/{key[:16]}.safetensors"
                arrays = {k: v.detach().cpu().contiguous() for k, v in outcome.arrays.items()}
                write_whole(self.folder / name, save(arrays, {"check": attempt.check, "key": key}))
                attempt = attempt.model_copy(update={"facts": {**attempt.facts, "samples": name}})
            self._base.execute("INSERT OR REPLACE INTO unit VALUES (?, ?, ?)", (key, attempt.model_dump_json(), name))
        return attempt

    def _begin(self, identity: dict[str, Any], id: str, started: str) -> None:
        self._base.execute("PRAGMA locking_mode=EXCLUSIVE")
        try:
            self._base.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if _kind(error) == sqlite3.SQLITE_BUSY:
                raise
            self._base.execute("PRAGMA journal_mode=DELETE")
        self._base.execute("PRAGMA synchronous=FULL")
        self._base.execute("BEGIN EXCLUSIVE")
        for statement in filter(str.strip, TABLES.split(";")):
            self._base.execute(statement)
        row = self._base.execute("SELECT id, started, identity FROM run").fetchone()
        if row is None:
            row = (id, started, json.dumps(identity, sort_keys=True))
            self._base.execute("INSERT INTO run VALUES (?, ?, ?)", row)
        self._base.execute("COMMIT")
        self.id, self.started = row[0], row[1]
        try:
            before = json.loads(row[2])
        except ValueError as error:
            raise _corrupt(self.folder, "its description of the run cannot be read") from error
        _same(self.folder, before, identity)


def _prepare(folder: Path) -> None:
    """Make the folder; refuse one with something in it that is not a run."""
    if folder.exists() and not folder.is_dir():
        raise RunFolder(f"The output {folder} is a file: name a folder, new or of an earlier run.")
    with guarded(folder):
        folder.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in folder.iterdir()}
    if names and NAME not in names:
        some = ", ".join(sorted(names)[:3])
        raise RunFolder(
            f"The output folder {folder} holds something that is not a run ({some}): name another folder; nothing was written."
        )


def _same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    differ = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
    if differ:
        told = "; ".join(f"{k} was {_short(before.get(k))}, now {_short(now.get(k))}" for k in differ)
        raise RunFolder(
            f"The output folder {folder} holds another run ({told}): name another folder, or repeat that run's command to resume it; nothing was written."
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:40]}...{text[-12:]}"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there in full or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Turn what disk and database may raise into a sentence."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise _of_database(folder, error) from error
    except OSError as error:
        raise _of_system(folder, error) from error


def _kind(error: sqlite3.Error) -> int:
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def _of_database(folder: Path, error: sqlite3.Error) -> Exception:
    kind = _kind(error)
    if kind in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return _full(folder)
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return RunFolder(f"Another process is writing in {folder}: wait until it ends, or name another folder.")
    if kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return RunFolder(f"The journal in {folder} cannot be written ({error}): name a folder that you may write to.")
    return _corrupt(folder, str(error))


def _of_system(folder: Path, error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full(folder)
    return RunFolder(
        f"The output folder {folder} cannot be used ({error.strerror}): name a folder that you may write to."
    )


def _full(folder: Path) -> DiskFull:
    return DiskFull(
        f"The disk of {folder} is full; finished units are kept: make room and run the same command again to resume."
    )


def _corrupt(folder: Path, why: str) -> CorruptFile:
    return CorruptFile(
        f"The journal {folder / NAME} is damaged ({why}): keep the folder for inspection and name another one."
    )
