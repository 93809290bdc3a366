"""Attributions from input gradients: integrated along a path, or averaged over noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vauban.parts.attribution.base import Means, Score, against, blocks, numbers, scores
from vauban.parts.batching import filled
from vauban.schema.access import Access

Rule = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""How many points -> where on [0, 1] they lie, and their weights, which sum to 1; float64."""


def input_gradient(value: Tensor, leaf: Tensor) -> Tensor:
    """The gradient of the sum of `value` at `leaf`; zeros where no way leads back (no_grad, argmax, detach inside)."""
    slope = torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0] if value.requires_grad else None
    return torch.zeros_like(leaf) if slope is None else slope


def gauss_legendre(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact for polynomials of degree 2 `steps` - 1."""
    places, weights = np.polynomial.legendre.leggauss(steps)
    return (1 + places) / 2, weights / 2


def midpoint(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The middles of equal parts."""
    return (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)


RULES: dict[str, Rule] = {"gauss_legendre": gauss_legendre, "midpoint": midpoint}


@dataclass(frozen=True, kw_only=True)
class IntegratedGradients:
    """The gradient along the straight way from a baseline to the input, times the difference of the two.

    The attributions of an input sum to score(input) - score(baseline) (completeness), but for the error of the rule:
    `completeness_gap` measures it.

    Source: Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks", ICML 2017, section 3.
    Departures: the integral is taken by Gauss-Legendre points instead of equal steps; `rule="midpoint"` takes equal ones.

    Args:
        steps: points on the way, each one gradient.
        rule: `gauss_legendre` or `midpoint`.
    """

    needs: ClassVar[Access] = Access.GRADIENTS
    kinds: ClassVar[tuple[str, ...]] = ()
    complete: ClassVar[bool] = True

    steps: int = 50
    rule: str = "gauss_legendre"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")

    def __call__(self, score: Score, x: Tensor, means: Means) -> Tensor:
        places, weights = RULES[self.rule](self.steps)
        start = against(means, x)
        way = x - start
        share = torch.from_numpy(places).to(x)

        def points(cut: slice, part: slice) -> Tensor:
            some = share[part].reshape(1, -1, *[1] * (x.dim() - 1))
            return (way[cut, None] * some).add_(start[cut, None])

        return weighted_slopes(score, x, points, torch.from_numpy(weights).to(x), means).mul_(way)


@dataclass(frozen=True, kw_only=True)
class SmoothGrad:
    """The gradient averaged over noisy copies of the input.

    Source: Smilkov, Thorat, Kim, Viegas, Wattenberg, "SmoothGrad: removing noise by adding noise", 2017,
    arXiv:1706.03825, section 3.
    Departures: the noise is a share of the range of valid inputs, feature by feature, not of the values of the input at
    hand; gradients keep their sign.

    Args:
        samples: noisy copies, each one gradient.
        noise: standard deviation, as a share of the range of valid inputs; at least 0.
    """

    needs: ClassVar[Access] = Access.GRADIENTS
    kinds: ClassVar[tuple[str, ...]] = ()
    complete: ClassVar[bool] = False

    samples: int = 50
    noise: float = 0.15

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise must be a number of at least 0, got {self.noise}")

    def __call__(self, score: Score, x: Tensor, means: Means) -> Tensor:
        size = torch.as_tensor(means.width).to(x) * self.noise
        streams = [means.rng.child("smooth_grad", sample) for sample in range(self.samples)]

        def points(cut: slice, part: slice) -> Tensor:
            rows = torch.arange(cut.start, cut.stop, device=x.device)
            drawn = torch.stack([stream.normal(rows, x.shape[1:]) for stream in streams[part]], 1)
            return (drawn.to(x) * size).add_(x[cut, None])

        return weighted_slopes(score, x, points, x.new_full((self.samples,), 1 / self.samples), means)


def weighted_slopes(
    score: Score, x: Tensor, points: Callable[[slice, slice], Tensor], weights: Tensor, means: Means
) -> Tensor:
    """For each row, the weighted sum of the score's gradients at its points; shape of `x` `[n, ...]`.

    Args:
        points: (rows, which of a row's points) -> `[rows, points, ...]`, new memory.
        weights: `[k]`, one a point.

    Rows and points go through the model together, a batch that fits the cache at a time. Only the gradient of the
    points is asked for, never that of the weights. Products and sums are taken one point after the other, so that no
    row depends on its neighbours.
    """
    total = torch.zeros_like(x)
    for cut, part in blocks(len(x), len(weights), max(1, means.batch)):
        some = points(cut, part)
        each = some.shape[1]
        slope = _slope(score, some.flatten(0, 1), numbers(cut, each, x), means.multiple).unflatten(0, (-1, each))
        for place, weight in enumerate(weights[part].unbind()):
            total[cut] += slope[:, place] * weight
    return total


def _slope(score: Score, points: Tensor, rows: Tensor, multiple: int) -> Tensor:
    leaf = filled(points, multiple).detach().requires_grad_(True)
    with torch.enable_grad():
        return input_gradient(score(leaf, filled(rows, multiple)), leaf)[: len(points)]


def completeness_gap(score: Score, x: Tensor, attribution: Tensor, means: Means) -> tuple[Tensor, Tensor]:
    """How far the sums of attributions miss score(x) - score(baseline), and that difference itself; float64 `[n]` both."""
    change = scores(score, x, means).double() - scores(score, against(means, x), means).double()
    return (attribution.double().flatten(1).sum(1) - change).abs(), change
