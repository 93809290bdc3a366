"""What a module is kept from for a while: training mode, gradients of its weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


def in_training(module: nn.Module) -> list[nn.Module]:
    """The parts of a module that are in training mode; those of frozen TorchScript have no mode at all."""
    return [part for part in module.modules() if getattr(part, "training", False)]


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every submodule's own mode put back outside.

    The flags are set directly: `eval()` also calls overridden `train()` methods, whose effects nobody could undo.
    """
    training = in_training(module)
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextlib.contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """No gradients for the weights inside; those that had them have them again outside."""
    learnt = [p for p in module.parameters() if p.requires_grad]
    try:
        for p in learnt:
            p.requires_grad_(False)
        yield
    finally:
        for p in learnt:
            p.requires_grad_(True)
