"""What every attribution method is given: a score to explain, and what it may use besides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from vauban.core.rng import Rng
from vauban.parts.batching import GRAIN, filled, slices

Score = Callable[[Tensor, Tensor], Tensor]
"""(points `[m, ...]`, numbers of the rows that they belong to, int64 `[m]`) -> `[m]`: what is explained."""


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a method may use besides the score."""

    baseline: Tensor
    """An input that says nothing, `[...]` or `[n, ...]`, in the units of the data."""
    rng: Rng
    """Streams for the n rows."""
    width: Tensor | float = 1.0
    """How far apart the smallest and the largest valid input are, broadcastable to one row."""
    module: nn.Module | None = None
    """The network behind the score, for methods that look inside."""
    batch: int = 64
    """Points that go through the model at once; attributions do not depend on it."""
    multiple: int = GRAIN
    """Points are filled up to a multiple of this many, so that all are rounded alike; 1 where points are real queries."""


class Method(Protocol):
    """A way to tell which parts of an input a score rests on. A frozen, keyword-only dataclass of its settings."""

    def __call__(self, score: Score, x: Tensor, means: Means) -> Tensor:
        """The attribution of every entry of `x` `[n, ...]`, same shape."""
        ...


def against(means: Means, x: Tensor) -> Tensor:
    """The baseline for every row of `x`, same shape, device and type."""
    return torch.as_tensor(means.baseline).to(x).expand_as(x)


def blocks(rows: int, points: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Rows, and which of the `points` of each row, at most about `most` at a time.

    A row's points are cut alike whatever other rows there are: several whole rows at a time where they fit, else parts
    of one row.
    """
    for cut in slices(rows, max(1, most // points)):
        for part in slices(points, min(points, most)):
            yield cut, part


def numbers(cut: slice, each: int, like: Tensor) -> Tensor:
    """The row number of each of `each` points a row, int64 `[rows * each]`."""
    return torch.arange(cut.start, cut.stop, device=like.device).repeat_interleave(each)


def values(score: Score, points: Tensor, rows: Tensor, means: Means) -> Tensor:
    """The score at `points` `[m, ...]`, without gradients, each rounded as in any batch; `[m]`."""
    with torch.no_grad():
        return score(filled(points, means.multiple), filled(rows, means.multiple))[: len(points)].detach()


def scores(score: Score, x: Tensor, means: Means) -> Tensor:
    """The score of every row of `x` `[n, ...]`, in parts; `[n]`."""
    parts = [
        values(score, x[cut], torch.arange(cut.start, cut.stop, device=x.device), means)
        for cut in slices(len(x), max(1, means.batch))
    ]
    return torch.cat(parts) if parts else x.new_zeros(0)
