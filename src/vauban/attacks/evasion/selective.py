"""Selective gradient descent, for models that may refuse to answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front, finite_radius
from vauban.attacks.evasion.settings import above, at_least
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.goal import Goal
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.core.target import Outputs
from vauban.parts.estimators import unit
from vauban.parts.goals import shunned
from vauban.parts.losses import as_logits
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

KEPT = 0.9
"""Share of the old in the running mean of slopes."""


@dataclass(frozen=True, kw_only=True)
class Selective:
    """First fools the model whether it refuses or not, and then looks for where it does not refuse.

    A detector in front of a model, or a vote that abstains, answers by a class of its own where it is in doubt. A loss of both
    together pulls in two directions at once. Here each step follows one alone: where another class than the true one leads among the
    real ones, by `lead` or more, the refusal's logit is descended against the leading one; elsewhere the margin among the real
    classes is climbed. Where the model has no refusal, this is ascent of the margin with momentum.

    Source: Bryniarski et al. 2021 (arXiv:2106.15023, section 4.1, selective projected gradient descent).
    Departures: steps follow a running mean of the slopes, scaled to length 1 so that neither aim outweighs the other in it; their size falls
    along a cosine; every look counts, not the last point alone.

    Args:
        steps: gradient steps of a run.
        restarts: runs: the first from the clean input, the others from random points.
        step: size of the first step as a share of the radius.
        lead: by which another class must be ahead, in logits, before the refusal is descended.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.selective",
        name="Selective gradient descent",
        summary="Goes against a model and its detector in turns: fool the one, then calm the other.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("linf", "l2"),
        tasks=("classification",),
        goals=("untargeted",),
        curve=True,
        sources=(
            Source(
                title="Evading adversarial example detection defenses with orthogonal projected gradient descent",
                where="Bryniarski et al., ICLR 2022, arXiv:2106.15023, section 4.1",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 30, "restarts": 1},
        "deep": {"steps": 300, "restarts": 4},
    }

    steps: int = 100
    restarts: int = 2
    step: float = 0.5
    lead: float = 0.05

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        at_least("restarts", self.restarts, 1)
        above("step", self.step, 0)
        at_least("lead", self.lead, 0)

    def price(self, classes: int | None) -> Price:
        """`steps` gradients and one query more a run."""
        return Price(queries=self.restarts * (self.steps + 1), gradients=self.restarts * self.steps)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        finite_radius(scene, self.card.name)
        aim = selective(scene.oracle.goal, self.lead)
        for restart in range(self.restarts):
            front = Front(scene)
            if len(front):
                drawn = rng.child("selective", restart)
                start = scene.space.sample(front.x, scene.radius, drawn, front.rows) if restart else front.x
                self._run(scene, front, start, aim)
        return Perturbed(scene.oracle.best.x)

    def _run(self, scene: EvasionScene, front: Front, z: Tensor, aim: Loss) -> None:
        mean = torch.zeros_like(z)
        for number in range(self.steps):
            look = scene.oracle.value_and_grad(aim, z, front.rows)
            z, mean, slope = front.narrow(look.open, z, mean, look.grad)
            if not len(front):
                return
            size = scene.radius * self.step * (1 + math.cos(math.pi * number / self.steps)) / 2
            mean = KEPT * mean + (1 - KEPT) * unit(slope)
            z = front.project(z + scene.space.steepest(mean, z, size))
        scene.oracle.margins(z, front.rows)


def selective(goal: Goal, lead: float) -> Loss:
    """What is climbed: minus the refusal's lead where a wrong class leads the real ones by `lead`, and that lead elsewhere."""
    gone = shunned(goal)
    if gone is None:
        return goal.margin

    def aim(outputs: Outputs, rows: Tensor) -> Tensor:
        z = as_logits(outputs)
        true = goal.labels[rows.to(goal.labels.device)].to(z.device)[:, None]
        real = z.scatter(1, torch.full_like(true, gone), -torch.inf)
        ahead = real.scatter(1, true, -torch.inf).amax(1) - z.gather(1, true)[:, 0]
        return torch.where(ahead > lead, real.amax(1) - z[:, gone], ahead)

    return aim
