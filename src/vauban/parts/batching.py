"""How many rows go through the model at once.

Large batches are slow on a CPU: activations above 32 MB are mapped, page-faulted and thrown away at every layer (up to
2.7 times the time, measured), small ones spend their time on starting and joining threads. The rule keeps the largest
activation at about half of that, and depends on shapes alone, so that it is the same on every run.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vauban.core.target import Target, TorchBacked

CACHE_BYTES = 16 * 2**20
SMALLEST, LARGEST = 16, 1024


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

    hooks = [part.register_forward_hook(record) for part in target.module.modules()]
    try:
        with torch.no_grad():
            target.forward(row)
    finally:
        for hook in hooks:
            hook.remove()
    return largest
