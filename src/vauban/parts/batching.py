"""How many rows go through the model at once.

Large batches are slow on a CPU: activations above 32 MB are mapped, page-faulted and thrown away at every layer (up to
2.7 times the time, measured), small ones spend their time on starting and joining threads. The rule keeps the largest
activation at about half of that, and depends on shapes alone, so that it is the same on every run.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vauban.core.target import Target, TorchBacked

CACHE_BYTES = 16 * 2**20
SMALLEST, LARGEST = 16, 1024
GRAIN = 8
"""Matrix kernels treat the last few rows of a batch by other code, which rounds differently. Filled up to a multiple of
this, every row is rounded alike in any batch, so that results agree to the last bit."""

UNHEARD = 32
"""The largest activation of TorchScript, whose layers cannot be listened to, in sizes of the input: a first layer of 32 channels."""


def slices(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of `size` rows, the last one shorter."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def filled(x: Tensor, multiple: int) -> Tensor:
    """`x` `[m, ...]` with its first row repeated at the end until m is a multiple."""
    short = -len(x) % multiple
    return torch.cat([x, x[:1].expand(short, *x.shape[1:])]) if short else x


def grain(target: Target) -> int:
    """GRAIN for models that run here; 1 for others, where rows added to fill a batch would be real queries."""
    return GRAIN if isinstance(target, TorchBacked) else 1


def micro_batch(target: Target, x: Tensor) -> int:
    """A power of two in [16, 1024] so that the largest activation stays near CACHE_BYTES; no cut on other devices."""
    if x.device.type != "cpu":
        return max(len(x), 1)
    bytes_per_row = max(_largest_activation(target, x[:1]), x[0].numel() * x.element_size(), 1)
    size = SMALLEST
    while size < LARGEST and 2 * size * bytes_per_row <= CACHE_BYTES:
        size *= 2
    return size


def _largest_activation(target: Target, row: Tensor) -> int:
    if not isinstance(target, TorchBacked):
        return 0
    largest = 0

    def record(_module: nn.Module, _args: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() * output.element_size())

    parts = list(target.module.modules())
    heard = [part for part in parts if not isinstance(part, torch.jit.ScriptModule)]
    hooks = [part.register_forward_hook(record) for part in heard]
    try:
        with torch.no_grad():
            target.forward(row)
    finally:
        for hook in hooks:
            hook.remove()
    unheard = UNHEARD * row.numel() * row.element_size() if len(heard) < len(parts) else 0
    return max(largest, unheard)
