"""In which order of memory a module is fast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def memory_format(module: nn.Module, x: Tensor) -> torch.memory_format:
    """`channels_last` for convolutional modules on a CPU, otherwise `preserve_format`.

    Convolutions and pooling take about a quarter less time so (bench/oracle.py measures it), and the weights stay as
    they are. A module may depend on the order of memory (a `view` that joins axes raises), so one row is tried in both
    orders: answers and gradients must agree but for rounding. The module is in evaluation mode; `x`: inputs `[n, channels, height, width]`; the global
    random state is left as found.
    """
    plain = torch.preserve_format
    if x.device.type != "cpu" or not any(isinstance(part, nn.Conv2d) for part in module.modules()):
        return plain
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            tried = [_answer(module, x[:1].detach(), order) for order in (torch.contiguous_format, torch.channels_last)]
    except Exception:  # it minds the order, or raises this again where it is used and is reported there
        return plain
    return torch.channels_last if all(map(_close, *tried)) else plain


def ordered(x: Tensor, order: torch.memory_format) -> Tensor:
    """`x` in that order of memory; gradients come back in the usual one, for callers may join their axes."""
    if order == torch.preserve_format:
        return x
    changed: Tensor = _Reorder.apply(x, order)
    return changed


class _Reorder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: torch.memory_format) -> Tensor:
        return x.clone(memory_format=order)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        return slopes[0].contiguous(), None


def _answer(module: nn.Module, row: Tensor, order: torch.memory_format) -> tuple[Tensor, Tensor]:
    leaf = row.clone(memory_format=order).requires_grad_(True)
    raw = module(leaf.clone(memory_format=order))  # it may begin with a layer that works in place
    values: Tensor = getattr(raw, "logits", raw)
    (slope,) = torch.autograd.grad(values.square().sum(), leaf)
    return values.detach(), slope


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() <= 1e-4 * a.abs().max() + 1e-12).all())
