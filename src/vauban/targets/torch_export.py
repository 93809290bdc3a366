"""Modules from `torch.export` files (`.pt2`): differentiable, without the Python code that made them."""

from __future__ import annotations

import copy
import inspect
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vauban.artifacts.exported import check_exported
from vauban.artifacts.loading import corrupt
from vauban.schema.errors import BadTarget
from vauban.targets.options import Options


class Exported(nn.Module):
    """An exported program as a module for any number of rows.

    A program that takes exactly `size` rows is called in parts, the last filled up with its last row. `origin` is what it was
    read from, and so how it is written.
    """

    def __init__(self, program: nn.Module, size: int | None, origin: Any = None) -> None:
        super().__init__()
        self.program = program
        self.size = size
        self.origin = origin

    def forward(self, x: Tensor) -> Tensor:
        if self.size is None:
            return self.program(x)
        short = -len(x) % self.size
        padded = torch.cat([x, x[-1:].expand(short, *x.shape[1:])]) if short else x
        return torch.cat([self.program(part) for part in padded.split(self.size)])[: len(x)]

    def __deepcopy__(self, memo: dict[int, Any]) -> Exported:
        with warnings.catch_warnings():  # copying the tree of arguments warns of torch's own deprecated class
            warnings.simplefilter("ignore", FutureWarning)
            return Exported(copy.deepcopy(self.program, memo), self.size, self.origin)

    def files(self) -> dict[str, bytes]:
        """The program that it came from with the weights of now, as a `.pt2` file."""
        here = self.program.state_dict()
        if self.origin is None or here.keys() != self.origin.state_dict.keys():
            return {}
        program = torch.export.load(io.BytesIO(_saved(self.origin)))  # a copy: copying it otherwise renames its inputs
        with torch.no_grad():
            for name, tensor in program.state_dict.items():
                tensor.copy_(here[name])
        return {"model.pt2": _saved(program)}


def _saved(program: Any) -> bytes:
    written = io.BytesIO()
    torch.export.save(program, written)
    return written.getvalue()


def load(path: Path, asked: Options) -> nn.Module:
    """The exported module; programs of a fixed batch size are called as often as needed.

    Raises UntrustedFile where the file would run code (unless `trust_pickle`), CorruptFile, and BadTarget where the
    program takes other than one input.
    """
    if not asked.trust_pickle:
        check_exported(path)
    try:
        program = torch.export.load(path)
    except Exception as error:  # damaged files make it raise nearly anything
        raise corrupt(path, "a torch.export file") from error
    names = program.graph_signature.user_inputs
    if len(names) != 1:
        raise BadTarget(f"{path} takes {len(names)} inputs: export a model that takes one tensor [rows, ...].")
    # guards repeat the shape checks that Exported makes true, and are compiled from the file's text
    unguarded = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
    module = program.module(**unguarded)
    return Exported(module, _batch(program, str(names[0])), program)


def _batch(program: Any, name: str) -> int | None:
    """The number of rows that the program was exported for; None where any number will do."""
    node = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name == name)
    rows = node.meta["val"].shape[0]
    return rows if isinstance(rows, int) else None
