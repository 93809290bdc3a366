"""Affine models from their answers: the arithmetic of equation-solving theft, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_TINY = 1e-300


@dataclass(frozen=True)
class Affine:
    """x -> weight @ flat(x) + bias, with `weight` `[k, d]` and `bias` `[k]`."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """`[m, k]`."""
        return x.flatten(1).to(self.weight.dtype) @ self.weight.T + self.bias


def log_ratios(probabilities: Tensor) -> Tensor:
    """`[m, k]`: log of each probability over that of the last class, which is affine in x for softmax and logistic models."""
    logs = probabilities.clamp_min(_TINY).log()
    return logs - logs[:, -1:]


def solving_steps(low: Tensor, high: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The middle of the box and how far to go from it along each feature: both flat `[d]` float64.

    The equations are diagonal, and each is as well conditioned as the box allows; a feature without room gets step 1.
    Middle and moved points are float32 numbers, so that a float32 model sees the very inputs that are solved with.
    """
    low, high = (v.to(torch.float64).expand(shape).flatten() for v in (low, high))
    middle = ((low + high) / 2).to(torch.float32).to(torch.float64)
    moved = torch.where(high > low, middle + 0.999 * (high - middle), middle + 1)
    return middle, moved.to(torch.float32).to(torch.float64) - middle


def solve(query: Callable[[Tensor], Tensor], middle: Tensor, steps: Tensor, chunk: int = 1024) -> Affine:
    """The affine map `[m, d] -> [m, k]` behind `query`, from d + 1 points: the middle, and one step along each feature."""
    centre = query(middle[None])[0]
    rows = []
    for features in torch.arange(len(middle)).split(chunk):
        points = middle.repeat(len(features), 1)
        points[torch.arange(len(features)), features] += steps[features]
        rows.append((query(points) - centre) / steps[features, None])
    weight = torch.cat(rows).T.contiguous()
    return Affine(weight, centre - weight @ middle)


def deviation(model: Affine, x: Tensor, values: Tensor) -> float:
    """Largest error of the map on fresh points, relative to the size of the values (1 at least)."""
    scale = max(1.0, float(values.abs().max()))
    error = float((model(x) - values).abs().max()) / scale
    return error if error == error else float("inf")


def largest_difference(a: Affine, b: Affine, shift: bool) -> float:
    """Largest absolute difference of parameters; `shift` ignores what a softmax cannot see (a vector added to all classes)."""

    def seen(model: Affine) -> Tensor:
        table = torch.cat([model.weight, model.bias[:, None]], 1)
        return table - table[-1:] if shift else table

    return float((seen(a) - seen(b)).abs().max())


def derivative(scores: Callable[[Tensor], Tensor], x: Tensor) -> Affine:
    """The tangent of `scores` at one point `x` `[1, ...]`, by one backward pass an output: an affine model's own parameters."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        values = scores(x)
        rows = [torch.autograd.grad(values[0, k], x, retain_graph=True)[0].flatten() for k in range(values.shape[1])]
    weight = torch.stack(rows).detach()
    return Affine(weight, (values[0] - weight @ x.flatten()).detach())
