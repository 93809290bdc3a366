"""Gradients from answers alone."""

from __future__ import annotations

import torch
from torch import Tensor

from vauban.parts.projections import per_row


def boundary_normal(directions: Tensor, reached: Tensor, asked: Tensor) -> Tensor:
    """The direction `[m, ...]` into the goal's side, from probes around points on its boundary.

    `directions` `[m, probes, ...]` were tried where `asked` `[m, probes]`, and `reached` `[m, probes]` says which got
    there. The mean answer is taken off first, which lowers the variance; where all probes agree, their mean direction is
    given, towards the goal or away from non-goal. Chen, Jordan and Wainwright 2020 (arXiv:1904.02144, equations 9
    and 16).
    """
    signs = (reached.to(directions.dtype) * 2 - 1) * asked
    count = asked.sum(1, keepdim=True).clamp_min(1)
    mean = signs.sum(1, keepdim=True) / count
    weights = torch.where(mean.abs() == 1, signs, (signs - mean) * asked)
    normal = (weights[:, None, :] @ directions.flatten(2)).squeeze(1) / count
    return normal.view(len(directions), *directions.shape[2:])


def lengths(change: Tensor) -> Tensor:
    """Euclidean length of every row, `[m]`."""
    return change.flatten(1).norm(dim=1)


def unit(change: Tensor) -> Tensor:
    """Rows of Euclidean length 1; zero stays zero."""
    return change / per_row(lengths(change).clamp_min(1e-12), change)


def two_point(above: Tensor, below: Tensor, away: Tensor, length: float) -> Tensor:
    """A gradient `[m, ...]` from answers `[m, pairs]` on both sides of a point, at `away` `[m, pairs, ...]` from it.

    The mean over pairs of the symmetric difference quotient along a direction times that direction, where a direction is
    `away / length` and has entries of variance 1: then the expectation is the gradient of a linear function. Normal
    directions: NES (Ilyas et al. 2018, arXiv:1804.08598, section 2.1.1); signs: SPSA (Uesato et al. 2018,
    arXiv:1802.05666, section 3), where dividing by an entry is multiplying with it.
    """
    weights = (above - below).to(away) / (2 * length)
    mean = (weights[:, None, :] @ away.flatten(2)).squeeze(1) / (length * away.shape[1])
    return mean.view(len(away), *away.shape[2:])
