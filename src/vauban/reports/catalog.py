"""Every report format: name -> where its class lives. One row adds one."""

from __future__ import annotations

from typing import ClassVar, Protocol

from vauban.core.registry import Catalogue
from vauban.schema.log import AuditLog


class Reporter(Protocol):
    """Makes one file from the log and nothing else. `lang` matters only to those that people read."""

    filename: ClassVar[str]

    def __init__(self, lang: str = "en") -> None: ...

    def render(self, log: AuditLog) -> str: ...


REPORTERS: Catalogue[type[Reporter]] = Catalogue(
    "report format",
    "vauban.reporters",
    {
        "html": "vauban.reports.html:Html",
        "json": "vauban.reports.canonical:Json",
        "junit": "vauban.reports.junit:JUnit",
        "md": "vauban.reports.markdown:Markdown",
        "sarif": "vauban.reports.sarif:Sarif",
    },
)
