"""PDGD and PDPGD: descent on the change, ascent on the weight of the goal."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front
from vauban.attacks.evasion.minimal import Minimal
from vauban.attacks.evasion.nearest import Nearest, box, scale
from vauban.attacks.evasion.settings import above
from vauban.core.attack import EvasionScene
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.parts.lp import l1_threshold
from vauban.parts.projections import per_row
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

SOURCE = Source(
    title="PDPGD: primal-dual proximal gradient descent adversarial attack",
    where="Matyasko and Chau 2021, arXiv:2106.01538, algorithms 1 and 2",
)
KEEP = 0.9
"""Of the averaged weight, at each step."""
FARTHEST = -math.log(1e-6)


@dataclass(frozen=True, kw_only=True)
class _PrimalDual(Minimal):
    """What both share: Adam on the change, and a weight of the goal that rises while it is not reached and falls after.

    Steps are measured by how far the border seems to be at the clean input: Adam moves every feature by about its step,
    so that is spread over the root of their number.
    """

    shortest: ClassVar[int] = 150

    stride: float = 3.0
    pace: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        above("stride", self.stride, 0)
        above("pace", self.pace, 0)

    def run(self, scene: EvasionScene, front: Front, found: Nearest, loss: Loss, steps: int, rng: Rng) -> None:
        """One run; see the class."""
        z, stride = front.x, torch.ones(len(front), dtype=torch.float64, device=front.x.device)
        mean, square = torch.zeros_like(z), torch.zeros_like(z)
        # logarithm of the goal's weight over that of the distance, as it is and averaged over steps
        weight = torch.full_like(stride, -math.log(0.01))
        goal = weight.sigmoid()
        for number in range(steps):
            look = scene.oracle.value_and_grad(loss, z, front.rows)
            found.see(z, front.rows, look.margin)
            if number == 0:
                stride = self.stride * scale(scene, z, look) / math.sqrt(z[:1].numel())
            slope = -look.grad * per_row(torch.sigmoid(-look.value.double()), z)
            slope = self.slope(slope, z - front.x, goal)
            mean = mean + 0.1 * (slope - mean)
            square = 0.999 * square + 0.001 * slope.square()
            size = (square / (1 - 0.999 ** (number + 1))).sqrt() + 1e-8
            step = stride * 0.01 ** (number / steps)
            moved = z - per_row(step / (1 - 0.9 ** (number + 1)), z) * mean / size
            moved = torch.clamp(moved, *box(scene, z))
            z = self.shrunk(scene, moved, front.x, size, step, goal)
            share = (steps - 1 - number) / max(steps - 1, 1)
            pace = self.pace * (share * 0.9 + 0.1)
            weight = (weight + torch.where(look.margin > 0, -pace, pace)).clamp(-FARTHEST, FARTHEST)
            goal = KEEP * goal + (1 - KEEP) * weight.sigmoid()
            z, stride, mean, square, weight, goal = front.narrow(look.open, z, stride, mean, square, weight, goal)
            if not len(front):
                return

    @abstractmethod
    def slope(self, slope: Tensor, change: Tensor, goal: Tensor) -> Tensor:
        """What Adam descends, given the slope of the goal's loss."""

    @abstractmethod
    def shrunk(self, scene: EvasionScene, z: Tensor, x: Tensor, size: Tensor, step: Tensor, goal: Tensor) -> Tensor:
        """The point after the distance has had its share."""


@dataclass(frozen=True, kw_only=True)
class PDGD(_PrimalDual):
    """Descends distance and margin together, with a weight between them that follows whether the goal is reached.

    Source: Matyasko and Chau 2021 (arXiv:2106.01538, algorithm 1).
    Departures: the run is made towards each of the nearest classes in turn, with a share of the steps for each; steps are
    measured by how far the border seems to be at the clean input, not by the box; the last ten cross the linearised border.

    Args:
        steps: gradients in all.
        targets: nearest classes to go for, where any class will do.
        stride: first step of every feature, in distances to the border over the root of the number of features; it falls
            to a hundredth.
        pace: how fast the logarithm of the weight changes at first; it falls to a tenth.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.pdgd",
        name="Primal-dual gradient descent",
        summary="Looks for the shortest change that fools the model by weighing length against success as it goes.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("l2",),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(SOURCE,),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 100, "targets": 1},
        "deep": {"steps": 2000, "targets": 4},
    }

    def slope(self, slope: Tensor, change: Tensor, goal: Tensor) -> Tensor:
        """The weighted sum of both slopes."""
        length = torch.linalg.vector_norm(change.flatten(1).double(), dim=1).clamp_min(1e-12)
        return slope * per_row(goal, slope) + change * per_row((1 - goal) / length, change)

    def shrunk(self, scene: EvasionScene, z: Tensor, x: Tensor, size: Tensor, step: Tensor, goal: Tensor) -> Tensor:
        """As it is: the distance was in the slope."""
        return z


@dataclass(frozen=True, kw_only=True)
class PDPGD(_PrimalDual):
    """As PDGD, but the distance is not descended: its proximal operator shrinks the change after every step.

    In L1 that sets small changes to zero, in Linf it cuts the largest.

    Source: Matyasko and Chau 2021 (arXiv:2106.01538, algorithm 2).
    Departures: those of PDGD, and changes that shrink in the metric of Adam's denominator do so by one closed form where
    that metric is diagonal and the norm a sum (L1), and by five fixed-point steps elsewhere.

    Args:
        steps: gradients in all.
        targets: nearest classes to go for, where any class will do.
        stride: first step of every feature, in distances to the border over the root of the number of features; it falls
            to a hundredth.
        pace: how fast the logarithm of the weight changes at first; it falls to a tenth.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.pdpgd",
        name="Primal-dual proximal gradient descent",
        summary="Looks for the smallest change that fools the model by shrinking it a little after every step.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(SOURCE,),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = PDGD.profiles

    def slope(self, slope: Tensor, change: Tensor, goal: Tensor) -> Tensor:
        """That of the goal alone."""
        return slope

    def shrunk(self, scene: EvasionScene, z: Tensor, x: Tensor, size: Tensor, step: Tensor, goal: Tensor) -> Tensor:
        """The proximal point, in the metric of Adam's denominator."""
        most = size.flatten(1).amax(1)
        by = (1 - goal) / goal * step / most.double()
        change = PROXIMAL[scene.space.name](z - x, size / per_row(most, z), by)
        return torch.clamp(x + change, *box(scene, z))


def _less(change: Tensor, metric: Tensor, by: Tensor) -> Tensor:
    """L1: every change shorter by as much."""
    return change.sign() * (change.abs() - per_row(by, change) / metric).clamp_min(0)


def _iterated(plain: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def proximal(change: Tensor, metric: Tensor, by: Tensor) -> Tensor:
        now = change
        for _ in range(5):
            now = plain(now - metric * (now - change), by)
        return now

    return proximal


def _shorter(change: Tensor, by: Tensor) -> Tensor:
    """L2: the whole change shorter by as much."""
    length = torch.linalg.vector_norm(change.flatten(1).double(), dim=1).clamp_min(1e-30)
    return change * per_row((1 - by / length).clamp_min(0), change)


def _flatter(change: Tensor, by: Tensor) -> Tensor:
    """Linf: the largest changes cut down, by as much in sum."""
    size = change.flatten(1).abs().double()
    level = l1_threshold(size, torch.full_like(size, torch.inf), by)
    return change.sign() * torch.minimum(size, level[:, None]).view_as(change).to(change)


PROXIMAL = {"linf": _iterated(_flatter), "l2": _iterated(_shorter), "l1": _less}
