"""The kinds of node that a proof knows, and what each does to an interval and to a linear bound.

Shapes are those of one row: values are `[n, *shape]`, linear bounds (coefficients of a node's outputs) `[p, *shape]`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Shape = tuple[int, ...]


def summed_to(a: Tensor, shape: Shape) -> Tensor:
    """`a` `[p, *bigger]` summed over what was broadcast from `[p, *shape]`."""
    if a.shape[1:] == shape:
        return a
    lead = a.dim() - 1 - len(shape)
    if lead:
        a = a.sum(tuple(range(1, 1 + lead)))
    wide = [i + 1 for i, size in enumerate(shape) if size == 1 and a.shape[i + 1] != 1]
    return a.sum(wide, keepdim=True) if wide else a


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear(ABC):
    """A node that is linear in its inputs, plus an offset.

    `offset` and `heft` (the sum of the sizes of the terms that make the offset) broadcast to one row; `terms` is how
    many products or sums one output takes, which bounds its rounding error.
    """

    offset: Tensor | None = None
    heft: Tensor | None = None
    terms: int = 0

    @abstractmethod
    def apply(self, *inputs: Tensor) -> Tensor:
        """The linear part."""

    @abstractmethod
    def spread(self, *sizes: Tensor) -> Tensor:
        """The linear part with every coefficient made positive: how far changes of these sizes reach."""

    @abstractmethod
    def pull(self, a: Tensor, shapes: list[Shape]) -> list[Tensor | None]:
        """Coefficients of the outputs -> coefficients of each input (None where all are zero)."""

    def windows(self, shape: Shape) -> tuple[Tensor, Tensor] | None:
        """What every output is made of, where few of the inputs and without pulling each back: their flat numbers, the
        number of inputs where there is none, and their coefficients, both `[outputs, most]`. None where that is not known."""
        return None

    def forward(self, *inputs: Tensor) -> Tensor:
        out = self.apply(*inputs)
        return out if self.offset is None else out + self.offset

    def interval(self, lows: list[Tensor], highs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Lowest and highest outputs of a box of inputs."""
        if not self.terms:
            return self.forward(*lows), self.forward(*highs)
        middle = self.forward(*((low + high) / 2 for low, high in zip(lows, highs, strict=True)))
        reach = self.spread(*((high - low) / 2 for low, high in zip(lows, highs, strict=True)))
        return middle - reach, middle + reach

    def size(self, *largest: Tensor) -> Tensor:
        """The sum of the sizes of all terms of an output, given the largest absolute inputs."""
        out = self.spread(*largest)
        return out if self.heft is None else out + self.heft


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense(Linear):
    """A matrix on the last dimension."""

    weight: Tensor

    def apply(self, *inputs: Tensor) -> Tensor:
        return F.linear(inputs[0], self.weight)

    def spread(self, *sizes: Tensor) -> Tensor:
        return F.linear(sizes[0], self.weight.abs())

    def pull(self, a: Tensor, shapes: list[Shape]) -> list[Tensor | None]:
        return [a @ self.weight]


_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_BACK: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv(Linear):
    """A convolution over 1 to 3 dimensions, padded with zeros."""

    weight: Tensor
    stride: Shape
    padding: Shape
    dilation: Shape
    groups: int = 1

    def _over(self, x: Tensor, weight: Tensor) -> Tensor:
        conv = _CONV[len(self.stride)]
        return conv(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def apply(self, *inputs: Tensor) -> Tensor:
        return self._over(inputs[0], self.weight)

    def spread(self, *sizes: Tensor) -> Tensor:
        # nothing here is negative, so that float32 is off by a known share; its convolutions are several times faster
        near = self._over(sizes[0].float(), self.weight.abs().float()).double()
        return near * (1 + (self.terms + 8) * 2.0**-23) + 1e-30

    def pull(self, a: Tensor, shapes: list[Shape]) -> list[Tensor | None]:
        inside = shapes[0][1:]
        # inputs on the far side that no window reaches get nothing, but belong to the shape
        left = tuple(
            size - ((out - 1) * step - 2 * pad + gap * (width - 1) + 1)
            for size, out, step, pad, gap, width in zip(
                inside, a.shape[2:], self.stride, self.padding, self.dilation, self.weight.shape[2:], strict=True
            )
        )
        back = _BACK[len(self.stride)]
        return [back(a, self.weight, None, self.stride, self.padding, left, self.groups, self.dilation)]

    def windows(self, shape: Shape) -> tuple[Tensor, Tensor] | None:
        if self.groups != 1:
            return None
        dims, total = len(self.stride), int(torch.Size(shape).numel())
        seen = torch.arange(total, device=self.weight.device).reshape(shape)
        seen = F.pad(seen, [pad for pad in reversed(self.padding) for _ in range(2)], value=total)
        for dim, (width, step, gap) in enumerate(zip(self.weight.shape[2:], self.stride, self.dilation, strict=True)):
            seen = seen.unfold(1 + dim, gap * (width - 1) + 1, step)[..., ::gap]
        # [channels, *positions, *window] -> [positions, channels * window]
        seen = seen.permute(*range(1, 1 + dims), 0, *range(1 + dims, 1 + 2 * dims)).flatten(0, dims - 1).flatten(1)
        filters = self.weight.flatten(1)
        coefficients = torch.where(seen < total, filters[:, None], 0).flatten(0, 1)
        return seen.repeat(len(filters), 1), coefficients


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale(Linear):
    """Every value times a constant of its own (broadcast)."""

    factor: Tensor

    def apply(self, *inputs: Tensor) -> Tensor:
        return inputs[0] * self.factor

    def spread(self, *sizes: Tensor) -> Tensor:
        return sizes[0] * self.factor.abs()

    def pull(self, a: Tensor, shapes: list[Shape]) -> list[Tensor | None]:
        return [summed_to(a * self.factor, shapes[0])]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plumbing(Linear):
    """Moves, copies, drops, adds or averages values: any function that is linear with no negative coefficient."""

    function: Callable[[Tensor], Tensor]

    def apply(self, *inputs: Tensor) -> Tensor:
        return self.function(inputs[0])

    def spread(self, *sizes: Tensor) -> Tensor:
        return self.function(sizes[0])

    def pull(self, a: Tensor, shapes: list[Shape]) -> list[Tensor | None]:
        with torch.enable_grad():
            zero = a.new_zeros(len(a), *shapes[0]).requires_grad_()
            out = self.function(zero)
        return [torch.autograd.grad(out, zero, a, create_graph=a.requires_grad)[0]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reshape(Linear):
    """The same values in another shape; the most frequent plumbing, without a graph for its transpose."""

    shape: Shape

    def apply(self, *inputs: Tensor) -> Tensor:
        return inputs[0].reshape(-1, *self.shape)

    def spread(self, *sizes: Tensor) -> Tensor:
        return self.apply(*sizes)

    def pull(self, a: Tensor, shapes: list[Shape]) -> list[Tensor | None]:
        return [a.reshape(-1, *shapes[0])]


@dataclass(frozen=True, kw_only=True, eq=False)
class Combine(Linear):
    """The sum of several nodes, each times a number (broadcast)."""

    factors: tuple[float, ...]

    def apply(self, *inputs: Tensor) -> Tensor:
        return sum((x * f for x, f in zip(inputs[1:], self.factors[1:], strict=True)), inputs[0] * self.factors[0])

    def spread(self, *sizes: Tensor) -> Tensor:
        first, *rest = (size * abs(f) for size, f in zip(sizes, self.factors, strict=True))
        return sum(rest, first)

    def pull(self, a: Tensor, shapes: list[Shape]) -> list[Tensor | None]:
        return [summed_to(a if f == 1 else a * f, shape) for f, shape in zip(self.factors, shapes, strict=True)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Larger(Linear):
    """The larger of `first` and `second`, from the inputs `first`, `second - first` through a ReLU, `second`.

    Linear in the first two; the third tells the interval what the sum of the others has forgotten.
    """

    def apply(self, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[1]

    def spread(self, *sizes: Tensor) -> Tensor:
        return sizes[0] + sizes[1]

    def interval(self, lows: list[Tensor], highs: list[Tensor]) -> tuple[Tensor, Tensor]:
        return torch.maximum(lows[0], lows[2]), torch.maximum(highs[0], highs[2])

    def pull(self, a: Tensor, shapes: list[Shape]) -> list[Tensor | None]:
        return [a, a, None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Joined(Linear):
    """Several nodes side by side along `dim` (of the batch, so at least 1)."""

    dim: int

    def apply(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, self.dim)

    def spread(self, *sizes: Tensor) -> Tensor:
        return torch.cat(sizes, self.dim)

    def pull(self, a: Tensor, shapes: list[Shape]) -> list[Tensor | None]:
        return list(a.split([shape[self.dim - 1] for shape in shapes], self.dim))


@dataclass(frozen=True, kw_only=True, eq=False)
class Bend:
    """`above * t` for t >= 0, `below * t` for t < 0: ReLU and its relatives, `|t|` too. Slopes broadcast to one row."""

    above: Tensor
    below: Tensor

    @property
    def steepness(self) -> float:
        return float(torch.maximum(self.above.abs().max(), self.below.abs().max()))

    @property
    def ulps(self) -> float:
        """Roundings of the model's own evaluation: none where it only picks `t` or 0."""
        both = torch.cat([self.above.flatten(), self.below.flatten()])
        return 0.0 if bool(((both == 0) | (both.abs() == 1)).all()) else 2.0

    def forward(self, t: Tensor) -> Tensor:
        return self.above * t.clamp_min(0) + self.below * t.clamp_max(0)

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        ends = self.forward(low), self.forward(high)
        crossing = (low < 0) & (high > 0)
        lowest, highest = torch.minimum(*ends), torch.maximum(*ends)
        return torch.where(crossing, lowest.clamp_max(0), lowest), torch.where(crossing, highest.clamp_min(0), highest)


@dataclass(frozen=True, kw_only=True, eq=False)
class Smooth:
    """A curved activation, known by its values, a bound on its slope and one on its second derivative.

    The second derivative may jump: between two points `h` apart, a function whose slope changes at most by
    `curvature` a unit lies within `curvature * h^2 / 8` of the chord.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    steepness: float
    curvature: float
    monotone: bool = False
    ulps: float = 16.0

    def forward(self, t: Tensor) -> Tensor:
        return self.function(t)

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        if self.monotone:
            return self.function(low), self.function(high)
        flat = torch.zeros_like(low)
        lowest, highest = self.room(low, high, flat, flat)
        return lowest, highest

    def room(self, low: Tensor, high: Tensor, under: Tensor, over: Tensor) -> tuple[Tensor, Tensor]:
        """The largest c with `under * t + c <= f(t)` on [low, high] and the smallest with `over * t + c >= f(t)`,
        both on the safe side by what a grid may miss."""
        share = torch.linspace(0, 1, GRID + 1, dtype=low.dtype, device=low.device)
        width = (high - low)[..., None]
        with torch.no_grad():
            points = low[..., None] + width * share
            values = self.function(points)
            at_least = (values - under[..., None] * points).argmin(-1, keepdim=True)
            at_most = (values - over[..., None] * points).argmax(-1, keepdim=True)
        step = (high - low) / GRID
        missed = self.curvature * step.square() / 8
        ends = []
        for slope, at, sign in ((under, at_least, -1.0), (over, at_most, 1.0)):
            gap = torch.minimum(missed, (self.steepness + slope.abs()) * step / 2)
            t, f = points.gather(-1, at)[..., 0], values.gather(-1, at)[..., 0]
            ends.append(f - slope * t + sign * gap)
        return ends[0], ends[1]


GRID = 48
"""Pieces into which the range of a curved activation is cut: the bound loses curvature * width^2 / (8 * GRID^2)."""

Op = Linear | Bend | Smooth


def constant(value: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)
