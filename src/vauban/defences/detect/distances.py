"""Distances to reference rows."""

from __future__ import annotations

import torch
from torch import Tensor


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances `[n, m]` between rows `[n, d]` and `[m, d]`; with a slope where they are not zero, and none there."""
    squared = a.square().sum(1, keepdim=True) - 2 * a @ b.T + b.square().sum(1)
    # what is below the rounding of the sums is no distance
    still = squared <= 1e-14 * b.square().sum(1)
    return torch.where(still, 0.0, torch.where(still, 1.0, squared).sqrt())
