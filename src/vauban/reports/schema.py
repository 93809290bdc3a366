"""The published JSON schema of report.json: `python -m vauban.reports.schema > docs/report.schema.json`."""

from __future__ import annotations

import json
import sys

from vauban.schema.log import SCHEMA_VERSION, AuditLog


def text() -> str:
    """JSON Schema (2020-12) of the audit log."""
    schema = AuditLog.model_json_schema()
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"Vauban audit log {SCHEMA_VERSION}"}
    return json.dumps({**schema, **head}, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
