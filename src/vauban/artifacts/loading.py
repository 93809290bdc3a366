"""Tensors out of model files, without running anything that stands in them."""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vauban.schema.errors import BadTarget, CorruptFile, UntrustedFile

NESTED = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts put the state dict."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a `.safetensors` file or in a weights-only `.pt`, `.pth` file.

    Raises UntrustedFile where it is a pickle that would run code, CorruptFile where it is damaged or something else,
    BadTarget where it holds no state dict. Never falls back to a loader that runs code.
    """
    loaded = _safetensors(path) if path.suffix.lower() == ".safetensors" else _weights_only(path)
    return state_dict(loaded, path)


def state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The mapping of names to tensors in what was loaded, also where it is nested under a usual key."""
    nested = [loaded] + [loaded[key] for key in NESTED if isinstance(loaded, dict) and key in loaded]
    for candidate in nested:
        if isinstance(candidate, dict) and candidate and all(isinstance(v, Tensor) for v in candidate.values()):
            return candidate
    keys = f"the keys {', '.join(map(str, list(loaded)[:5]))}" if loaded else "nothing"
    held = keys if isinstance(loaded, dict) else type(loaded).__name__
    raise BadTarget(f"{path} holds {held}, not a state dict: save it with torch.save(model.state_dict(), ...).")


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError):
        raise corrupt(path, "a .safetensors file") from None


def _weights_only(path: Path) -> Any:
    try:
        with warnings.catch_warnings():  # of a TorchScript archive torch says how to run it; it is refused below
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # damaged files make torch raise nearly anything
        reason = why_untrusted(path)
    if reason is None:
        raise corrupt(path, "a PyTorch file")
    raise UntrustedFile(
        f"{path} {reason}, which can run code when it is loaded: save the weights alone "
        "(torch.save(model.state_dict(), ...) or safetensors) and give --factory, or say --trust-pickle if you trust it."
    )


def why_untrusted(path: Path) -> str | None:
    """What in the file could run code; None where it is not even a whole pickle or archive of one."""
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                if any(name.endswith("/constants.pkl") for name in names):
                    return "is a TorchScript archive"
                pickles = [archive.read(name) for name in names if name.endswith("data.pkl")]
        except (zipfile.BadZipFile, OSError, EOFError):
            return None
    else:
        pickles = [path.read_bytes()]
    imported = [name for stream in pickles for name in imports(stream)]
    unusual = [name for name in imported if not name.startswith(("torch.", "collections.")) or "nn.modules" in name]
    if unusual:
        return f"is a pickle of Python objects (it names {', '.join(sorted(set(unusual))[:3])})"
    return "is a pickle" if pickles and not zipfile.is_zipfile(path) and whole_pickle(pickles[0]) else None


def whole_pickle(stream: bytes) -> bool:
    """Whether `stream` begins with a whole pickle. Only read, never run."""
    try:
        return any(opcode.name == "STOP" for opcode, _, _ in pickletools.genops(stream))
    except Exception:  # pickletools raises all sorts of errors on foreign bytes
        return False


def imports(stream: bytes) -> list[str]:
    """Names that a pickle imports, as far as it can be read. Only read, never run."""
    found: list[str] = []
    words: list[str] = []
    if not whole_pickle(stream):
        return found
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            found.append(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            found.append(".".join(words[-2:]))
        elif isinstance(argument, str):
            words.append(argument)
    return found


def corrupt(path: Path, what: str) -> CorruptFile:
    return CorruptFile(f"{path} cannot be read as {what}: it is damaged or something else; write it again.")
