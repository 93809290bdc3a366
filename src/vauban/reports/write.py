"""Put the reports of a log into its folder: each file whole or not at all."""

from __future__ import annotations

import base64
import binascii
import errno
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from vauban.reports.catalog import REPORTERS
from vauban.reports.charts import chart
from vauban.reports.words import translator
from vauban.schema.errors import DiskFull
from vauban.schema.log import AuditLog

FORMATS = ("html", "json")
BY_LANGUAGE = frozenset({"html", "md"})


def write(
    log: AuditLog, folder: Path, formats: Sequence[str] = FORMATS, langs: Sequence[str] = ("en",), figures: bool = True
) -> list[Path]:
    """The paths written: one file a format, one more for each further language of those that people read.

    The first language takes the plain name (`report.html`), the others theirs (`report.zh.html`). Curves and pictures
    go to `figures/`. Raises DiskFull, UnknownName for a format and BadOption for a language; then nothing is written.
    """
    for lang in langs:
        translator(lang)
    files = [(_name(name, lang, langs), text) for name, lang, text in _rendered(log, formats, langs)]
    folder.mkdir(parents=True, exist_ok=True)
    written = [replace(folder / name, text.encode()) for name, text in files]
    if figures:
        written += _figures(log, folder / "figures")
    return written


def _rendered(log: AuditLog, formats: Sequence[str], langs: Sequence[str]) -> Iterable[tuple[str, str, str]]:
    for kind in dict.fromkeys(formats):
        reporter = REPORTERS.load(kind)
        for lang in langs if kind in BY_LANGUAGE else langs[:1]:
            yield reporter.filename, lang, reporter(lang).render(log)


def _name(filename: str, lang: str, langs: Sequence[str]) -> str:
    path = Path(filename)
    return filename if lang == langs[0] else f"{path.stem}.{lang}{path.suffix}"


def _figures(log: AuditLog, folder: Path) -> list[Path]:
    """Each curve as SVG, each picture as PNG, named after the check, the threat and a number."""
    written = []
    for number, attempt in enumerate(log.attempts):
        stem = _safe("-".join(filter(None, (f"{number:02d}", attempt.check, attempt.threat))))
        files = {
            f"{stem}-{_safe(c.id)}-{i}.svg": chart(c, standalone=True).encode() for i, c in enumerate(attempt.curves)
        }
        for e, exhibit in enumerate(attempt.exhibits):
            for p, picture in enumerate(exhibit.pictures):
                files[f"{stem}-{e:02d}-{p}.png"] = _decoded(picture.png)
        folder.mkdir(parents=True, exist_ok=True)
        written += [replace(folder / name, content) for name, content in files.items() if content]
    return written


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.") or "figure"


def _decoded(png: str) -> bytes:
    try:
        return base64.b64decode(png, validate=True)
    except binascii.Error:
        return b""


def replace(path: Path, content: bytes) -> Path:
    """Write beside and rename, so that a reader never meets half a file; raises DiskFull with the old file as it was."""
    handle, temporary = -1, ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"There is no room left to write {path}: free some space and run the command again."
            ) from error
        raise
    return path
