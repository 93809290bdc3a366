"""What a `torch.export` file would do when it is loaded, found out without loading it.

`torch.export.load` unpickles some entries, calls any function of the torch module that the graph names, evaluates
shape expressions as Python, and starts compiled code where there is some. A plain exported model needs none of that:
tensors as raw bytes, calls of registered operators, symbols and arithmetic. Anything else is refused.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vauban.artifacts.loading import corrupt
from vauban.schema.errors import UntrustedFile

_ARITHMETIC = "getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_"
CALLABLE = re.compile(
    r"torch\.ops\.(aten|prim|prims|quantized_decomposed|torchvision)\.[A-Za-z_]\w*\.\w+"
    rf"|_operator\.({_ARITHMETIC})|math\.\w+|torch\.sym_\w+|torch\._C\._set_grad_enabled"
    r"|torch\.ops\.higher_order\.[a-z]\w*"
)
SYMBOL = re.compile(r"Symbol\('[A-Za-z]+\d+'(, ?[a-z]+=(True|False))*\)")
EXPRESSION = re.compile(r"(([A-Z][A-Za-z]*|[A-Za-z]+\d+|oo|\d+|\d+\.\d+)|[\s+\-*/(),<>=])*")
NAME = re.compile(r"[\w.\- ]*")


def check_exported(path: Path) -> None:
    """Raise UntrustedFile naming what in a `.pt2` file would run code; CorruptFile where it is no such file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {name.partition("/")[2] or name: archive.read(name) for name in archive.namelist()}
        problem = next(_problems(entries), None)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError):
        raise corrupt(path, "a torch.export file") from None
    if not any(name.endswith((".json", "archive_format")) for name in entries):
        raise corrupt(path, "a torch.export file")
    if problem is not None:
        raise UntrustedFile(
            f"{path} {problem}, which can run code when it is loaded: export the model anew with torch.export.save, or "
            "say --trust-pickle if you trust where it comes from."
        )


def _problems(entries: dict[str, bytes]) -> Iterator[str]:
    for name, content in entries.items():
        if "aotinductor" in name:
            yield "holds compiled code"
        if re.search(r"(custom_obj|opaque_obj)[^/]*$", name):
            yield f"holds a Python object ({name})"
        if name.endswith(".pt") and not _weights_only(content):
            yield f"holds a pickle of Python objects ({name})"
        if name.endswith(".json"):
            yield from _in_json(json.loads(content), entries, name)


def _weights_only(content: bytes) -> bool:
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # damaged or hostile: neither is loaded
        return not content
    return True


def _in_json(tree: Any, entries: dict[str, bytes], place: str) -> Iterator[str]:
    """Every mapping in the tree whose words would be called, evaluated or unpickled."""
    for node in _mappings(tree):
        target, expression, name = node.get("target"), node.get("expr_str"), node.get("name")
        if isinstance(target, str) and "inputs" in node and not CALLABLE.fullmatch(target):
            yield f"calls {target[:80]}"
        if isinstance(expression, str) and not _harmless(expression):
            yield f"evaluates the expression {expression[:80]!r}"
        if isinstance(name, str) and not NAME.fullmatch(name):
            yield f"names a value {name[:80]!r}"
        if node.get("use_pickle") and not _weights_only(_entry(entries, place, str(node.get("path_name")))):
            yield f"holds a pickle of Python objects ({node.get('path_name')})"


def _entry(entries: dict[str, bytes], place: str, name: str) -> bytes:
    return entries[f"{place.rpartition('/')[0]}/{name}"]


def _harmless(expression: str) -> bool:
    return "__" not in expression and EXPRESSION.fullmatch(SYMBOL.sub("1", expression)) is not None


def _mappings(tree: Any) -> Iterator[dict[str, Any]]:
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield node
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)
