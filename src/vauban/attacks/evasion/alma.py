"""ALMA: an augmented Lagrangian for the distance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front
from vauban.attacks.evasion.minimal import Minimal
from vauban.attacks.evasion.nearest import Nearest, box, scale
from vauban.attacks.evasion.settings import above, at_most
from vauban.core.attack import EvasionScene
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.parts.projections import per_row
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

CHECK = 10
"""Steps between looks at whether the weight of the goal should grow."""


@dataclass(frozen=True, kw_only=True)
class ALMA(Minimal):
    """Descends the distance plus a penalty on not reaching the goal, whose weight is a multiplier that adapts itself.

    Source: Rony, Granger, Pedersoli and Ben Ayed 2021 (arXiv:2011.11857, algorithm 2).
    Departures: the run is made towards each of the nearest classes in turn, with a share of the steps for each; the gap to
    the border is counted in units of that at the clean input instead of differences of logits ratio, and changes in
    units of how far the border seems to be there, so that models and inputs may have any scale; the penalty is the plain
    quadratic augmentation (the paper's P2 smooths it); the first step size is set instead of searched for; the last ten
    steps cross the linearised border.

    Args:
        steps: gradients in all.
        targets: nearest classes to go for, where any class will do.
        stride: length of the first step, in distances to the border; it falls to a hundredth.
        weight: the penalty's curvature at first; it doubles where ten steps did not bring the border 5 % nearer.
        memory: share of the old multiplier that is kept at each step, 0 to 1.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.alma",
        name="Augmented Lagrangian attack",
        summary="Looks for the smallest change that fools the model, with a price on failing that sets itself.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("l2", "l1"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="Augmented Lagrangian adversarial attacks",
                where="Rony et al., ICCV 2021, arXiv:2011.11857, algorithm 2",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 100, "targets": 1},
        "deep": {"steps": 2000, "targets": 4},
    }
    shortest: ClassVar[int] = 100

    stride: float = 2.0
    weight: float = 1.0
    memory: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        above("stride", self.stride, 0)
        above("weight", self.weight, 0)
        above("memory", self.memory, 0)
        at_most("memory", self.memory, 0.999)

    def run(self, scene: EvasionScene, front: Front, found: Nearest, loss: Loss, steps: int, rng: Rng) -> None:
        """One run; see the class."""
        z, many = front.x, len(front)
        one = torch.ones(many, dtype=torch.float64, device=z.device)
        reach, start, price, weight, worst = one, one, one, self.weight * one, torch.inf * one
        mean, square = torch.zeros_like(z), torch.zeros_like(z)
        for number in range(steps):
            look = scene.oracle.value_and_grad(loss, z, front.rows)
            found.see(z, front.rows, look.margin)
            if number == 0:
                reach = scale(scene, z, look)
                start = (-look.value.double()).clamp_min(torch.finfo(z.dtype).tiny)
            gap = -look.value.double() / start + 1e-3
            if number and number % CHECK == 0:
                grow = (gap > 0) & (gap > 0.95 * worst)
                weight, worst = torch.where(grow, (2 * weight).clamp_max(1e4), weight), gap
            pull = (price + weight * gap).clamp_min(0)
            price = (self.memory * price + (1 - self.memory) * pull).clamp(1e-6, 1e6)
            slope = -look.grad * per_row(pull * reach / start, z) + PULL[scene.space.name](z - front.x)
            mean = 0.9 * mean + 0.1 * slope
            square = 0.99 * square + 0.01 * per_row(slope.flatten(1).double().square().mean(1), z)
            step = self.stride * reach * 0.01 ** (number / steps) / z[:1].numel() ** 0.5
            ready = mean / (1 - 0.9 ** (number + 1))
            z = z - per_row(step, z) * ready / ((square / (1 - 0.99 ** (number + 1))).sqrt() + 1e-12)
            z = torch.clamp(z, *box(scene, z))
            z, reach, start, price, weight, worst, mean, square = front.narrow(
                look.open, z, reach, start, price, weight, worst, mean, square
            )
            if not len(front):
                return


def _unit(change: Tensor) -> Tensor:
    """The slope of the Euclidean length."""
    length = torch.linalg.vector_norm(change.flatten(1).double(), dim=1).clamp_min(1e-12)
    return change / per_row(length, change)


PULL: Mapping[str, Callable[[Tensor], Tensor]] = {"l2": _unit, "l1": torch.sign}
