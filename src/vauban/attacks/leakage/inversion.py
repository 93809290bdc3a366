"""Model inversion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.core.attack import Leak, LeakScene, Price
from vauban.core.rng import Rng
from vauban.core.target import Target
from vauban.parts.attribution import input_gradient
from vauban.parts.membership import log_probabilities
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """Climbs the model's confidence in each class to an input that stands for it (MI-Face, Fredrikson et al. 2015).

    All classes are climbed at once from the mean of the attacker's data, by normalised gradient steps of falling
    length, clipped to the valid range; the best point of each class is kept. Inputs with two or more spatial sides
    are smoothed by a total-variation term.

    Departures from the source (CCS 2015, Algorithm 1): the start is the data mean, not zero; the cost is
    -log p + `smoothness` * total variation instead of 1 - p with a denoising step; steps are normalised.
    """

    steps: int = 200
    rate: float = 0.1
    """Length of the first step, as a share of the diagonal of the valid box."""
    smoothness: float = 0.05

    card: ClassVar[AttackCard] = AttackCard(
        id="leakage.inversion",
        name="Model inversion (MI-Face)",
        summary="Rebuilds, from the model alone, what a typical training input of each class looks like.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        sources=(
            Source(
                title="Model Inversion Attacks that Exploit Confidence Information and Basic Countermeasures",
                where="CCS 2015, Algorithm 1",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"steps": 40}, "deep": {"steps": 1000}}

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not self.rate > 0:
            raise ValueError(f"rate must be above 0, got {self.rate}")
        if not self.smoothness >= 0:
            raise ValueError(f"smoothness must be 0 or more, got {self.smoothness}")

    def price(self, classes: int | None) -> Price:
        total = self.steps * (classes or 1)
        return Price(queries=total, gradients=total)

    def __call__(self, scene: LeakScene, rng: Rng) -> Leak:
        x0 = scene.x[:1]
        low, high = (
            torch.as_tensor(v, dtype=x0.dtype, device=x0.device) for v in (scene.domain.low, scene.domain.high)
        )
        diagonal = torch.linalg.vector_norm((high - low).expand(x0.shape[1:]))
        classes = scene.domain.classes or 2
        start = scene.pool.x_test.mean(0, keepdim=True).to(x0)
        x = start.expand(classes, *x0.shape[1:]).clone()
        best, best_cost = x, torch.full((classes,), torch.inf, device=x.device)
        for step in range(self.steps):
            cost, gradient = _look(scene.target, x, self.smoothness)
            better = cost < best_cost
            best = torch.where(_rows(better, x), x, best)
            best_cost = torch.where(better, cost, best_cost)
            norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
            length = self.rate * diagonal * (1 - step / self.steps)
            x = torch.clamp(x - length * gradient / _rows(norm, x), low, high)
        spent = self.steps * classes
        facts = {"gradients": spent, "confidence": [float(v) for v in _confidence(scene.target, best)]}
        return Leak(reconstructed=best.detach(), queries=spent + classes, facts=facts)


def _look(target: Target, x: Tensor, smoothness: float) -> tuple[Tensor, Tensor]:
    """Cost `[k]` of row i standing for class i, and its gradient `[k, ...]`."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        cost = -log_probabilities(target.forward(x)).diagonal().to(x.dtype) + smoothness * _variation(x)
        gradient = input_gradient(cost, x)
    return cost.detach(), gradient


@torch.no_grad()
def _confidence(target: Target, x: Tensor) -> Tensor:
    return log_probabilities(target.forward(x)).diagonal().exp().cpu()


def _variation(x: Tensor) -> Tensor:
    """Total variation `[k]` along the last two sides; 0 for flat inputs."""
    if x.dim() < 4:
        return x.new_zeros(len(x))
    return x.diff(dim=-1).abs().flatten(1).sum(1) + x.diff(dim=-2).abs().flatten(1).sum(1)


def _rows(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.dim() - 1))
