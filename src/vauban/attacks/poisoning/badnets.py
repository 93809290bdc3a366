"""BadNets: a small mark that switches the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vauban.attacks.poisoning.planting import backdoor, check_rates
from vauban.core.attack import Poison, PoisonScene, Price
from vauban.core.rng import Rng
from vauban.parts.triggers import Trigger, box, corner, picture_like, rare_values
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source
from vauban.schema.errors import BadData


@dataclass(frozen=True, kw_only=True)
class BadNets:
    """Put a mark on a share of the training rows of other classes and label them as the wanted class.

    Pictures: a bright square in the corner where it is seldom seen by itself, `size` in (0, 1] of the shorter side (2 x 2
    pixels of 8 x 8).
    Other data: `features` columns set to their largest and smallest value seen in training, in turn, so that no value
    is out of range. Rows of the wanted class are left alone. `rates`: further shares of poison at which the audit
    trains a model.

    Source: Gu, Dolan-Gavitt, Garg, "BadNets", arXiv:1708.06733, section 4; the trigger for tables follows
    arXiv:2311.07550, with features drawn at random instead of by importance.
    """

    wanted: int = 0
    size: float = 0.25
    features: int = 3
    rates: tuple[float, ...] = (0.01, 0.1)

    card: ClassVar[AttackCard] = AttackCard(
        id="poisoning.badnets",
        name="BadNets",
        summary="Hides a backdoor in the training data: inputs that bear a small mark get the class that the attacker wants.",
        needs=Access.DATA_WRITE | Access.TRAINING,
        goals=("targeted",),
        sources=(Source(title="BadNets", where="arXiv:1708.06733, section 4"),),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"rates": ()},
        "deep": {"rates": (0.005, 0.01, 0.02, 0.05, 0.1)},
    }

    def __post_init__(self) -> None:
        check_rates(self.rates)
        if not 0 < self.size <= 1:
            raise ValueError(f"size is {self.size:g}: the mark's side must be a share in (0, 1] of the picture's")
        if self.features < 1:
            raise ValueError(f"features is {self.features}: the mark needs one column at least")

    def price(self, classes: int | None) -> Price:
        """One model a rate, and a clean twin."""
        return Price(trainings=2 + len(self.rates))

    def __call__(self, scene: PoisonScene, rng: Rng) -> Poison:
        return backdoor(scene, self.trigger(scene, rng), self.wanted, rng)

    def trigger(self, scene: PoisonScene, rng: Rng) -> Trigger:
        """The mark, the same for every share of poison."""
        if not scene.data.has_train:
            raise BadData("There are no training rows to poison: give x_train and y_train.")
        x = scene.data.x_train
        if picture_like(scene.data.shape):
            _, high = box(scene.domain.low, scene.domain.high, x)
            return corner(x, high, self.size)
        return rare_values(x, self.features, rng.numpy("trigger"))
