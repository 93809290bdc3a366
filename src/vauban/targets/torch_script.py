"""TorchScript: modules whose code runs out of Python's sight, and that only their own format copies whole."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator

import torch
from torch import nn


def copied(module: nn.Module) -> nn.Module:
    """A deep copy. That of TorchScript goes through its file format: `copy.deepcopy` leaves it weights that cannot be trained."""
    if not is_script(module):
        return copy.deepcopy(module)
    with _without_advice():
        made: nn.Module = torch.jit.load(io.BytesIO(_saved(module)))
    return made


def files(module: nn.Module) -> dict[str, bytes]:
    """The module as a file of the format that it came in; none where it is no TorchScript."""
    return {"model.pt": _saved(module)} if is_script(module) else {}


def is_script(module: nn.Module) -> bool:
    """Whether the whole module is TorchScript."""
    return isinstance(module, torch.jit.ScriptModule)


def _saved(module: nn.Module) -> bytes:
    written = io.BytesIO()
    with _without_advice():
        torch.jit.save(module, written)
    return written.getvalue()


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Nobody here can follow torch's advice to use another format: the user chose this one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
