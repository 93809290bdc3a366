"""Projected gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vauban.attacks.evasion.front import Front, finite_radius
from vauban.attacks.evasion.rivals import compared, lead
from vauban.attacks.evasion.settings import above, at_least, at_most, one_of
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.parts.losses import LOSSES
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class PGD:
    """Steps along the loss's gradient, each followed by a projection onto the ball and the box.

    With `random_start=False` this is BIM, the basic iterative method. Every iterate counts, not only the last, and a
    row that is broken takes no further step.

    Source: Madry et al. 2018 (arXiv:1706.06083, section 2.1); BIM: Kurakin et al. 2017 (arXiv:1607.02533, section 2).
    Departures: the step size is given relative to the radius, and falls linearly over the run unless `decay=False`, so
    that the last steps refine what the first found; the projection is onto ball and box together and exact;
    the loss is the margin unless told otherwise, for cross-entropy's gradient blends all classes; the last steps go
    towards the nearest class, from where a linear model would give in to it, for the class that the loss ends at need
    not be the nearest (`finish=0` leaves that out); in a regression each run is made twice, upwards and downwards, unless
    the first succeeds.

    Args:
        steps: gradient steps of a run.
        step: mean size of a step as a share of the radius; 4 / steps where None, which crosses the ball twice.
        decay: steps fall linearly from nearly twice the mean to nearly nothing; all alike where False.
        restarts: runs from different random points.
        random_start: start from a point drawn uniformly from the ball instead of the clean input.
        finish: share of the steps that go towards the nearest class at the end, 0 to 0.5; the comparison of classes is
            paid from them, a step a class, so that a run of few steps compares few classes. Where None: 0.4, or 0 where
            `step` is given.
        loss: `ce` (cross-entropy), `margin` (difference of logits) or `dlr` (difference of logits ratio).
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.pgd",
        name="Projected gradient descent",
        summary="Follows the gradient of the loss in small steps and never leaves the allowed room.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("linf", "l2", "l1", "flow"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="Towards deep learning models resistant to adversarial attacks",
                where="Madry et al., ICLR 2018, arXiv:1706.06083, section 2.1",
            ),
            Source(
                title="Adversarial examples in the physical world",
                where="Kurakin et al., ICLR 2017 workshop, arXiv:1607.02533, section 2",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 10},
        "deep": {"steps": 100, "restarts": 5},
    }

    steps: int = 40
    step: float | None = None
    decay: bool = True
    restarts: int = 1
    random_start: bool = True
    finish: float | None = None
    loss: str = "margin"

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        at_least("restarts", self.restarts, 1)
        above("step", self._mean, 0)
        at_least("finish", self._finish, 0)
        at_most("finish", self._finish, 0.5)
        one_of("loss", self.loss, LOSSES)

    @property
    def _finish(self) -> float:
        # steps of a size that was chosen for the whole run would not get across the ball in a part of it
        return (0.4 if self.step is None else 0.0) if self.finish is None else self.finish

    @property
    def _mean(self) -> float:
        return 4 / self.steps if self.step is None else self.step

    def sizes(self, steps: int) -> list[float]:
        """The sizes of `steps` steps as shares of the radius."""
        mean = 4 / steps if self.step is None else self.step
        return [mean * (2 * (steps - number) / (steps + 1) if self.decay else 1) for number in range(steps)]

    def price(self, classes: int | None) -> Price:
        """`steps` gradients a run and three queries more; twice that in a regression."""
        runs = self.restarts * (1 if classes else 2)
        return Price(queries=runs * (self.steps + 3), gradients=runs * self.steps)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        finite_radius(scene, self.card.name)
        last = round(self._finish * self.steps)
        rivals = compared(scene, last - 2)
        for restart in range(self.restarts):
            # the way to the nearest class is the same every time
            led = last if rivals and not restart else 0
            for loss in scene.oracle.goal.objectives(self.loss):
                front = Front(scene)
                if len(front):
                    self._run(
                        scene, front, self._start(scene, front, rng.child("pgd", restart)), loss, self.steps - led
                    )
            front = Front(scene)
            if led and len(front):
                self._run(scene, front, lead(scene, front, rivals)[1], scene.oracle.goal.margin, led - rivals)
        return Perturbed(scene.oracle.best.x)

    def _start(self, scene: EvasionScene, front: Front, rng: Rng) -> Tensor:
        return scene.space.sample(front.x, scene.radius, rng, front.rows) if self.random_start else front.x

    def _run(self, scene: EvasionScene, front: Front, z: Tensor, loss: Loss, steps: int) -> None:
        oracle, space = scene.oracle, scene.space
        for size in self.sizes(steps):
            look = oracle.value_and_grad(loss, z, front.rows)
            z, grad = front.narrow(look.open, z, look.grad)
            if not len(front):
                return
            z = front.project(space.steepest(grad, z, scene.radius * size).add_(z))
        oracle.margins(z, front.rows)
