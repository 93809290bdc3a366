"""Smoothing in front of the model that keeps edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vauban.core.data import Data
from vauban.core.defence import Context
from vauban.core.rng import Rng
from vauban.defences.common import TorchModel
from vauban.defences.preprocess.front import Preprocessing, need_pictures, sides
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source

STRIDE = 0.125
"""Of the dual ascent: below a quarter it converges (Chambolle 2004, theorem 3.1 and remark)."""


@dataclass(frozen=True, kw_only=True)
class TotalVariation(Preprocessing):
    """Replaces every picture by the nearest one with little total variation: noise goes, edges stay.

    Minimises half the squared distance to the picture plus `weight` times the sum of the lengths of its slopes. Unlike rounding this is
    smooth, so that gradients pass through it as they are; the adaptive attack needs no trick, only steps.

    Source: Guo et al. 2018 (arXiv:1711.00117, section 4.3); the dual ascent of Chambolle 2004 (J. Math. Imaging Vision 20, section 3).
    Departure: no pixels are dropped at random, so that the answers do not change from call to call.

    Args:
        weight: of the variation, in widths of the valid range, above 0.
        steps: of the dual ascent.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="preprocess.variation",
        name="Total-variation smoothing",
        summary="Smooths pictures before the model sees them, keeping edges; weak against attacks that know it.",
        needs=Access.WEIGHTS_READ,
        tasks=("classification", "regression"),
        modalities=("image",),
        adaptive=("evasion.apgd", "evasion.pgd", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="Countering adversarial images using input transformations",
                where="Guo et al., ICLR 2018, arXiv:1711.00117, section 4.3",
            ),
            Source(
                title="An algorithm for total variation minimization and applications",
                where="Chambolle, J. Math. Imaging Vision 20, 2004, section 3",
            ),
        ),
    )

    smooth: ClassVar[bool] = True

    weight: float = 0.05
    steps: int = 20

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight must be above 0, got {self.weight}: at 0 nothing would be smoothed")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def cleanser(self, model: TorchModel, data: Data, rng: Rng, context: Context) -> nn.Module:
        """Smooths."""
        need_pictures(data, self.card)
        return Smoother(*sides(model, data), self.weight, self.steps)

    def facts(self) -> dict[str, Any]:
        return {"weight": self.weight, "steps": self.steps}


class Smoother(nn.Module):
    """Pictures `[n, ..., height, width]` with less variation, within `low` and `high`; every channel on its own."""

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor, weight: float, steps: int) -> None:
        super().__init__()
        self.register_buffer("low", low.clone())
        self.register_buffer("high", high.clone())
        self.weight, self.steps = weight, steps

    def forward(self, x: Tensor) -> Tensor:
        span = (self.high - self.low).clamp_min(torch.finfo(x.dtype).tiny)
        unit = (x - self.low) / span
        across, down = torch.zeros_like(unit), torch.zeros_like(unit)
        for _ in range(self.steps):
            right, below = slopes(divergence(across, down) - unit / self.weight)
            length = 1 + STRIDE * (right.square() + below.square() + 1e-20).sqrt()
            across, down = (across + STRIDE * right) / length, (down + STRIDE * below) / length
        smooth = unit - self.weight * divergence(across, down)
        return self.low + span * smooth.clamp(0, 1)


def slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences to the right and below, 0 at the last."""
    right, below = torch.zeros_like(x), torch.zeros_like(x)
    right[..., :-1] = x[..., 1:] - x[..., :-1]
    below[..., :-1, :] = x[..., 1:, :] - x[..., :-1, :]
    return right, below


def divergence(across: Tensor, down: Tensor) -> Tensor:
    """Minus the adjoint of `slopes`."""
    out = torch.zeros_like(across)
    out[..., :-1] += across[..., :-1]
    out[..., 1:] -= across[..., :-1]
    out[..., :-1, :] += down[..., :-1, :]
    out[..., 1:, :] -= down[..., :-1, :]
    return out
