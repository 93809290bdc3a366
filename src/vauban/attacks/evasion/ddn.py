"""Decoupled direction and norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from vauban.attacks.evasion.front import Front
from vauban.attacks.evasion.minimal import Minimal
from vauban.attacks.evasion.nearest import Nearest, scale
from vauban.attacks.evasion.settings import above, at_most
from vauban.core.attack import EvasionScene
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.parts.projections import per_row
from vauban.parts.schedules import cosine
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class DDN(Minimal):
    """Turns the change towards the slope, and sets its length apart from that: shorter where the goal is reached, else longer.

    Source: Rony, Hafemann, Oliveira, Ben Ayed, Sabourin and Granger 2019 (arXiv:1811.09600, algorithm 1).
    Departures: nothing is rounded to a grid on the way; the margin is followed instead of the cross-entropy, towards each
    of the nearest classes in turn with a share of the steps for each; the first length and the steps are measured by how
    far the border seems to be at the clean input, not by the box; the last ten steps cross the linearised border.

    Args:
        steps: gradients in all.
        targets: nearest classes to go for, where any class will do.
        gamma: share by which the length changes at every step, 0 to 1.
        stride: length of the first step, as a multiple of the distance to the border (seen from the clean input); it
            falls to a hundredth on a cosine.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.ddn",
        name="Decoupled direction and norm",
        summary="Looks for the shortest change that fools the model by turning it and shortening it in turn.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("l2",),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="Decoupling direction and norm for efficient gradient-based L2 adversarial attacks and defenses",
                where="Rony et al., CVPR 2019, arXiv:1811.09600, algorithm 1",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 100, "targets": 1},
        "deep": {"steps": 2000, "targets": 4},
    }

    gamma: float = 0.05
    stride: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        above("gamma", self.gamma, 0)
        at_most("gamma", self.gamma, 0.9)
        above("stride", self.stride, 0)

    def run(self, scene: EvasionScene, front: Front, found: Nearest, loss: Loss, steps: int, rng: Rng) -> None:
        """One run; see the class."""
        z, stride, length = front.x, torch.ones(0), torch.ones(0)
        for number in range(steps):
            look = scene.oracle.value_and_grad(loss, z, front.rows)
            found.see(z, front.rows, look.margin)
            if number == 0:
                length = scale(scene, z, look)
                stride = self.stride * length
            share = 0.01 + 0.99 * cosine(number, steps)
            flat = look.grad.flatten(1)
            flat = torch.where((flat != 0).any(1, keepdim=True), flat, rng.normal(front.rows, flat.shape[1:]).to(flat))
            steepness = torch.linalg.vector_norm(flat.double(), dim=1)
            change = z - front.x + flat.view_as(z) * per_row(stride * share / steepness, z)
            length = length * torch.where(look.margin > 0, 1 - self.gamma, 1 + self.gamma)
            now = torch.linalg.vector_norm(change.flatten(1).double(), dim=1).clamp_min(torch.finfo(z.dtype).tiny)
            z = scene.space.project(front.x + change * per_row(length / now, z), front.x, torch.inf)
            z, stride, length = front.narrow(look.open, z, stride, length)
            if not len(front):
                return
