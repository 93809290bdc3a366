"""Arithmetic, layers and activations of a traced model as nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vauban.parts.bounds.graph import Builder, Ref, Rule, Unprovable
from vauban.parts.bounds.ops import Bend, Combine, Conv, Dense, Plumbing, Scale, Smooth


def is_ref(value: Any) -> bool:
    return isinstance(value, Ref)


def f64(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def row_constant(b: Builder, x: Ref, value: Any) -> Tensor:
    """A constant beside `x` `[n, *shape]`, without the batch; it must be the same for all rows."""
    c = f64(value)
    dims = len(b.shape(x.at)) + 1
    if c.dim() >= dims:
        if c.dim() > dims or c.shape[0] != 1:
            raise Unprovable("a constant differs from row to row of a batch")
        c = c[0]
    return c


def scaled(b: Builder, x: Ref, factor: Any, offset: Any = None, terms: int = 1) -> Ref:
    o = None if offset is None else row_constant(b, x, offset)
    return Ref(
        b.add(
            Scale(factor=row_constant(b, x, factor), offset=o, heft=None if o is None else o.abs(), terms=terms), x.at
        )
    )


def add(b: Builder, x: Any, y: Any, *, alpha: float = 1) -> Ref:
    return weighted(b, x, y, 1.0, float(alpha))


def sub(b: Builder, x: Any, y: Any, alpha: float = 1) -> Ref:
    return weighted(b, x, y, 1.0, -float(alpha))


def weighted(b: Builder, x: Any, y: Any, fx: float, fy: float) -> Ref:
    if is_ref(x) and is_ref(y):
        if x.at == y.at:
            return scaled(b, x, fx + fy)
        return Ref(b.add(Combine(factors=(fx, fy), terms=3), x.at, y.at))
    ref, of, c, oc = (x, fx, y, fy) if is_ref(x) else (y, fy, x, fx)
    return scaled(b, ref, of, f64(c) * oc, terms=2)


def rsub(b: Builder, x: Any, y: Any, alpha: float = 1) -> Ref:
    return weighted(b, x, y, -float(alpha), 1.0)


def mul(b: Builder, x: Any, y: Any) -> Ref:
    if is_ref(x) and is_ref(y):
        raise Unprovable("the model multiplies two values that both depend on its input")
    return scaled(b, x, y) if is_ref(x) else scaled(b, y, x)


def div(b: Builder, x: Any, y: Any) -> Ref:
    if is_ref(y):
        raise Unprovable("the model divides by a value that depends on its input")
    return scaled(b, x, 1 / f64(y), terms=3)


def neg(b: Builder, x: Ref) -> Ref:
    return scaled(b, x, -1.0)


def affine(bias: Any) -> dict[str, Any]:
    return {} if bias is None else {"offset": f64(bias), "heft": f64(bias).abs()}


def linear(b: Builder, x: Any, weight: Any, bias: Any = None) -> Ref:
    if not is_ref(x) or is_ref(weight) or is_ref(bias):
        raise Unprovable("the weights of a layer depend on the model's input")
    w = f64(weight)
    return Ref(b.add(Dense(weight=w, terms=w.shape[1] + 1, **affine(bias)), x.at))


def addmm(b: Builder, bias: Any, x: Any, weight: Any) -> Ref:
    return linear(b, x, weight if is_ref(weight) else weight.t(), bias)


def matmul(b: Builder, x: Any, weight: Any) -> Ref:
    if is_ref(weight) or weight.dim() != 2:
        raise Unprovable("the model multiplies two values that both depend on its input, or by a stack of matrices")
    return linear(b, x, weight.t())


def conv(
    b: Builder,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Ref:
    if not is_ref(x) or is_ref(weight) or is_ref(bias):
        raise Unprovable("the weights of a convolution depend on the model's input")
    w = f64(weight)
    n = w.dim() - 2
    if len(b.shape(x.at)) != n + 1:
        raise Unprovable("a convolution is applied to inputs without a batch")
    stride, dilation = each(stride, n), each(dilation, n)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, w.shape[2:], strict=True)]
        x = padded(b, x, [side for t in reversed(total) for side in (t // 2, t - t // 2)])
    pads = each(0 if isinstance(padding, str) else padding, n)
    offset = {k: v.reshape(-1, *(1,) * n) for k, v in affine(bias).items()}
    op = Conv(weight=w, stride=stride, padding=pads, dilation=dilation, groups=groups, terms=w[0].numel() + 1, **offset)
    return Ref(b.add(op, x.at))


def convolution(
    b: Builder,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Ref:
    if transposed:
        raise Unprovable("no bound is known for a transposed convolution")
    return conv(b, x, weight, bias, stride, padding, dilation, groups)


def each(value: Any, n: int) -> tuple[int, ...]:
    values = list(value) if isinstance(value, Sequence) else [value]
    return tuple(values * n if len(values) == 1 else values)


def batch_norm(
    b: Builder, x: Ref, weight: Any, bias: Any, mean: Any, var: Any, training: bool, _m: float, eps: float, *_: Any
) -> Ref:
    if training or mean is None or var is None:
        raise Unprovable("a normalisation layer uses the statistics of the batch, so that rows depend on each other")
    factor = (f64(var) + eps).rsqrt()
    factor = factor if weight is None else factor * f64(weight)
    shift = f64(mean) * factor
    offset, heft = -shift, shift.abs()
    if bias is not None:
        offset, heft = offset + f64(bias), heft + f64(bias).abs()
    per = (-1, *(1,) * (len(b.shape(x.at)) - 1))
    op = Scale(factor=factor.reshape(per), offset=offset.reshape(per), heft=heft.reshape(per), terms=6)
    return Ref(b.add(op, x.at))


def bend(b: Builder, x: Ref, above: Any, below: Any) -> Ref:
    return Ref(b.add(Bend(above=f64(above), below=f64(below)), x.at))


def relu(b: Builder, x: Ref) -> Ref:
    return bend(b, x, 1.0, 0.0)


def leaky(b: Builder, x: Ref, slope: float = 0.01) -> Ref:
    return bend(b, x, 1.0, slope)


def prelu(b: Builder, x: Ref, weight: Any) -> Ref:
    per = (-1, *(1,) * (len(b.shape(x.at)) - 1))
    return bend(b, x, 1.0, f64(weight).reshape(per if f64(weight).numel() > 1 else ()))


def absolute(b: Builder, x: Ref) -> Ref:
    return bend(b, x, 1.0, -1.0)


def clamp(b: Builder, x: Ref, low: Any = None, high: Any = None) -> Ref:
    """low + relu(x - low) with its excess over high taken off again: two bends."""
    if low is not None:
        x = weighted(b, relu(b, weighted(b, x, low, 1.0, -1.0)), low, 1.0, 1.0)
    if high is not None:
        x = weighted(b, high, relu(b, weighted(b, high, x, 1.0, -1.0)), 1.0, -1.0)
    return x


def relu6(b: Builder, x: Ref) -> Ref:
    return clamp(b, x, 0.0, 6.0)


def hardtanh(b: Builder, x: Ref, low: float = -1.0, high: float = 1.0) -> Ref:
    return clamp(b, x, low, high)


def smooth(name: str, function: Callable[[Tensor], Tensor], steep: float, curve: float, monotone: bool) -> Rule:
    op = Smooth(name=name, function=function, steepness=steep, curvature=curve, monotone=monotone)

    def rule(b: Builder, x: Ref, *_: Any, **__: Any) -> Ref:
        return Ref(b.add(op, x.at))

    return rule


def gelu(b: Builder, x: Ref, *, approximate: str = "none") -> Ref:
    # the tanh form differs from the other by less than 0.001 in value, and in slope and bend by less than what is added
    op = Smooth(name="gelu", function=lambda t: F.gelu(t, approximate=approximate), steepness=1.2, curvature=1.0)
    return Ref(b.add(op, x.at))


def elu(b: Builder, x: Ref, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Ref:
    if input_scale != 1.0:
        raise Unprovable("an ELU that scales its input has no known bound")
    out = Ref(b.add(Smooth(name="elu", function=F.elu, steepness=1.0, curvature=1.0, monotone=True), x.at))
    if alpha != 1.0:  # the kink at zero is a ReLU's: alpha * elu(t) + (1 - alpha) * relu(t)
        out = weighted(b, out, relu(b, x), alpha, 1.0 - alpha)
    return out if scale == 1.0 else scaled(b, out, scale)


def selu(b: Builder, x: Ref) -> Ref:
    return elu(b, x, 1.6732632423543772, 1.0507009873554805)


def softplus(b: Builder, x: Ref, beta: float = 1.0, threshold: float = 20.0) -> Ref:
    def function(t: Tensor) -> Tensor:
        return F.softplus(t, beta, 1e6)

    # above the threshold torch gives t itself, which is off by less than exp(-threshold) / beta
    off = math.exp(-threshold) / beta
    if off > 1e-7:
        raise Unprovable("a softplus turns into the identity where it still differs from it")
    op = Smooth(name="softplus", function=function, steepness=1.0, curvature=beta / 4, monotone=True)
    return Ref(b.add(op, x.at))


def same(b: Builder, x: Ref, *_: Any, **__: Any) -> Ref:
    return x


def cast(b: Builder, x: Ref, *args: Any, **kwargs: Any) -> Ref:
    kinds = [a for a in [*args, *kwargs.values()] if isinstance(a, torch.dtype)]
    if any(kind not in (torch.float32, torch.float64) for kind in kinds):
        raise Unprovable(f"the model changes its values to {kinds[0]} on the way, which rounds them")
    return x


def dropout(b: Builder, x: Ref, p: float = 0.5, train: bool = False) -> Ref:
    if train and p > 0:
        raise Unprovable("dropout is active in evaluation mode: the model answers at random")
    return x


def plumb(b: Builder, x: Ref, function: Callable[[Tensor], Tensor], terms: int = 0) -> Ref:
    return Ref(b.add(Plumbing(function=function, terms=terms), x.at))


def padded(b: Builder, x: Ref, pad: Sequence[int], mode: Any = "constant", value: Any = None) -> Ref:
    if isinstance(mode, int | float):
        mode, value = "constant", mode
    pads, dims = list(pad), len(b.shape(x.at)) + 1
    if len(pads) // 2 >= dims:
        raise Unprovable("a padding adds rows to the batch")
    if mode != "constant":
        return plumb(b, x, lambda t: F.pad(t, pads, mode))
    out = plumb(b, x, lambda t: F.pad(t, pads))
    if not value:
        return out
    ring = F.pad(torch.zeros(1, *b.shape(x.at), dtype=torch.float64), pads, value=float(value))[0]
    return scaled(b, out, 1.0, ring)
