"""Which parts of an input a model's answer rests on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def input_gradient(value: Tensor, leaf: Tensor) -> Tensor:
    """The gradient of the sum of `value` at `leaf`; zeros where no way leads back (no_grad, argmax, detach inside)."""
    slope = torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0] if value.requires_grad else None
    return torch.zeros_like(leaf) if slope is None else slope


def integrated_gradients(score: Callable[[Tensor], Tensor], x: Tensor, baseline: Tensor, steps: int = 32) -> Tensor:
    """Integrated gradients `[n, ...]` of `score` (`[n, ...] -> [n]`) from `baseline` to `x`.

    The path integral is taken by the midpoint rule with `steps` points; the sum over an input approaches
    score(x) - score(baseline) (completeness).

    Source: Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks", ICML 2017, section 3.
    """
    total = torch.zeros_like(x)
    for step in range(steps):
        leaf = (baseline + (x - baseline) * ((step + 0.5) / steps)).detach().requires_grad_(True)
        with torch.enable_grad():
            total += input_gradient(score(leaf), leaf)
    return total * (x - baseline) / steps
