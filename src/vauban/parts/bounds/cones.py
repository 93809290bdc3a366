"""Bounds of many values that each see a small part of the input: the first layers of a convolutional network.

Pulling every value of a second convolution back on its own moves mostly zeros. Values that see the same few
activations (their cone) are bounded together instead: with lines of one slope, the coefficients of the input are a
fixed matrix times the slopes inside the cone, so that one product serves all rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from vauban.parts.bounds.crown import lines, undecided
from vauban.parts.bounds.graph import Graph
from vauban.parts.bounds.intervals import Bounds, Region, propagate, with_known
from vauban.parts.bounds.ops import Linear

_SINGLE = 2.0**-24
"""Rounding unit of float32."""
_ROWS = 128
"""Rows bounded at once."""
_BATCH = 256
"""Values pulled back at once while the cones are found."""
_HELD = 2**24
"""Coefficients held while the cones are found."""
_WORTH = 16
"""A cone's product may take this many multiplications per coefficient that would be pulled otherwise."""


@dataclass(frozen=True, eq=False)
class Cone:
    """`values` `[k]` (flat numbers in the node) that see the activations `seen` `[c]` and the features `features` `[w]`.

    `first` `[c, w]`: coefficients of the features in the activation's input; `second` `[k, c]`: of the activations in the
    values; `constant` `[c]` and `offset` `[k]`: their constants. `blocks` and `maps`: see `_blocked`.
    """

    values: Tensor
    seen: Tensor
    features: Tensor
    first: Tensor
    second: Tensor
    constant: Tensor
    offset: Tensor
    blocks: Tensor
    maps: Tensor


@dataclass(frozen=True, eq=False)
class Cones:
    """The cones of one node, and the one activation between it and the input."""

    at: int
    through: int
    parts: list[Cone]


def _chain(graph: Graph, at: int) -> list[int] | None:
    """The nodes from `at` back to the next activation or the input, if there is but one way."""
    path = [at]
    while graph.nodes[path[-1]].linear is not None:
        inputs = graph.nodes[path[-1]].inputs
        if len(inputs) != 1:
            return None
        path.append(inputs[0])
    return path


def straight(graph: Graph, at: int) -> bool:
    """Whether node `at` is reached from the input by linear nodes one after the other: its interval is exact."""
    path = _chain(graph, at)
    return path is not None and path[-1] == 0 and len(path) == 2


@dataclass(frozen=True, eq=False)
class _Sight:
    """What each value of a node sees at the end of its path, `[total, most]`: in rising order, with `width` and 0 for nothing."""

    places: Tensor
    coefficients: Tensor
    constants: Tensor
    """`[total]`."""
    width: int
    """Values there are at the end of the path."""


def _look(graph: Graph, path: list[int], like: Tensor, share: int = 1) -> _Sight | None:
    """None where one value of the path's first node sees more than `1 / share` of the path's end, or all together more
    than can be held."""
    total, width = (int(torch.Size(graph.nodes[i].shape).numel()) for i in (path[0], path[-1]))
    allowed = min(width // share, _HELD // total)
    op = graph.nodes[path[0]].linear
    known = op.windows(graph.nodes[path[1]].shape) if op is not None and len(path) == 2 else None
    if op is not None and known is not None:
        shape = graph.nodes[path[0]].shape
        offset = like.new_zeros(shape) if op.offset is None else op.offset.expand(shape)
        return _Sight(*known, offset.flatten(), width) if known[0].shape[1] <= allowed else None
    places, coefficients, constants = [], [], []
    for part in torch.arange(total, device=like.device).split(_BATCH):
        a, constant = _pull(graph, path, part, like)
        row, column = (a != 0).nonzero().unbind(1)
        counts = torch.bincount(row, minlength=len(part))
        most = int(counts.max())
        if most > allowed:
            return None
        at = row, torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        places.append(column.new_full((len(part), most), width).index_put(at, column))
        coefficients.append(a.new_zeros(len(part), most).index_put(at, a[row, column]))
        constants.append(constant)
    most = max(part.shape[1] for part in places)
    return _Sight(
        torch.cat([F.pad(part, (0, most - part.shape[1]), value=width) for part in places]),
        torch.cat([F.pad(part, (0, most - part.shape[1])) for part in coefficients]),
        torch.cat(constants),
        width,
    )


def _pull(graph: Graph, path: list[int], which: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients `[k, end of path]` and constants `[k]` of the chosen values of the path's first node."""
    shape = graph.nodes[path[0]].shape
    a = like.new_zeros(len(which), int(torch.Size(shape).numel())).scatter_(1, which[:, None], 1.0)
    a = a.reshape(-1, *shape)
    constant = like.new_zeros(len(which))
    for i, before in pairwise(path):
        op = graph.nodes[i].op
        assert isinstance(op, Linear)
        if op.offset is not None:
            constant = constant + a.flatten(1) @ op.offset.expand(graph.nodes[i].shape).flatten()
        (pulled,) = op.pull(a, [graph.nodes[before].shape])
        assert pulled is not None
        a = pulled
    return a.flatten(1), constant


def find(graph: Graph, at: int, like: Tensor) -> Cones | None:
    """The cones of node `at`; None where it does not lie one activation behind the input, or its cones are not small.

    `like` gives type and device.
    """
    outer = _chain(graph, at)
    if outer is None or outer[-1] == 0:
        return None
    through = outer[-1]
    inner = _chain(graph, graph.nodes[through].inputs[0])
    if inner is None or inner[-1] != 0:
        return None
    near = _look(graph, outer, like, share=4)
    if near is None:
        return None
    far = _look(graph, inner, like)
    if far is None:
        return None
    parts: list[Cone] = []
    for values in _alike(near):
        places = near.places[values[0]]
        there = places < near.width
        seen, second = places[there], near.coefficients[values][:, there]
        if not len(seen):
            return None
        first = like.new_zeros(len(seen), far.width + 1).scatter_(1, far.places[seen], far.coefficients[seen])
        used = (first[:, :-1] != 0).any(0).nonzero().flatten()
        if len(seen) * len(used) > _WORTH * (near.width + far.width):
            return None
        first = first[:, used]
        order, blocks, maps = (t.to(like.device) for t in _blocked(len(seen), first, second))
        offset = near.constants[values]
        parts.append(
            Cone(values, seen, used[order], first[:, order], second, far.constants[seen], offset, blocks, maps)
        )
    return Cones(at, through, parts)


def _alike(sight: _Sight) -> Iterator[Tensor]:
    """The values in groups that see the same."""
    groups: dict[bytes, list[int]] = {}
    for value, places in enumerate(sight.places.cpu().numpy()):
        groups.setdefault(places.tobytes(), []).append(value)
    for group in groups.values():
        yield torch.tensor(group, device=sight.places.device)


def tighten(graph: Graph, area: Region, found: Bounds, cones: Cones) -> Bounds:
    """Bounds of the cones' node from both sides, with parallel lines around the activation between."""
    at = cones.at
    around = lines(graph, cones.through, found, parallel=True)
    slope, down, up = (t.flatten(1) for t in (around.low_slope, around.low_offset, around.high_offset))
    low, high = found.low[at].flatten(1).clone(), found.high[at].flatten(1).clone()
    noise, open_ = found.noise[at].flatten(1), undecided(graph, at, found).flatten(1)
    for cone in cones.parts:
        view = area.columns(cone.features)
        size = view.size @ cone.first.abs().t()
        view = view.single()
        terms = cone.blocks.shape[1] + 2 * len(cone.features) + 32
        for rows in open_[:, cone.values].any(1).nonzero().flatten().split(_ROWS):
            s, lo, hi = slope[rows][:, cone.seen], down[rows][:, cone.seen], up[rows][:, cone.seen]
            least, most = view[rows].range(_coefficients(cone, s.float()))
            middle = (s * cone.constant + (lo + hi) / 2) @ cone.second.t() + cone.offset
            # float32 where the work is: a coefficient is a sum of products, a bound one of coefficients
            rounding = terms * _SINGLE * s.abs() * size[rows]
            spare = ((hi - lo) / 2 + rounding) @ cone.second.abs().t() + noise[rows][:, cone.values]
            at_rows = rows[:, None], cone.values
            low[at_rows] = torch.maximum(low[at_rows], least + middle - spare)
            high[at_rows] = torch.minimum(high[at_rows], most + middle + spare)
    shape = graph.nodes[at].shape
    return propagate(graph, area, with_known(found, at, low.reshape(-1, *shape), high.reshape(-1, *shape)), at)


def _coefficients(cone: Cone, slope: Tensor) -> Tensor:
    """Of the features in the values, `[n, k, w]`, for the slopes `[n, c]` of a row."""
    n, k = len(slope), len(cone.values)
    blocks, depth, size = len(cone.blocks), cone.blocks.shape[1], cone.maps.shape[2] // k
    wide = torch.cat([slope, slope.new_zeros(n, 1)], 1)
    near = wide[:, cone.blocks.flatten()].reshape(n, blocks, depth).transpose(0, 1)
    # [blocks, n, k * size] -> [n, k, blocks * size]
    made = torch.bmm(near, cone.maps).reshape(blocks, n, k, size).permute(1, 2, 0, 3)
    return made.reshape(n, k, blocks * size)


def _blocked(seen: int, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The product of `second` and `first` in blocks of features that depend on the same activations.

    Returns (order of the features `[blocks * size]`, activations of a block `[blocks, depth]` with `seen` for none, and
    maps `[blocks, depth, k * size]` in float32). A block that is short of features repeats one with coefficients 0.
    """
    groups: dict[bytes, list[int]] = {}
    used = first != 0
    for feature, mask in enumerate(used.t().cpu().numpy()):
        groups.setdefault(mask.tobytes(), []).append(feature)
    size, depth = max(map(len, groups.values())), int(used.sum(0).max())
    order, blocks = [], torch.full((len(groups), depth), seen)
    maps = torch.zeros(len(groups), depth, len(second), size)
    for b, features in enumerate(groups.values()):
        near = used[:, features[0]].nonzero().flatten()
        blocks[b, : len(near)] = near
        product = second[:, near].t()[:, :, None] * first[near][:, None, features]
        maps[b, : len(near), :, : len(features)] = product.float()
        order += features + features[:1] * (size - len(features))
    return torch.tensor(order), blocks, maps.flatten(2)
