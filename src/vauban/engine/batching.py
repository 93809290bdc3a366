"""Rows through a target in micro-batches, each rounded as in any batch."""

from __future__ import annotations

import torch
from torch import Tensor

from vauban.core.target import Outputs, Target
from vauban.parts.batching import filled, grain, micro_batch, slices
from vauban.parts.frames import Render, as_is

__all__ = ["answers", "filled", "grain", "micro_batch", "slices"]


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
