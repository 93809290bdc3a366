"""The fast gradient sign method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vauban.attacks.evasion.front import Front, finite_radius
from vauban.attacks.evasion.rivals import OVERSHOOT, compared, rank
from vauban.attacks.evasion.settings import at_least, one_of
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.parts.losses import LOSSES
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class FGSM:
    """One step of the full radius along the gradient at the clean input, exact for a linear model.

    A baseline for iterative attacks: one that loses against this one is broken itself.

    Source: Goodfellow, Shlens and Szegedy 2015 (arXiv:1412.6572, section 4).
    Departures: in L2 and L1 the step is the steepest one of that norm (the fast gradient method); it overshoots a
    hundredfold and is projected back onto ball and box, so that the room that the box denies to some features goes to
    the others; the step goes towards the nearest class, found by comparing gradients of the likeliest ones, for a
    loss over all classes points to none of them (`rivals=1, loss=ce` is the published attack); in a regression both
    directions are tried.

    Args:
        rivals: wrong classes that are compared, likeliest first; 1 compares none and follows the loss.
        loss: where no classes are compared, `ce` (cross-entropy), `margin` (difference of logits) or `dlr` (difference
            of logits ratio).
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.fgsm",
        name="Fast gradient sign method",
        summary="Moves every input once, as far as allowed, the way the loss grows fastest.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="Explaining and harnessing adversarial examples",
                where="Goodfellow, Shlens, Szegedy, ICLR 2015, arXiv:1412.6572, section 4",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {}, "deep": {}}

    rivals: int = 9
    loss: str = "margin"

    def __post_init__(self) -> None:
        at_least("rivals", self.rivals, 1)
        one_of("loss", self.loss, LOSSES)

    def price(self, classes: int | None) -> Price:
        """A gradient for every class that is compared and three queries; in a regression two and four."""
        return Price(queries=3, gradients=min(self.rivals, classes)) if classes else Price(queries=4, gradients=2)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        radius = finite_radius(scene, self.card.name)
        rivals = compared(scene, self.rivals)
        if rivals > 1:
            self._leap(scene, rivals)
        else:
            for loss in scene.oracle.goal.objectives(self.loss):
                self._step(scene, radius, loss)
        return Perturbed(scene.oracle.best.x)

    def _leap(self, scene: EvasionScene, rivals: int) -> None:
        front = Front(scene)
        if len(front):
            scene.oracle.margins(rank(scene, front, rivals).start, front.rows)

    def _step(self, scene: EvasionScene, radius: float, loss: Loss) -> None:
        oracle, front = scene.oracle, Front(scene)
        if not len(front):
            return
        look = oracle.value_and_grad(loss, front.x, front.rows)
        (grad,) = front.narrow(look.open, look.grad)
        if len(front):
            z = front.x + scene.space.steepest(grad, front.x, OVERSHOOT * radius)
            oracle.margins(front.project(z), front.rows)
