"""Which parts of an input a model's answer rests on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


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
            (slope,) = torch.autograd.grad(score(leaf).sum(), leaf, allow_unused=True)
        if slope is not None:
            total += slope
    return total * (x - baseline) / steps
