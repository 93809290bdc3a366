"""Python objects by name. Naming one is the user's word that its code may run."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from vauban.schema.errors import BadTarget, UnknownName, VaubanError


def named(spec: str) -> Any:
    """The object behind `package.module:attribute` or `file.py:attribute`.

    Raises UnknownName where module, file or attribute is missing, BadTarget where the module raises on import.
    """
    place, colon, attribute = spec.rpartition(":")
    if not colon or not place or not attribute:
        raise UnknownName(f"{spec!r} names no Python object: write module:attribute or file.py:attribute.")
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else _from_path(place)
    except VaubanError:
        raise
    except Exception as error:  # anything may go wrong in a user's module
        said = " ".join(str(error).split())[:300]
        raise BadTarget(f"{place} cannot be imported ({type(error).__name__}: {said}): repair it first.") from error
    thing: Any = module
    for part in attribute.split("."):
        if not hasattr(thing, part):
            raise UnknownName(f"{place} has no {attribute!r}: check the name after the colon.")
        thing = getattr(thing, part)
    return thing


def _from_path(place: str) -> ModuleType:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not (place == error.name or place.startswith(f"{error.name}.")):
            raise
        raise UnknownName(f"There is no Python module {place!r} to import: check the name or the folder.") from None
    finally:
        sys.path.remove(here)


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UnknownName(f"There is no file {str(path)!r}: check the path before the colon.")
    name = f"vauban_user_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module
