"""What enters the layers of a module while it answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def holders(module: nn.Module) -> list[nn.Module]:
    """Modules that hold parameters of their own and whose calls can be listened to.

    Those of an exported graph only store them, and those of TorchScript are called out of Python's sight.
    """
    found = (part for part in module.modules() if any(True for _ in part.parameters(recurse=False)))
    return [
        part
        for part in found
        if not isinstance(part, torch.jit.ScriptModule) and type(part).forward is not nn.Module.forward
    ]


@contextlib.contextmanager
def listening(layers: list[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """What enters each of these layers, the last call last; the hooks are gone afterwards."""
    heard: dict[nn.Module, Tensor] = {}

    def listen(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        heard.pop(layer, None)
        if inputs and isinstance(inputs[0], Tensor):
            heard[layer] = inputs[0]

    handles: list[RemovableHandle] = []
    try:
        for layer in layers:
            handles.append(layer.register_forward_pre_hook(listen))
        yield heard
    finally:
        for handle in handles:
            handle.remove()
