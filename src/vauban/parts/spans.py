"""Intervals through a module as it stands, differentiable in its weights: what certified training descends.

A `Span` takes the place of a tensor in the calls that a module makes. These bounds are for training: they are in the module's
own precision and charge no rounding; what they promise is to be proved by `parts.bounds`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.schema.errors import NotOffered


@dataclass(frozen=True, eq=False)
class Span:
    """Lowest and highest values `[m, ...]`. `made`: of which span by which matrix and offset, right after a linear layer."""

    low: Tensor
    high: Tensor
    made: tuple[Span, Tensor, Tensor | None] | None = None

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        rule = RULES.get(func.__name__.rstrip("_"))
        if rule is None:
            raise NotOffered(
                f"no interval is known for the operation `{func.__name__}` of this model: train.ibp takes linear and "
                f"convolutional layers, batch norm, pooling, sums and {', '.join(sorted(MONOTONE))}."
            )
        return rule(*args, **(kwargs or {}))

    @property
    def middle(self) -> Tensor:
        return (self.low + self.high) / 2

    @property
    def reach(self) -> Tensor:
        return (self.high - self.low) / 2

    @property
    def shape(self) -> torch.Size:
        return self.low.shape

    def size(self, dim: int | None = None) -> Any:
        return self.low.shape if dim is None else self.low.shape[dim]

    def dim(self) -> int:
        return self.low.dim()

    def clone(self) -> Span:
        return self

    def flatten(self, *how: Any) -> Span:
        return self.each(lambda side: side.flatten(*how))

    def reshape(self, *how: Any) -> Span:
        return self.each(lambda side: side.reshape(*how))

    view = reshape

    def relu(self) -> Span:
        return self.each(torch.relu)

    def mean(self, *how: Any, **more: Any) -> Span:
        return self.each(lambda side: side.mean(*how, **more))

    def each(self, rising: Callable[[Tensor], Tensor]) -> Span:
        """Both ends through a function that nowhere falls."""
        return Span(rising(self.low), rising(self.high))

    def __add__(self, other: Span | Tensor | float) -> Span:
        return _sum(self, other)

    __radd__ = __add__

    def __mul__(self, factor: Tensor | float) -> Span:
        ends = self.low * factor, self.high * factor
        return Span(torch.minimum(*ends), torch.maximum(*ends))

    __rmul__ = __mul__

    def __truediv__(self, factor: Tensor | float) -> Span:
        return self * (1 / factor)

    def __sub__(self, other: Span | Tensor | float) -> Span:
        return _sum(self, -1.0 * other)


def _sum(a: Any, b: Any, **_: Any) -> Span:
    (low, high), (down, up) = _ends(a), _ends(b)
    return Span(low + down, high + up)


def _ends(value: Any) -> tuple[Any, Any]:
    return (value.low, value.high) if isinstance(value, Span) else (value, value)


def _weighted(apply: Callable[..., Tensor]) -> Callable[..., Span]:
    """A matrix or a convolution: the middle goes through it, and the reach through its coefficients' sizes."""

    def rule(x: Span, weight: Tensor, bias: Tensor | None = None, *how: Any, **more: Any) -> Span:
        centre, spread = apply(x.middle, weight, bias, *how, **more), apply(x.reach, weight.abs(), None, *how, **more)
        return Span(centre - spread, centre + spread)

    return rule


def _linear(x: Span, weight: Tensor, bias: Tensor | None = None) -> Span:
    return replace(_weighted(F.linear)(x, weight, bias), made=(x, weight, bias))


def _batch_norm(
    x: Span,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Span:
    """By the running statistics, in training, too: those of an interval mean nothing."""
    if mean is None or var is None:
        raise NotOffered("batch normalisation without running statistics has no interval: train.ibp needs them.")
    shape = (1, -1, *(1,) * (x.dim() - 2))
    scale = (1 if weight is None else weight) / (var + eps).sqrt()
    shift = (0 if bias is None else bias) - mean * scale
    return x * scale.reshape(shape) + shift.reshape(shape)


def _rising(function: Callable[..., Tensor]) -> Callable[..., Span]:
    def rule(x: Span, *how: Any, **more: Any) -> Span:
        return x.each(lambda side: function(side, *how, **{k: v for k, v in more.items() if k != "inplace"}))

    return rule


def _same(x: Span, *_: Any, **__: Any) -> Span:
    """Dropout: a certificate is about the model as it is served."""
    return x


MONOTONE: Mapping[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
}
_POOLS: Mapping[str, Callable[..., Tensor]] = {
    **{
        f"{kind}_pool{n}d": getattr(F, f"{kind}_pool{n}d") for kind in ("max", "avg", "adaptive_avg") for n in (1, 2, 3)
    },
    "flatten": torch.flatten,
    "reshape": torch.reshape,
    "pad": F.pad,
}
RULES: Mapping[str, Callable[..., Span]] = {
    "linear": _linear,
    "conv1d": _weighted(F.conv1d),
    "conv2d": _weighted(F.conv2d),
    "conv3d": _weighted(F.conv3d),
    "batch_norm": _batch_norm,
    "dropout": _same,
    "add": _sum,
    **{name: _rising(function) for name, function in {**MONOTONE, **_POOLS}.items()},
}


def lowest_gaps(scores: Span, y: Tensor) -> Tensor:
    """`[m, classes]`: the least that the score of class `y` can be above each other's; 0 at `y` itself.

    After a linear layer the difference of two rows of its matrix is bounded, which is tighter than the difference of two bounds.
    """
    if scores.made is None:
        own = scores.low.gather(1, y[:, None])
        return (own - scores.high).scatter(1, y[:, None], 0.0)
    x, weight, bias = scores.made
    apart = weight[y][:, None, :] - weight[None]
    gap = torch.einsum("mkd,md->mk", apart, x.middle) - torch.einsum("mkd,md->mk", apart.abs(), x.reach)
    return gap if bias is None else gap + bias[y][:, None] - bias[None]


def through(module: nn.Module, low: Tensor, high: Tensor) -> Span:
    """The outputs of `module` for all inputs between `low` and `high` `[m, ...]`; raises NotOffered where it cannot be said."""
    made: Any = module(Span(low, high))
    if not isinstance(made, Span) or made.dim() != 2 or made.shape[1] < 2:
        raise NotOffered("train.ibp bounds the scores of a classifier, one for each class [rows, classes].")
    return made
