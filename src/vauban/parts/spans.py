"""Intervals through a module as it stands, differentiable in its weights: what certified training descends.

A `Span` takes the place of a tensor in the calls that a module makes, and remembers how it was made, so that linear bounds can be
pulled back through it. These bounds are for training: they are in the module's own precision and charge no rounding; what
they promise is to be proved by `parts.bounds`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.schema.errors import NotOffered

Pulled = tuple[tuple[Tensor, ...], Tensor | float]
"""Coefficients `[m, k, *shape]` of each parent, and what is added to them `[m, k]`."""


@dataclass(frozen=True, eq=False)
class Origin:
    """Of which spans another was made. `pull`: coefficients `[m, k, *shape]` of combinations of it -> combinations of its
    parents that are nowhere above; equal to them where it is `exact`."""

    parents: tuple[Span, ...]
    pull: Callable[[Tensor], Pulled]
    exact: bool = True


@dataclass(frozen=True, eq=False)
class Span:
    """Lowest and highest values `[m, ...]`."""

    low: Tensor
    high: Tensor
    origin: Origin | None = None
    """None where nothing but the two ends is known."""
    level: int = field(init=False)
    """How many operations lie before it on the longest way."""

    def __post_init__(self) -> None:
        before = () if self.origin is None else self.origin.parents
        object.__setattr__(self, "level", max((1 + parent.level for parent in before), default=0))

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        rule = RULES.get(func.__name__.rstrip("_"))
        if rule is None:
            raise NotOffered(
                f"no interval is known for the operation `{func.__name__}` of this model: certified training takes linear and "
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
        return moved(self, lambda side: side.flatten(*how))

    def reshape(self, *how: Any) -> Span:
        return moved(self, lambda side: side.reshape(*how))

    view = reshape

    def relu(self) -> Span:
        return _bent(self)

    def mean(self, *how: Any, **more: Any) -> Span:
        return moved(self, lambda side: side.mean(*how, **more))

    def each(self, rising: Callable[[Tensor], Tensor]) -> Span:
        """Both ends through a function that nowhere falls."""
        return Span(rising(self.low), rising(self.high))

    def __add__(self, other: Span | Tensor | float) -> Span:
        return _sum(self, other)

    __radd__ = __add__

    def __mul__(self, factor: Tensor | float) -> Span:
        ends = self.low * factor, self.high * factor
        return Span(torch.minimum(*ends), torch.maximum(*ends), Origin((self,), lambda a: ((a * factor,), 0.0)))

    __rmul__ = __mul__

    def __truediv__(self, factor: Tensor | float) -> Span:
        return self * (1 / factor)

    def __sub__(self, other: Span | Tensor | float) -> Span:
        return _sum(self, -1.0 * other)


def _sum(a: Any, b: Any, **_: Any) -> Span:
    spans = tuple(part for part in (a, b) if isinstance(part, Span))
    (low, high), (down, up) = _ends(a), _ends(b)
    rest = sum(part for part in (a, b) if not isinstance(part, Span))

    def pull(coefficients: Tensor) -> Pulled:
        return (coefficients,) * len(spans), _total(coefficients * rest)

    return Span(low + down, high + up, Origin(spans, pull))


def _ends(value: Any) -> tuple[Any, Any]:
    return (value.low, value.high) if isinstance(value, Span) else (value, value)


def _total(terms: Tensor) -> Tensor:
    """`[m, k, ...]` -> `[m, k]`."""
    return terms.flatten(2).sum(2)


def _affine(x: Span, low: Tensor, high: Tensor, apply: Callable[[Tensor], Tensor]) -> Span:
    """What `apply`, of the form A x + b, makes of `x`."""

    def pull(coefficients: Tensor) -> Pulled:
        made: Any = torch.func.vjp(apply, torch.zeros_like(x.low))
        offset, back = made
        (pulled,) = torch.vmap(back, in_dims=1, out_dims=1)(coefficients)
        return (pulled,), _total(coefficients * offset[:, None])

    return Span(low, high, Origin((x,), pull))


def moved(x: Span, apply: Callable[[Tensor], Tensor]) -> Span:
    """Values moved about or averaged: linear, with no weight below zero."""
    return _affine(x, apply(x.low), apply(x.high), apply)


def _weighted(apply: Callable[..., Tensor]) -> Callable[..., Span]:
    """A matrix or a convolution: the middle goes through it, and the reach through its coefficients' sizes."""

    def rule(x: Span, weight: Tensor, bias: Tensor | None = None, *how: Any, **more: Any) -> Span:
        centre, spread = apply(x.middle, weight, bias, *how, **more), apply(x.reach, weight.abs(), None, *how, **more)
        return _affine(x, centre - spread, centre + spread, lambda t: apply(t, weight, bias, *how, **more))

    return rule


def _bent(x: Span, below: float = 0.0) -> Span:
    """A ReLU, or one with a slope of `below` (at most 1) left of zero.

    From above it lies under its chord; from below over any line through zero with a slope between the two: the longer side's.
    """

    def pull(coefficients: Tensor) -> Pulled:
        crossing = (x.low < 0) & (x.high > 0)
        width = torch.where(crossing, x.high - x.low, 1.0)
        straight = torch.where(x.low >= 0, 1.0, below)
        chord = torch.where(crossing, (x.high - below * x.low) / width, straight)
        under = torch.where(crossing, torch.where(x.high > -x.low, 1.0, below), straight)
        offset = torch.where(crossing, (1 - chord) * x.high, 0.0)
        up, down = coefficients.clamp_max(0), coefficients.clamp_min(0)
        return (down * under[:, None] + up * chord[:, None],), _total(up * offset[:, None])

    return Span(F.leaky_relu(x.low, below), F.leaky_relu(x.high, below), Origin((x,), pull, exact=False))


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
        raise NotOffered(
            "batch normalisation without running statistics has no interval: certified training needs them."
        )
    shape = (1, -1, *(1,) * (x.dim() - 2))
    scale = (1 if weight is None else weight) / (var + eps).sqrt()
    shift = (0 if bias is None else bias) - mean * scale
    return x * scale.reshape(shape) + shift.reshape(shape)


def _rising(function: Callable[..., Tensor]) -> Callable[..., Span]:
    def rule(x: Span, *how: Any, **more: Any) -> Span:
        return x.each(lambda side: function(side, *how, **{k: v for k, v in more.items() if k != "inplace"}))

    return rule


def _relu(x: Span, *_: Any, **__: Any) -> Span:
    return _bent(x)


def _leaky_relu(x: Span, negative_slope: float = 0.01, *_: Any, **__: Any) -> Span:
    return _bent(x, negative_slope) if 0 <= negative_slope <= 1 else x.each(lambda t: F.leaky_relu(t, negative_slope))


def _moving(function: Callable[..., Tensor]) -> Callable[..., Span]:
    def rule(x: Span, *how: Any, **more: Any) -> Span:
        return moved(x, lambda side: function(side, *how, **more))

    return rule


def _same(x: Span, *_: Any, **__: Any) -> Span:
    """Dropout: a certificate is about the model as it is served."""
    return x


MONOTONE: Mapping[str, Callable[..., Tensor]] = {
    "elu": F.elu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
    **{f"max_pool{n}d": getattr(F, f"max_pool{n}d") for n in (1, 2, 3)},
}
_MOVING: Mapping[str, Callable[..., Tensor]] = {
    **{f"{kind}_pool{n}d": getattr(F, f"{kind}_pool{n}d") for kind in ("avg", "adaptive_avg") for n in (1, 2, 3)},
    "flatten": torch.flatten,
    "reshape": torch.reshape,
    "pad": F.pad,
}
RULES: Mapping[str, Callable[..., Span]] = {
    "linear": _weighted(F.linear),
    "conv1d": _weighted(F.conv1d),
    "conv2d": _weighted(F.conv2d),
    "conv3d": _weighted(F.conv3d),
    "batch_norm": _batch_norm,
    "dropout": _same,
    "add": _sum,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    **{name: _rising(function) for name, function in MONOTONE.items()},
    **{name: _moving(function) for name, function in _MOVING.items()},
}


def lowest_gaps(scores: Span, y: Tensor, linear: bool = False) -> Tensor:
    """`[m, classes]`: the least that the score of class `y` can be above each other's; 0 at `y` itself.

    The differences are pulled back through the last linear layers, which is tighter than the difference of two bounds.
    `linear`: and through the activations, by straight lines, down to the input (CROWN with the activations' intervals): tighter for a
    model that was not trained with intervals, and as many times dearer as there are classes.
    """
    eye = torch.eye(scores.shape[1], dtype=scores.low.dtype, device=scores.low.device)
    return lowest(scores, eye[y][:, None] - eye[None], linear)


def lowest(span: Span, coefficients: Tensor, linear: bool) -> Tensor:
    """The least `[m, k]` of combinations of a span, `coefficients` `[m, k, *shape]`; `linear` as in `lowest_gaps`."""
    total = torch.zeros_like(_total(coefficients))
    waiting = {id(span): (span, coefficients)}
    while waiting:
        # the latest first: what leads to a span from several sides has been added up by then
        span, a = waiting.pop(max(waiting, key=lambda at: waiting[at][0].level))
        origin = span.origin
        if origin is None or not (linear or origin.exact):
            total = total + _total(a * span.middle[:, None] - a.abs() * span.reach[:, None])
            continue
        pulled, offset = origin.pull(a)
        total = total + offset
        for parent, share in zip(origin.parents, pulled, strict=True):
            _, before = waiting.get(id(parent), (parent, 0.0))
            waiting[id(parent)] = parent, share + before
    return total


def through(module: nn.Module, low: Tensor, high: Tensor) -> Span:
    """The outputs of `module` for all inputs between `low` and `high` `[m, ...]`; raises NotOffered where it cannot be said."""
    made: Any = module(Span(low, high))
    if not isinstance(made, Span) or made.dim() != 2 or made.shape[1] < 2:
        raise NotOffered("certified training bounds the scores of a classifier, one for each class [rows, classes].")
    return made
