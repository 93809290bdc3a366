"""Linear bounds propagated backwards (CROWN)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vauban.parts.bounds.graph import Graph
from vauban.parts.bounds.intervals import ULP, Bounds, Region, dot, propagate, with_known
from vauban.parts.bounds.ops import Bend, Linear, Smooth

PAIRS = 192
"""Linear bounds pulled through the graph at once: so few that their coefficients stay in the cache."""


@dataclass(frozen=True, eq=False)
class Lines:
    """Two straight lines around one activation, for each row or pair: `slope * t + offset`, all `[n, *shape]`."""

    low_slope: Tensor
    low_offset: Tensor
    high_slope: Tensor
    high_offset: Tensor

    def __getitem__(self, rows: Tensor) -> Lines:
        return Lines(self.low_slope[rows], self.low_offset[rows], self.high_slope[rows], self.high_offset[rows])


Slopes = tuple[Tensor, Tensor]
"""Of the lower and of the upper line."""


def lines(graph: Graph, at: int, found: Bounds, free: Slopes | None = None, parallel: bool = False) -> Lines:
    """The lines around activation `at`. `free`: slopes to use, clamped to what is sound. `parallel`: both lines with
    the slope of the chord, which lets one pass bound from both sides."""
    node = graph.nodes[at]
    op, before = node.bent, node.inputs[0]
    assert op is not None
    low, high = found.low[before], found.high[before]
    size = torch.maximum(low.abs(), high.abs())
    grown = op.steepness * size + (0 if isinstance(op, Bend) else 1)
    # rounding of the model, of these lines, and of the sums into which their offsets go
    rounding = op.ulps * graph.unit + (64 + 4 * low[0].numel()) * ULP if len(low) else 0.0
    slack = op.steepness * found.noise[before] + rounding * grown
    made = _LINES[type(op)](op, low, high, free, parallel)
    return Lines(made.low_slope, made.low_offset - slack, made.high_slope, made.high_offset + slack)


def _bend_lines(op: Bend, low: Tensor, high: Tensor, free: Slopes | None, parallel: bool) -> Lines:
    above, below = op.above.to(low).expand_as(low), op.below.to(low).expand_as(low)
    crossing = (low < 0) & (high > 0)
    width = torch.where(crossing, high - low, torch.ones_like(low))
    straight = torch.where(low >= 0, above, below)
    chord = torch.where(crossing, (above * high - below * low) / width, straight)
    offset = torch.where(crossing, above * high - chord * high, torch.zeros_like(low))
    cup = above >= below
    low_offset, high_offset = torch.where(cup, 0.0, offset), torch.where(cup, offset, 0.0)
    if parallel:
        return Lines(chord, low_offset, chord, high_offset)
    # the other line touches the bend and may have any slope between the two: by default the longer side's, which
    # cuts off less
    under = over = torch.where(high > -low, above, below)
    if free is not None:
        least, most = torch.minimum(above, below), torch.maximum(above, below)
        under, over = free[0].maximum(least).minimum(most), free[1].maximum(least).minimum(most)
    return Lines(
        torch.where(crossing & cup, under, chord), low_offset, torch.where(crossing & ~cup, over, chord), high_offset
    )


def _smooth_lines(op: Smooth, low: Tensor, high: Tensor, free: Slopes | None, parallel: bool) -> Lines:
    under, over = smooth_slopes(op, low, high) if free is None or parallel else free
    down, up = op.room(low, high, under, over)
    return Lines(under, down, over, up)


def smooth_slopes(op: Smooth, low: Tensor, high: Tensor) -> Slopes:
    """The chord's slope, for both sides."""
    width = high - low
    middle = (low + high) / 2
    tiny = 1e-6
    ends = torch.where(width > tiny, low, middle - tiny), torch.where(width > tiny, high, middle + tiny)
    chord = (op.function(ends[1]) - op.function(ends[0])) / (ends[1] - ends[0])
    return chord, chord


_LINES: Mapping[type, Callable[[Any, Tensor, Tensor, Slopes | None, bool], Lines]] = {
    Bend: _bend_lines,
    Smooth: _smooth_lines,
}


@dataclass(frozen=True, eq=False)
class Context:
    """What a backward pass needs: lines of the activations, and intervals where it stops short of the input."""

    graph: Graph
    area: Region
    lines: Mapping[int, Lines]
    stops: Mapping[int, Slopes] = field(default_factory=dict)
    """By activation without lines: its lowest and highest values, where a pass ends."""

    def __getitem__(self, rows: Tensor) -> Context:
        made = {i: each[rows] for i, each in self.lines.items()}
        stops = {i: (low[rows], high[rows]) for i, (low, high) in self.stops.items()}
        return Context(self.graph, self.area[rows], made, stops)


def context(graph: Graph, area: Region, bounds: Bounds, before: int | None = None, parallel: bool = False) -> Context:
    """All activations relaxed with the default slopes (those up to a node, where one is given)."""
    at_most = graph.last if before is None else before
    return Context(graph, area, {i: lines(graph, i, bounds, parallel=parallel) for i in graph.bends if i <= at_most})


def stopped(graph: Graph, area: Region, bounds: Bounds) -> Context:
    """Nothing relaxed: a pass ends at the nearest activations, in their intervals."""
    return Context(graph, area, {}, {i: (bounds.low[i], bounds.high[i]) for i in graph.bends})


@dataclass(frozen=True, eq=False)
class Lowest:
    """`value` `[n, k]`: lower bounds. `entering` `[n, k, *input]`: coefficients of the input, None if stopped short."""

    value: Tensor
    entering: Tensor | None


Split = Mapping[int, Tensor]
"""By activation: what to take from the coefficients of its input, `[n, k, *shape]` (the multiplier of a split)."""


def lower(
    where: Context, a: Tensor, at: int, split: Split | None = None, watch: dict[int, Tensor] | None = None
) -> Lowest:
    """Lower bounds `[n, k]` of `a . value of node at`, for k functions `a` `[n, k, *shape of at]` of every row.

    Rounding of node `at` itself is not charged here (see `charge`). `watch` is given the coefficients of every
    activation's output.
    """
    graph, (n, k) = where.graph, a.shape[:2]
    pending: dict[int, Tensor] = {at: a}
    value = a.new_zeros(n, k)
    entering: Tensor | None = None
    for i in range(at, -1, -1):
        c = pending.pop(i, None)
        if c is None:
            continue
        node = graph.nodes[i]
        if i == 0:
            value, entering = value + where.area.smallest(c), c
        elif isinstance(node.op, Linear):
            if node.op.offset is not None:
                value = value + c.flatten(2) @ node.op.offset.expand(node.shape).flatten()
            flat = c.flatten(0, 1)
            for j, part in zip(
                node.inputs, node.op.pull(flat, [graph.nodes[j].shape for j in node.inputs]), strict=True
            ):
                _gather(pending, j, None if part is None else part.unflatten(0, (n, k)))
        elif i in where.lines:
            made = where.lines[i]
            if watch is not None:
                watch[i] = c
            rising = c.clamp_min(0)
            value = value + dot(c, made.high_offset) + dot(rising, made.low_offset - made.high_offset)
            part = c * made.high_slope[:, None]
            if made.low_slope is not made.high_slope:
                part = torch.addcmul(part, rising, (made.low_slope - made.high_slope)[:, None])
            if split is not None and i in split:
                part = part - split[i]
            _gather(pending, node.inputs[0], part)
        else:
            value = value + _stopped(*where.stops[i], c)
    return Lowest(value, entering)


def _gather(pending: dict[int, Tensor], at: int, part: Tensor | None) -> None:
    if part is not None:
        pending[at] = pending[at] + part if at in pending else part


def _stopped(low: Tensor, high: Tensor, c: Tensor) -> Tensor:
    # a margin for the rounding of these sums
    wide = (4 * low[0].numel() + 64) * ULP * torch.maximum(low.abs(), high.abs())
    return dot(c, high + wide) + dot(c.clamp_min(0), low - high - 2 * wide)


def charge(a: Tensor, noise: Tensor) -> Tensor:
    """What rounding may take from `a . value` of a node with this noise, `[n, k]`."""
    return dot(a.abs(), noise)


def refine(graph: Graph, area: Region, found: Bounds, at: int, parallel: bool = False) -> Bounds:
    """Tighter bounds of node `at` (the input of an activation), where its interval leaves the activation open."""
    open_ = undecided(graph, at, found).flatten(1)
    counts = open_.sum(1)
    if not len(counts) or not int(counts.max()):
        return found
    made = context(graph, area, found, at - 1, parallel)
    low, high = found.low[at].flatten(1).clone(), found.high[at].flatten(1).clone()
    noise, shape = found.noise[at].flatten(1), graph.nodes[at].shape
    for rows, which in _groups(open_, counts):
        a = low.new_zeros(*which.shape, low.shape[1]).scatter_(2, which[:, :, None], 1.0)
        a = a.reshape(*which.shape, *shape)
        part = made[rows]
        own = noise[rows].gather(1, which)
        least = lower(part, a, at).value - own
        most = -lower(part, -a, at).value + own
        low[rows] = low[rows].scatter_reduce(1, which, least, "amax")
        high[rows] = high[rows].scatter_reduce(1, which, most, "amin")
    found = with_known(found, at, low.reshape(-1, *shape), high.reshape(-1, *shape))
    return propagate(graph, area, found, at)


def _groups(open_: Tensor, counts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows with about equally many open values together: (rows `[n]`, their values `[n, k]`, some repeated)."""
    order = counts.argsort()
    order = order[counts[order] > 0]
    at = 0
    while at < len(order):
        ahead = counts[order[at:]]
        count = torch.arange(1, len(ahead) + 1, device=ahead.device)
        take = max(1, int((count * ahead <= PAIRS).sum()))
        rows = order[at : at + take]
        at += take
        k = int(counts[rows].max())
        which = open_[rows].to(torch.uint8).topk(k, 1).indices
        first = which[:, :1]
        chosen = open_[rows].gather(1, which)
        which = torch.where(chosen, which, first)
        for part in which.split(max(1, PAIRS // len(rows)), 1):
            yield rows, part


def undecided(graph: Graph, at: int, found: Bounds) -> Tensor:
    """Which values of node `at` an activation bends, bool `[n, *shape]`."""
    low, high = found.low[at], found.high[at]
    if any(isinstance(graph.nodes[i].op, Smooth) for i in graph.bends if graph.nodes[i].inputs[0] == at):
        return high - low > 1e-9
    return (low < 0) & (high > 0)


def before_bends(graph: Graph) -> list[int]:
    """The nodes whose bounds matter: inputs of activations, in order, the model's own input left out."""
    return sorted({graph.nodes[i].inputs[0] for i in graph.bends} - {0})
