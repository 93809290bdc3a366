"""Vauban attacks, hardens and audits machine-learning models.

    import vauban

    target = vauban.load_target("model.pt2")
    log = vauban.audit(target, "data.npz", threats=["linf:0.1"], out="run")

Nothing heavy is loaded before it is used: `import vauban` costs little.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vauban.api import (
        AttackResult,
        ExplainResult,
        attack,
        audit,
        compare,
        explain,
        harden,
        load_data,
        load_target,
        target,
    )
    from vauban.core.data import Data
    from vauban.schema.log import AuditLog
    from vauban.schema.threat import ThreatModel

_WHERE = {
    "AttackResult": "vauban.api",
    "AuditLog": "vauban.schema.log",
    "Data": "vauban.core.data",
    "ExplainResult": "vauban.api",
    "ThreatModel": "vauban.schema.threat",
    "attack": "vauban.api",
    "audit": "vauban.api",
    "compare": "vauban.api",
    "explain": "vauban.api",
    "harden": "vauban.api",
    "load_data": "vauban.api",
    "load_target": "vauban.api",
    "target": "vauban.api",
}

__all__ = [
    "AttackResult",
    "AuditLog",
    "Data",
    "ExplainResult",
    "ThreatModel",
    "attack",
    "audit",
    "compare",
    "explain",
    "harden",
    "load_data",
    "load_target",
    "target",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("vauban")
    if name not in _WHERE:
        raise AttributeError(f"module 'vauban' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
