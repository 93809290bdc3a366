"""FAB: projections onto the linearised border, drawn to the clean input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front
from vauban.attacks.evasion.minimal import Minimal
from vauban.attacks.evasion.nearest import Nearest, box
from vauban.attacks.evasion.settings import above, at_most
from vauban.core.attack import EvasionScene
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.parts.halfspace import cross
from vauban.parts.projections import per_row
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class FAB(Minimal):
    """Steps to where a linear model's border would be, and a little towards the point of that border nearest to the input.

    Where the goal is reached, it goes back part of the way to the input and on from there. One pass a step.

    Source: Croce and Hein 2020 (arXiv:1907.02044, algorithm 1; the targeted version of arXiv:2003.01690).
    Departures: the same look tells success and slope, so that a step costs one forward and one backward instead of two
    forwards and a backward for every class; classes are those that a linear model would give in to first, in turn; the
    search ends at a radius where there is one; no random restarts; the last ten steps cross the linearised border.

    Args:
        steps: gradients in all.
        targets: nearest classes to go for, where any class will do.
        pull: largest weight of the point nearest to the input, 0 to 1.
        overshoot: how far steps go, in ways to the border; at least 1.
        back: share of the way from the input at which it goes on after a success, 0 to 1.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.fab",
        name="Fast adaptive boundary",
        summary="Looks for the smallest change that fools the model along its border, as if that were flat.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="Minimally distorted adversarial examples with a fast adaptive boundary attack",
                where="Croce and Hein, ICML 2020, arXiv:1907.02044, algorithm 1",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 60, "targets": 1},
        "deep": {"steps": 1000, "targets": 9},
    }

    pull: float = 0.1
    overshoot: float = 1.05
    back: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        above("pull", self.pull, 0)
        at_most("pull", self.pull, 1)
        above("overshoot", self.overshoot, 0.999)
        above("back", self.back, 0)
        at_most("back", self.back, 1)

    def run(self, scene: EvasionScene, front: Front, found: Nearest, loss: Loss, steps: int, rng: Rng) -> None:
        """One run; see the class."""
        z = front.x
        for _ in range(steps):
            look = scene.oracle.value_and_grad(loss, z, front.rows)
            found.see(z, front.rows, look.margin)
            here = onto(z, look.grad, -look.value.double(), scene)
            along = (look.grad.double() * (front.x - z).double()).flatten(1).sum(1)
            origin = onto(front.x, look.grad, -look.value.double() - along, scene)
            near, far = (scene.space.distance(a, b) for a, b in ((here, z), (origin, front.x)))
            pull = (near / (near + far).clamp_min(1e-12)).clamp_max(self.pull)
            tried = (1 - per_row(pull, z)) * (z + self.overshoot * (here - z))
            tried = tried + per_row(pull, z) * (front.x + self.overshoot * (origin - front.x))
            behind = front.x + self.back * (z - front.x)
            hit = per_row(look.margin > 0, z).bool()
            z = torch.clamp(torch.where(hit, behind, tried), *box(scene, z))
            (z,) = front.narrow(look.open, z)
            if not len(front):
                return


def onto(z: Tensor, slope: Tensor, gap: Tensor, scene: EvasionScene) -> Tensor:
    """The point nearest to `z` at which a linear model has grown by `gap` `[m]`, or fallen where that is negative."""
    side = torch.where(gap < 0, -1.0, 1.0)
    return cross(z, slope * per_row(side, z), gap.abs(), *box(scene, z), scene.space.name)
