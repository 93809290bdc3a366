"""The rich log as a fixture."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from vauban.schema.log import AuditLog


@pytest.fixture(scope="session")
def logs() -> ModuleType:
    """The module that makes logs."""
    spec = importlib.util.spec_from_file_location("make_log", Path(__file__).with_name("make_log.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def log(logs: ModuleType) -> AuditLog:
    made: AuditLog = logs.make_log()
    return made
