"""The course of a search for the nearest success: towards some classes in turn, then the last steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from vauban.attacks.evasion.exchange import exchange
from vauban.attacks.evasion.front import Front
from vauban.attacks.evasion.nearest import COMPARED, Nearest, levelled, ranked, unled
from vauban.attacks.evasion.rivals import compared, towards
from vauban.attacks.evasion.settings import at_least
from vauban.attacks.evasion.settle import settle
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.schema.cards import AttackCard

FREE = range(1, 3)
"""The runs, of those that a search makes, in which misled rows follow whatever class comes nearest on the way."""


@dataclass(frozen=True)
class Last:
    """The steps at the end that mend what was found: a `share` of all, `most` of them; `leave` so many for the search itself."""

    stage: Callable[[EvasionScene, Nearest, int, Rng], None]
    share: float
    most: float = torch.inf
    leave: int = 0

    def of(self, steps: int) -> int:
        return int(min(self.most, self.share * steps, max(steps - self.leave, 0.2 * steps)))


def _settle(scene: EvasionScene, found: Nearest, steps: int, rng: Rng) -> None:
    settle(scene, found, steps)


FINISH: Mapping[str, Last] = {
    **dict.fromkeys(("linf", "l2", "l1"), Last(_settle, 0.2, 10)),
    "l0": Last(exchange, 0.75, leave=50),
}
"""Which features to change is a choice that slopes alone do not make: most of a search for few is spent on exchanging them."""


@dataclass(frozen=True, kw_only=True)
class Minimal:
    """An attack that follows one loss at a time: towards each of the nearest classes in turn, then settles.

    Rows whose first run found a success much nearer than the slopes at the input promise follow the largest class in the two
    after it: the order of the classes came from these slopes. Subclasses say how one such run goes.
    """

    card: ClassVar[AttackCard]
    shortest: ClassVar[int] = 50
    """Steps of a run at least: with fewer for each class, fewer classes are gone for."""

    steps: int = 500
    targets: int = 3

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 4)
        at_least("targets", self.targets, 1)

    def price(self, classes: int | None) -> Price:
        """`steps` gradients, and up to three queries to rank classes."""
        return Price(queries=self.steps + 3, gradients=self.steps)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]`: the nearest successes, or one within the radius where it is finite."""
        found = Nearest(scene)
        losses, left = self._ways(scene, found)
        last = FINISH[scene.space.name]
        settling = last.of(left)
        for number, side in enumerate(losses):
            front = Front(scene)
            found.astray = found.misled() & (number in FREE)
            loss = unled(scene.oracle.goal, side, found.astray) if bool(found.astray.any()) else side
            if len(front):
                self.run(scene, front, found, loss, (left - settling) // len(losses), rng.child(self.card.id, number))
        last.stage(scene, found, settling, rng.child(self.card.id, "last"))
        return Perturbed(scene.oracle.best.x)

    def _ways(self, scene: EvasionScene, found: Nearest) -> tuple[list[Loss], int]:
        """The losses to follow, and the steps that are left for them."""
        goal = scene.oracle.goal
        led = compared(scene, min(COMPARED, self.steps // 20)) if self.targets > 1 else 0
        front = Front(scene)
        # where a budget cannot pay for the comparison, there is none
        if not led or not len(front) or not bool(scene.oracle.open(front.rows, led).all()):
            return [levelled(goal, side) for side in goal.objectives("margin")], self.steps
        rows, order = front.rows, ranked(scene, front, led, found)
        if self.steps < 2 * self.shortest:
            return [goal.margin], self.steps - led
        losses = []
        for column in range(min(self.targets, self.steps // self.shortest, led)):
            wanted = torch.zeros(len(scene.x), dtype=torch.int64, device=front.x.device)
            wanted[rows] = order[:, column]
            losses.append(towards(goal, wanted))
        return losses, self.steps - led

    @abstractmethod
    def run(self, scene: EvasionScene, front: Front, found: Nearest, loss: Loss, steps: int, rng: Rng) -> None:
        """One run from the clean inputs, of `steps` gradients, that shows `found` every point it looks at."""
