"""report.json: the log itself, in the order of the schema, without NaN or infinity."""

from __future__ import annotations

import json
import math
from typing import Any, ClassVar

from vauban.schema.log import AuditLog


class Json:
    """Canonical: the same log gives the same bytes."""

    filename: ClassVar[str] = "report.json"

    def __init__(self, lang: str = "en") -> None:
        pass

    def render(self, log: AuditLog) -> str:
        return json.dumps(finite(log.model_dump()), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """The same value with NaN and infinities as None, which JSON can hold."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(key): finite(item) for key, item in value.items()}
        case list() | tuple():
            return [finite(item) for item in value]
        case bool() | int() | str() | None:
            return value
    return str(value)
