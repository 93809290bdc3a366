"""Reading what a run left behind."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from vauban.schema.errors import CorruptFile, UnknownName
from vauban.schema.log import AuditLog


def read_log(run: Path) -> AuditLog:
    """The log of a run folder, or of a report.json; raises UnknownName or CorruptFile."""
    path = run / "report.json" if run.is_dir() else run
    if not path.is_file():
        unfinished = (
            " Its audit was interrupted: run the same command again." if (run / "journal.sqlite").exists() else ""
        )
        raise UnknownName(f"There is no finished run in {run}: it holds no report.json.{unfinished}")
    try:
        return AuditLog.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise CorruptFile(f"{path} is no audit log of this version ({where}: {first['msg']}).") from None
