"""Fast minimum-norm: the radius follows the border."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.ascent import WIDE
from vauban.attacks.evasion.front import Front
from vauban.attacks.evasion.minimal import Minimal
from vauban.attacks.evasion.nearest import Nearest, scale
from vauban.attacks.evasion.settings import above, at_most
from vauban.core.attack import EvasionScene
from vauban.core.oracle import Look, Loss
from vauban.core.rng import Rng
from vauban.parts.projections import per_row
from vauban.parts.schedules import cosine
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class FMN(Minimal):
    """Follows the margin within a radius that shrinks where the goal is reached and grows where it is not.

    Source: Pintor, Roli, Brendel and Biggio 2021 (arXiv:2102.12827, algorithm 1).
    Departures: the run is made towards each of the nearest classes in turn, by where a linear model would give in, with
    a share of the steps for each, because the class with the largest score need not be the nearest; steps are measured by
    how far the border seems to be at the clean input, not by the box, so that inputs may have any units; projections
    are onto ball and box together; in Linf a step moves every feature by the radius, by the sign of its slope, for models
    trained against Linf have slopes that are tiny in most features; until the first success the radius grows by gamma at
    least; the last ten steps cross the linearised border, and in L0 three quarters of them exchange features; rows whose slopes at the input mislead follow the largest class
    in the second and third run, and in L2 and L1 begin them in balls of 8, 4, 2 and 1 times the nearest success. `targets=1` is
    the published attack but for units and last steps.

    Args:
        steps: gradients in all.
        targets: nearest classes to go for, where any class will do.
        gamma: share by which the radius changes at first, 0 to 1 (0.05 in the paper); it falls to a fiftieth on a cosine.
        stride: length of the first step, as a multiple of the distance to the border (in L2, seen from the clean
            input); it falls to a hundredth on a cosine. In Linf steps begin at the radius, whatever
            the stride; in L1 they are eight times as long, and the radius changes twice as fast.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.fmn",
        name="Fast minimum-norm",
        summary="Looks for the smallest change that fools the model, in a circle that tightens as soon as it does.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("linf", "l2", "l1", "l0"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="Fast minimum-norm adversarial attacks through adaptive norm constraints",
                where="Pintor et al., NeurIPS 2021, arXiv:2102.12827, algorithm 1",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 100, "targets": 1},
        "deep": {"steps": 2000, "targets": 6},
    }

    gamma: float = 0.1
    stride: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        above("gamma", self.gamma, 0)
        at_most("gamma", self.gamma, 0.9)
        above("stride", self.stride, 0)

    def run(self, scene: EvasionScene, front: Front, found: Nearest, loss: Loss, steps: int, rng: Rng) -> None:
        """One run; see the class."""
        oracle, space = scene.oracle, scene.space
        z, astray = front.x, found.astray[front.rows] & (space.name in WIDE)
        own = torch.full((len(front),), torch.inf, dtype=torch.float64, device=z.device)
        radius, stride = torch.full_like(own, 1.0 if space.name == "l0" else torch.inf), own
        further, quicker = PACE[space.name]
        quick, early = min(quicker * self.gamma, 0.9), round(EARLY * steps)
        for number in range(steps):
            falling = torch.where(
                astray, own.new_tensor(cosine(number - early, steps - early)), own.new_tensor(cosine(number, steps))
            )
            gamma, share = quick * (0.02 + 0.98 * falling), 0.01 + 0.99 * falling
            look = oracle.value_and_grad(loss, z, front.rows)
            found.see(z, front.rows, look.margin)
            if number == 0:
                stride = further * self.stride * scale(scene, z, look)
            hit, reach, near = look.margin > 0, space.distance(z, front.x), found.distance[front.rows]
            own = torch.where(hit, torch.minimum(own, reach), own)
            if number == early:
                own, radius = (torch.where(astray, near, was) for was in (own, radius))
            far = astray & (number < early)
            radius = RADIUS[space.name](radius, own, hit, reach, gamma, look)
            radius = torch.where(far, AROUND[len(AROUND) * min(number, early - 1) // early] * near, radius)
            length = torch.where(far, further * radius, stride * share)
            step = STEP[space.name](scene, z, look.grad, length, radius * share)
            z = space.project(z + step, front.x, radius)
            z, own, radius, stride, astray = front.narrow(look.open, z, own, radius, stride, astray)
            if not len(front):
                return


def _counted(radius: Tensor, own: Tensor, hit: Tensor, reach: Tensor, gamma: float, look: Look) -> Tensor:
    """In L0: by one feature at least."""
    less = torch.minimum(torch.minimum(radius - 1, (radius * (1 - gamma)).floor()), own)
    more = torch.maximum(radius + 1, (radius * (1 + gamma)).floor())
    return torch.where(hit, less, more).clamp_min(0)


def _measured(order: float) -> Any:
    def radius(radius: Tensor, own: Tensor, hit: Tensor, reach: Tensor, gamma: float, look: Look) -> Tensor:
        """To where a linear model would give in, until there was a success; from then on by a share."""
        dual = torch.linalg.vector_norm(look.grad.flatten(1).double(), ord=order, dim=1)
        seen = reach + look.value.abs().double() / dual.clamp_min(torch.finfo(torch.float64).tiny)
        # a little further every time, for a model that is linear would only ever be taken to the border, not across
        waiting = torch.where(radius.isfinite(), torch.maximum(radius, seen), seen)
        more = torch.where(own.isfinite(), radius, waiting) * (1 + gamma)
        return torch.where(hit, torch.minimum(radius * (1 - gamma), own), more)

    return radius


RADIUS = {"linf": _measured(1.0), "l2": _measured(2.0), "l1": _measured(torch.inf), "l0": _counted}


def _along(scene: EvasionScene, z: Tensor, slope: Tensor, stride: Tensor, radius: Tensor) -> Tensor:
    """A step of Euclidean length `stride`."""
    length = torch.linalg.vector_norm(slope.flatten(1).double(), dim=1)
    share = torch.where(length > 0, stride / length.clamp_min(torch.finfo(torch.float64).tiny), 0)
    return slope * per_row(share, z)


def _by_signs(scene: EvasionScene, z: Tensor, slope: Tensor, stride: Tensor, radius: Tensor) -> Tensor:
    """A step of the radius in every feature, as in PGD: where slopes are tiny for most features, these move, too."""
    return scene.space.steepest(slope, z, radius.clamp_max(torch.finfo(z.dtype).max / 4))


EARLY = 0.5
"""Share of the steps that rows whose slopes lead astray spend farther away than what was found."""
AROUND = (8.0, 4.0, 2.0, 1.0)
"""Radii of these steps, as multiples of the nearest success."""
PACE = {"linf": (1.0, 1.0), "l2": (1.0, 1.0), "l1": (8.0, 2.0), "l0": (1.0, 1.0)}
"""Multiples of `stride` and `gamma`: in L1 the change is cut to few features, which only long steps can exchange."""
STEP = {"linf": _by_signs, "l2": _along, "l1": _along, "l0": _along}
