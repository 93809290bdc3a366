"""One number for what an object holds, whichever process it lives in and however often it was saved."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def digest(thing: Any) -> str:
    """SHA-256 over the types, parameters and attributes of an estimator, those of its parts included.

    Unlike a hash of its pickle it does not depend on which parts are one object, nor on the order in which attributes were set.
    """
    found = hashlib.sha256()
    _add(found, thing, ())
    return found.hexdigest()


def _add(found: Any, thing: Any, within: tuple[int, ...]) -> None:
    if isinstance(thing, np.random.RandomState | np.random.Generator):
        return  # it may be the process's own, which goes on with every draw; no answer depends on it
    kind = f"{type(thing).__module__}.{type(thing).__qualname__}"
    found.update(f"{kind}(".encode())
    if id(thing) in within:  # it holds itself
        found.update(b"again)")
        return
    within = (*within, id(thing))
    if isinstance(thing, np.ndarray) and not thing.dtype.hasobject:
        found.update(f"{thing.dtype.descr}{thing.shape}".encode() + _bytes(thing))
    elif isinstance(thing, str | bytes | int | float | complex | bool | np.generic | type | None):
        found.update(repr(thing.item() if isinstance(thing, np.generic) else thing).encode())
    else:
        for part in _parts(thing):
            _add(found, part, within)
    found.update(b")")


def _bytes(array: np.ndarray) -> bytes:
    """The numbers alone: what lies between the fields of a record is left as memory was found."""
    names = array.dtype.names
    return np.ascontiguousarray(array).tobytes() if names is None else b"".join(_bytes(array[name]) for name in names)


def _parts(thing: Any) -> list[Any]:
    """What it is made of, in an order of its own."""
    if isinstance(thing, Mapping):
        return [part for key in sorted(thing, key=repr) for part in (key, thing[key])]
    if isinstance(thing, set | frozenset):
        return sorted(thing, key=repr)
    if isinstance(thing, np.ndarray):
        return [thing.shape, *thing.reshape(-1)]
    if isinstance(thing, list | tuple):
        return list(thing)
    state = thing.__reduce_ex__(2) if not hasattr(thing, "__dict__") else thing.__getstate__()
    return [part for part in (state if isinstance(state, tuple) else (state,)) if not callable(part)]
