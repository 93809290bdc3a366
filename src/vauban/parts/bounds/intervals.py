"""Where inputs may lie, and intervals of every value in the model (interval bound propagation)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vauban.parts.bounds.graph import Graph
from vauban.parts.bounds.ops import Bend, Linear

ULP = 2.0**-53
"""Rounding unit of the arithmetic in which bounds are computed."""
_HALVINGS = 24


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sums of products `[n, k]` of `a` `[n, k, ...]` with `b` `[n, ...]`, the same for all k."""
    return torch.bmm(a.flatten(2), b.flatten(1)[:, :, None])[:, :, 0]


@dataclass(frozen=True, eq=False)
class Region:
    """For each row, all inputs within a radius of `x` in a norm of the given order and inside a box.

    `low` and `high` `[n, ...]`: the smallest box around the ball and inside the valid box, float64. `radius` `[n]`.
    """

    x: Tensor
    radius: Tensor
    order: str
    low: Tensor
    high: Tensor

    def __getitem__(self, rows: Tensor) -> Region:
        return Region(self.x[rows], self.radius[rows], self.order, self.low[rows], self.high[rows])

    def __len__(self) -> int:
        return len(self.x)

    @property
    def middle(self) -> Tensor:
        return (self.low + self.high) / 2

    @property
    def reach(self) -> Tensor:
        return (self.high - self.low) / 2

    @property
    def size(self) -> Tensor:
        """The largest absolute value of every feature, `[n, ...]`, plus the radius (a dual norm multiplies by it)."""
        wide = torch.maximum(self.low.abs(), self.high.abs())
        return wide + self.radius.reshape(-1, *(1,) * (wide.dim() - 1))

    def single(self) -> Region:
        """In float32; whoever uses it has to charge the rounding."""
        return Region(self.x.float(), self.radius.float(), self.order, self.low.float(), self.high.float())

    def smallest(self, a: Tensor) -> Tensor:
        """Lower bounds `[n, k]` of `a . z` over the region, for `a` `[n, k, ...]` (exact up to rounding)."""
        return _SMALLEST[self.order](self, a.flatten(2))

    def range(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of `a . z` from both sides, `[n, k]` each."""
        a = a.flatten(2)
        return _RANGE.get(self.order, _two_sides)(self, a)

    def columns(self, which: Tensor) -> Region:
        """The same region seen by linear functions of some (flat) features alone."""
        x, low, high = (t.flatten(1)[:, which] for t in (self.x, self.low, self.high))
        return replace(self, x=x, low=low, high=high)


def region(x: Tensor, order: str, radius: float | Tensor, low: Any, high: Any) -> Region:
    """The inputs within `radius` of the rows of `x`, inside the box of `low` and `high` (broadcast, may be infinite)."""
    x = x.detach().double()
    r = torch.as_tensor(radius, dtype=torch.float64, device=x.device).expand(len(x))
    per = r.reshape(-1, *(1,) * (x.dim() - 1))
    least, most = (torch.as_tensor(v, dtype=torch.float64, device=x.device) for v in (low, high))
    # the sum and the difference are rounded: one unit further out
    down = torch.nextafter(x - per, torch.full_like(x, -torch.inf)).maximum(least.expand_as(x))
    up = torch.nextafter(x + per, torch.full_like(x, torch.inf)).minimum(most.expand_as(x))
    # an input outside the box stays where it is: the region is never empty
    return Region(x, r, order, down.minimum(x), up.maximum(x))


def _box_smallest(part: Region, a: Tensor) -> Tensor:
    return dot(a, part.middle) - dot(a.abs(), part.reach)


def _box_range(part: Region, a: Tensor) -> tuple[Tensor, Tensor]:
    middle, reach = dot(a, part.middle), dot(a.abs(), part.reach)
    return middle - reach, middle + reach


def _two_sides(part: Region, a: Tensor) -> tuple[Tensor, Tensor]:
    smallest = _SMALLEST[part.order]
    return smallest(part, a), -smallest(part, -a)


def _dual(least: Callable[[Tensor], Tensor], steepest: Tensor) -> Tensor:
    """The multiplier `[n, k]` in [0, steepest] where a concave function of it is largest, found by comparing
    neighbours; any multiplier gives a bound, so the search need not be exact."""
    with torch.no_grad():
        left, right = torch.zeros_like(steepest), steepest.clone()
        for _ in range(_HALVINGS):
            one, two = left + (right - left) * 0.382, left + (right - left) * 0.618
            better = least(one) > least(two)
            left, right = torch.where(better, left, one), torch.where(better, two, right)
        found = (left + right) / 2
        return torch.where(least(found) >= least(steepest), found, steepest)


def _l2_smallest(part: Region, a: Tensor) -> Tensor:
    around, low, high = _apart(part)
    size = torch.linalg.vector_norm(a, dim=2)
    base = dot(a, around)
    radius = part.radius[:, None]
    free = base - radius * size
    if not _cut(part):
        return free
    tiny = torch.finfo(a.dtype).tiny ** 0.5
    low, high = low[:, None], high[:, None]

    def least(by: Tensor) -> Tensor:
        by = by.clamp_min(tiny)[..., None]
        move = (-a / by).maximum(low).minimum(high)
        return (move * (a + by * move / 2)).sum(2) - by[..., 0] * radius.square() / 2

    by = _dual(least, size / radius.clamp_min(tiny))
    return torch.maximum(torch.maximum(free, _box_smallest(part, a)), base + least(by))


def _l1_smallest(part: Region, a: Tensor) -> Tensor:
    around, low, high = _apart(part)
    steepest = a.abs().amax(2)
    base = dot(a, around)
    radius = part.radius[:, None]
    free = base - radius * steepest
    if not _cut(part):
        return free
    low, high = low[:, None], high[:, None]

    def least(by: Tensor) -> Tensor:
        room = torch.where(a > 0, -low, high)
        return -by * radius - (room * (a.abs() - by[..., None]).clamp_min(0)).sum(2)

    by = _dual(least, steepest)
    return torch.maximum(torch.maximum(free, _box_smallest(part, a)), base + least(by))


def _apart(part: Region) -> tuple[Tensor, Tensor, Tensor]:
    x = part.x.flatten(1)
    return x, part.low.flatten(1) - x, part.high.flatten(1) - x


def _cut(part: Region) -> bool:
    """Whether the box takes anything away from the ball."""
    _, low, high = _apart(part)
    r = part.radius[:, None]
    return bool(((high < r * (1 - 1e-12)) | (-low < r * (1 - 1e-12))).any())


_SMALLEST: Mapping[str, Callable[[Region, Tensor], Tensor]] = {
    "linf": _box_smallest,
    "l2": _l2_smallest,
    "l1": _l1_smallest,
}
_RANGE = {"linf": _box_range}
ORDERS = tuple(_SMALLEST)


@dataclass(frozen=True, eq=False)
class Bounds:
    """What is known of every node's values, row by row: `low[i] <= value <= high[i]`, `[n, *shape]`.

    `noise[i]`: by how much rounding (the model's own, and that of the bounds) may move what follows from the last
    activation before node i; charged where a linear bound meets the next activation.
    """

    low: list[Tensor]
    high: list[Tensor]
    noise: list[Tensor]
    own: list[Tensor]
    """By how much rounding may move the node's values, given its inputs' values."""

    def __getitem__(self, rows: Tensor) -> Bounds:
        return Bounds(*([t[rows] for t in ts] for ts in (self.low, self.high, self.noise, self.own)))


def propagate(graph: Graph, area: Region, known: Bounds | None = None, after: int = 0) -> Bounds:
    """Intervals of all nodes over the region, by their inputs' intervals alone.

    With bounds that are `known` already, those of the nodes up to `after` are kept, the others are made tighter by what
    changed; the noise is not computed again.
    """
    size = area.size
    if known is None:
        entering = (graph.unit + (size[0].numel() + 16) * ULP) * size if len(size) else size
        found = Bounds([area.low], [area.high], [entering], [entering])
    else:
        found = Bounds(
            known.low[: after + 1], known.high[: after + 1], known.noise[: after + 1], known.own[: after + 1]
        )
    for at in range(len(found.low), len(graph.nodes)):
        low, high, own, noise = _STEP[graph.nodes[at].linear is None](graph, at, found, known)
        low, high = low - own, high + own
        if known is not None:
            low, high = torch.maximum(low, known.low[at]), torch.minimum(high, known.high[at])
        found.low.append(low)
        found.high.append(high)
        found.noise.append(noise)
        found.own.append(own)
    return found


Step = tuple[Tensor, Tensor, Tensor, Tensor]


def _through_linear(graph: Graph, at: int, found: Bounds, known: Bounds | None) -> Step:
    node = graph.nodes[at]
    op = node.op
    assert isinstance(op, Linear)
    lows, highs = [found.low[i] for i in node.inputs], [found.high[i] for i in node.inputs]
    low, high = op.interval(lows, highs)
    if known is not None:
        return low, high, known.own[at], known.noise[at]
    largest = [torch.maximum(low.abs(), high.abs()) for low, high in zip(lows, highs, strict=True)]
    once = 2 * graph.unit * (op.terms > 0) + op.terms * (graph.sum_unit + 2 * ULP)
    own = 1.01 * once * op.size(*largest)
    return low, high, own, op.spread(*(found.noise[i] for i in node.inputs)) + own


def _through_bend(graph: Graph, at: int, found: Bounds, known: Bounds | None) -> Step:
    op, i = graph.nodes[at].bent, graph.nodes[at].inputs[0]
    assert op is not None
    low, high = op.interval(found.low[i], found.high[i])
    if known is not None:
        return low, high, known.own[at], known.noise[at]
    size = torch.maximum(found.low[i].abs(), found.high[i].abs())
    grown = op.steepness * size + (0 if isinstance(op, Bend) else 1)
    return low, high, (op.ulps * graph.unit + 16 * ULP) * grown, torch.zeros_like(low)


_STEP = {False: _through_linear, True: _through_bend}


def with_known(found: Bounds, at: int, low: Tensor, high: Tensor) -> Bounds:
    """`found` with tighter bounds of one node."""
    lows, highs = list(found.low), list(found.high)
    lows[at], highs[at] = torch.maximum(lows[at], low), torch.minimum(highs[at], high)
    return replace(found, low=lows, high=highs)
