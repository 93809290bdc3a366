"""Rows through a target in micro-batches, each rounded as in any batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vauban.core.target import Outputs, Target, TorchBacked
from vauban.parts.batching import micro_batch

__all__ = ["answers", "filled", "grain", "micro_batch", "slices"]


def slices(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of `size` rows, the last one shorter."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


GRAIN = 8
"""Matrix kernels treat the last few rows of a batch by other code, which rounds differently. Filled up to a multiple of
this, every row is rounded alike in any batch, so that results agree to the last bit."""


def grain(target: Target) -> int:
    """GRAIN for models that run here; 1 for others, where rows added to fill a batch would be real queries."""
    return GRAIN if isinstance(target, TorchBacked) else 1


def filled(x: Tensor, multiple: int) -> Tensor:
    """`x` `[m, ...]` with its first row repeated at the end until m is a multiple."""
    short = -len(x) % multiple
    return torch.cat([x, x[:1].expand(short, *x.shape[1:])]) if short else x


def answers(target: Target, x: Tensor, size: int | None = None) -> Outputs:
    """The target's answers to `x` `[n, ...]`, without gradients, in micro-batches, each row rounded as in any batch."""
    size = size or micro_batch(target, x)
    multiple = grain(target)
    with torch.no_grad():
        parts = [target.forward(filled(x[cut], multiple))[: cut.stop - cut.start] for cut in slices(len(x), size)]
    return Outputs(torch.cat([part.values for part in parts]), parts[0].kind)
