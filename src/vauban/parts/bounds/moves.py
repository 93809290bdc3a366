"""Operations of a traced model that move, join and pool values, as nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vauban.parts.bounds.graph import Builder, Ref, Rule, Unprovable
from vauban.parts.bounds.layers import each, is_ref, padded, plumb, relu, weighted
from vauban.parts.bounds.ops import Bend, Joined, Larger, Reshape


def reshape(b: Builder, x: Ref, shape: Sequence[int]) -> Ref:
    probe = torch.empty(ROWS, *b.shape(x.at), device="meta").reshape(list(shape))
    if probe.dim() < 1 or probe.shape[0] != ROWS:
        raise Unprovable("a reshape mixes the rows of a batch")
    return Ref(b.add(Reshape(shape=tuple(probe.shape[1:])), x.at))


ROWS = 3


def flatten(b: Builder, x: Ref, start: int = 0, end: int = -1) -> Ref:
    probe = torch.empty(ROWS, *b.shape(x.at), device="meta").flatten(start, end)
    return reshape(b, x, list(probe.shape))


def like(name: str) -> Rule:
    """A function of tensors that only moves values, as long as it leaves the batch (first dimension) in its place."""

    def rule(b: Builder, x: Ref, *args: Any, **kwargs: Any) -> Ref:
        function = getattr(torch.ops.aten, name)
        dims = len(b.shape(x.at)) + 1
        given = args[0] if args and isinstance(args[0], Sequence) else args[:2] if name == "transpose" else args[:1]
        if name == "permute":
            if given[0] % dims != 0:
                raise Unprovable("the model moves values between the rows of a batch")
        elif not given or any(isinstance(d, int) and d % (dims + (name == "unsqueeze")) == 0 for d in given):
            raise Unprovable("the model moves values between the rows of a batch")
        return plumb(b, x, lambda t: function(t, *args, **kwargs))

    return rule


def sliced(b: Builder, x: Ref, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Ref:
    if dim % (len(b.shape(x.at)) + 1) == 0:
        if start not in (None, 0) or (end is not None and end < ROWS) or step != 1:
            raise Unprovable("the model picks rows of a batch")
        return x
    return plumb(b, x, lambda t: torch.ops.aten.slice(t, dim, start, end, step))


def mean(b: Builder, x: Ref, dim: Any = None, keepdim: bool = False, **_: Any) -> Ref:
    dims = axes(b, x, dim)
    count = math.prod(([ROWS, *b.shape(x.at)])[d] for d in dims)
    return plumb(b, x, lambda t: t.mean(dims, keepdim), count + 1)


def total(b: Builder, x: Ref, dim: Any = None, keepdim: bool = False, **_: Any) -> Ref:
    dims = axes(b, x, dim)
    count = math.prod(([ROWS, *b.shape(x.at)])[d] for d in dims)
    return plumb(b, x, lambda t: t.sum(dims, keepdim), count)


def axes(b: Builder, x: Ref, dim: Any) -> list[int]:
    n = len(b.shape(x.at)) + 1
    dims = [] if dim is None else [d % n for d in ([dim] if isinstance(dim, int) else dim)]
    if not dims or 0 in dims:
        raise Unprovable("the model sums over the rows of a batch")
    return dims


def avg_pool(name: str) -> Rule:
    def rule(b: Builder, x: Ref, *args: Any, **kwargs: Any) -> Ref:
        function = getattr(torch.ops.aten, name)
        return plumb(b, x, lambda t: function(t, *args, **kwargs), math.prod(b.shape(x.at)[1:]) + 1)

    return rule


def cat(b: Builder, parts: Sequence[Any], dim: int = 0) -> Ref:
    if not all(is_ref(part) for part in parts):
        raise Unprovable("the model joins its values with a constant")
    dim %= len(b.shape(parts[0].at)) + 1
    if dim == 0:
        raise Unprovable("the model joins rows of a batch")
    return Ref(b.add(Joined(dim=dim), *(part.at for part in parts)))


def larger(b: Builder, x: Any, y: Any) -> Ref:
    if not (is_ref(x) and is_ref(y)):
        ref, c = (x, y) if is_ref(x) else (y, x)
        return weighted(b, relu(b, weighted(b, ref, c, 1.0, -1.0)), c, 1.0, 1.0)
    rise = relu(b, weighted(b, y, x, 1.0, -1.0))
    return Ref(b.add(Larger(terms=2), x.at, rise.at, y.at))


def max_pool(n: int) -> Rule:
    def rule(
        b: Builder, x: Ref, size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False
    ) -> Ref:
        size, dilation, pads = each(size, n), each(dilation, n), each(padding, n)
        steps = each(stride, n) if isinstance(stride, int) or len(stride) else size
        if ceil:
            raise Unprovable("a max pooling with ceil_mode has windows that reach over the edge")
        if any(pads):
            x = padded(b, x, [p for pad in reversed(pads) for p in (pad, pad)], "constant", floor(b, x))
        for axis in range(n):
            x = pooled(b, x, axis + 2, size[axis], steps[axis], dilation[axis])
        return x

    return rule


def floor(b: Builder, x: Ref) -> float:
    """What a max pooling may be padded with instead of minus infinity: 0 after a ReLU, where nothing is below."""
    op = b.nodes[x.at].op
    if not (isinstance(op, Bend) and bool((op.below <= 0).all()) and bool((op.above >= 0).all())):
        raise Unprovable("a padded max pooling that does not follow a ReLU has no known bound")
    return 0.0


def pooled(b: Builder, x: Ref, dim: int, size: int, step: int, gap: int) -> Ref:
    """The largest of `size` neighbours along one dimension: a tournament of pairs of shifted copies."""
    room = b.shape(x.at)[dim - 1]
    count = (room - gap * (size - 1) - 1) // step + 1

    def shifted(k: int) -> Callable[[Tensor], Tensor]:
        at = slice(k * gap, k * gap + (count - 1) * step + 1, step)
        return lambda t: t[(slice(None),) * dim + (at,)]

    field = [plumb(b, x, shifted(k)) for k in range(size)]
    while len(field) > 1:
        pairs = [larger(b, field[i], field[i + 1]) for i in range(0, len(field) - 1, 2)]
        field = pairs + field[len(pairs) * 2 :]
    return field[0]


def first(b: Builder, x: Ref, at: int) -> Ref:
    if at != 0:
        raise Unprovable("the model reads a second result of an operation")
    return x


def soft(b: Builder, x: Ref, dim: Any = None, *_: Any, **__: Any) -> Ref:
    dims = len(b.shape(x.at)) + 1
    if dims != 2 or dim is None or int(dim) % dims != 1:
        raise Unprovable("the model has a softmax that is not over its classes")
    return Ref(x.at, final=True)
