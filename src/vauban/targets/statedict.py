"""Weights from a file, put into a module that a factory makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vauban.artifacts.loading import read_tensors, state_dict, why_untrusted
from vauban.schema.errors import BadTarget
from vauban.targets.options import Options
from vauban.targets.pickles import unpickled_by_torch


def load(path: Path, asked: Options) -> nn.Module:
    """The factory's module with the weights of a `.safetensors` or state-dict `.pt`, `.pth` file, in evaluation mode.

    With `trust_pickle`, a `.pt` or `.pth` file may hold a whole pickled module. Raises UntrustedFile, CorruptFile,
    and BadTarget where there is no factory or the weights do not fit what it makes.
    """
    tensors = _trusted(path) if asked.trust_pickle and path.suffix.lower() != ".safetensors" else read_tensors(path)
    if isinstance(tensors, nn.Module):
        return tensors.eval()
    if asked.factory is None:
        raise BadTarget(
            f"{path} holds weights without a model: give --factory module:callable (or file.py:callable) that makes it."
        )
    return fill(made(asked.factory), tensors, path)


def made(factory: Callable[[], Any]) -> nn.Module:
    """What the factory makes; raises BadTarget where that is no module."""
    try:
        module = factory()
    except Exception as error:  # a user's factory may raise anything
        said = " ".join(str(error).split())[:300]
        raise BadTarget(
            f"The factory failed ({type(error).__name__}: {said}): repair it; it is called without arguments."
        ) from error
    if not isinstance(module, nn.Module):
        raise BadTarget(f"The factory returned something of type {type(module).__name__}: it must return an nn.Module.")
    return module.eval()


def fill(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> nn.Module:
    """`module` with these weights; raises BadTarget naming what is missing, unexpected or of another shape."""
    tensors = _without_wrapper(tensors)
    wanted = module.state_dict()
    missing, unexpected = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    shapes = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    said = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    problems = [f"{what}: {_some(names)}" for what, names in said if names]
    if problems:
        raise BadTarget(
            f"{path} does not fit the factory's module ({'; '.join(problems)}): give the factory it was saved from."
        )
    module.load_state_dict(tensors)
    return module


def _without_wrapper(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefix that DataParallel and torch.compile put before all of them."""
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in tensors):
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _trusted(path: Path) -> nn.Module | dict[str, Tensor]:
    """Whatever the file holds, by the user's word that it may run code."""
    if why_untrusted(path) is None:
        return read_tensors(path)
    loaded = unpickled_by_torch(path)
    return loaded if isinstance(loaded, nn.Module) else state_dict(loaded, path)
