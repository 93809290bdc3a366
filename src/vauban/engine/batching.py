"""Rows through a target in micro-batches, each rounded as in any batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vauban.core.target import Outputs, Target, TorchBacked
from vauban.parts.batching import micro_batch
from vauban.parts.frames import Render, as_is

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


def answers(
    target: Target, x: Tensor, size: int | None = None, render: Render = as_is, rows: Tensor | None = None
) -> Outputs:
    """The target's answers to `x` `[n, ...]`, without gradients, in micro-batches, each row rounded as in any batch.

    `render` makes inputs of points `x` of rows `rows` (0 to n - 1 where None).
    """
    rows = torch.arange(len(x), device=x.device) if rows is None else rows
    if size is None:
        first = render(x[:1], rows[:1])
        size = micro_batch(target, first.expand(len(x), *first.shape[1:]))
    multiple = grain(target)

    def asked(cut: slice) -> Outputs:
        return target.forward(render(filled(x[cut], multiple), filled(rows[cut], multiple)))[: cut.stop - cut.start]

    with torch.no_grad():
        parts = [asked(cut) for cut in slices(len(x), size)]
    return Outputs(torch.cat([part.values for part in parts]), parts[0].kind)
