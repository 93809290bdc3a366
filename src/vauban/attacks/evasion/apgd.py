"""Auto-PGD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from vauban.attacks.evasion.ascent import ascend, close_in
from vauban.attacks.evasion.front import Front, finite_radius
from vauban.attacks.evasion.rivals import compared, lead
from vauban.attacks.evasion.settings import at_least, at_most, one_of
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.rng import Rng
from vauban.parts.losses import LOSSES
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class APGD:
    """Projected gradient ascent without a step size to choose: it starts at twice the radius and halves where it stalls.

    Every row has its own step size, momentum and best point, so that its result does not depend on its neighbours.

    Source: Croce and Hein 2020 (arXiv:2003.01690, algorithm 1; DLR loss: equation 6).
    Departures: a row that returns to its best point forgets its momentum; success is tested at every iterate and ends
    the row's run; in L1 the steps are the sparse ones of Croce and Hein 2021 (arXiv:2103.01208), and in L1 and L2 a run begins
    in wider balls (`ascent.close_in`); in a regression each run is made twice, upwards
    and downwards, unless the first succeeds; the last steps climb the margin itself from where a linear model would give
    in to its nearest class, because a smooth loss spends itself on classes that are not the nearest; in a further restart
    they start from the best point so far. `finish=0` is the published attack.

    Args:
        steps: gradients of a run.
        restarts: runs from different random points.
        loss: `ce` (cross-entropy), `margin` (difference of logits) or `dlr` (difference of logits ratio).
        at_once: take the restarts as one batch, from which an input leaves at the first success of any, with one finish for
            all; faster where few inputs are left, and dearer where a first run would have done.
        finish: share of the steps that climb the margin at the end, 0 to 0.5; the comparison of classes is paid from
            them, a step a class, so that a run of few steps compares few classes.
        wide: in L2 and L1, begin in balls of eight, four and two times the radius; False keeps to the radius, as published.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.apgd",
        name="Auto-PGD",
        summary="Follows the gradient with a step size that adapts itself, input by input.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("linf", "l2", "l1", "flow"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        curve=True,
        sources=(
            Source(
                title="Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
                where="Croce and Hein, ICML 2020, arXiv:2003.01690, algorithm 1",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"steps": 20}, "deep": {"restarts": 5}}

    steps: int = 100
    restarts: int = 1
    loss: str = "ce"
    finish: float = 0.4
    at_once: bool = False
    wide: bool = True

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 2)
        at_least("restarts", self.restarts, 1)
        one_of("loss", self.loss, LOSSES)
        at_least("finish", self.finish, 0)
        at_most("finish", self.finish, 0.5)

    def price(self, classes: int | None) -> Price:
        """`steps` gradients a run and four queries more; twice that in a regression."""
        runs = self.restarts * (1 if classes else 2)
        return Price(queries=runs * (self.steps + 4), gradients=runs * self.steps)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        radius = finite_radius(scene, self.card.name)
        last = round(self.finish * self.steps)
        rivals = compared(scene, last - 2)
        every = list(range(self.restarts))
        for group in [every] if self.at_once else [[restart] for restart in every]:
            # the way to the nearest class is the same every time: further runs refine what they found themselves
            led = rivals if 0 in group else 0
            for side, loss in enumerate(scene.oracle.goal.objectives(self.loss)):
                front = Front(scene)
                if len(front):
                    streams = [rng.child("apgd", restart, side) for restart in group]
                    start = torch.cat([scene.space.sample(front.x, radius, s, front.rows) for s in streams])
                    close_in(
                        scene, Front(scene, front.rows.repeat(len(group))), start, loss, self.steps - last, self.wide
                    )
                front = Front(scene)
                if last and len(front):
                    start = lead(scene, front, led)[1] if led else front.project(scene.oracle.best.x[front.rows])
                    ascend(scene, front, start, scene.oracle.goal.objectives("margin")[side], last - led)
        return Perturbed(scene.oracle.best.x)
