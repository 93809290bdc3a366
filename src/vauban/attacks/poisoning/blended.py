"""Blended injection: a faint pattern over the whole input that switches the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vauban.attacks.poisoning.planting import backdoor, check_rates
from vauban.core.attack import Poison, PoisonScene, Price
from vauban.core.rng import Rng
from vauban.parts.triggers import blend, box
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source
from vauban.schema.errors import BadData


@dataclass(frozen=True, kw_only=True)
class Blended:
    """Blend a fixed random pattern into a share of the training rows and label them as the wanted class.

    `share` in (0, 1): weight of the pattern. The pattern is uniform between the lowest and highest valid input, so
    that the blend stays in range; it is rounded to the storage grid where there is one. Whole numbers in tables do not
    stay whole. `rates`: further shares of poison at which the audit trains a model.

    Source: Chen et al., "Targeted backdoor attacks on deep learning systems using data poisoning", arXiv:1712.05526,
    section 4.2 (blended injection, random pattern, ratio 0.2).
    """

    wanted: int = 0
    share: float = 0.2
    rates: tuple[float, ...] = (0.01,)

    card: ClassVar[AttackCard] = AttackCard(
        id="poisoning.blended",
        name="Blended injection",
        summary="Hides a backdoor in the training data: inputs over which a faint pattern is laid get the wanted class.",
        needs=Access.DATA_WRITE | Access.TRAINING,
        goals=("targeted",),
        sources=(
            Source(title="Targeted backdoor attacks using data poisoning", where="arXiv:1712.05526, section 4.2"),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"rates": ()},
        "deep": {"rates": (0.005, 0.01, 0.02, 0.05, 0.1)},
    }

    def __post_init__(self) -> None:
        check_rates(self.rates)
        if not 0 < self.share < 1:
            raise ValueError(f"share is {self.share:g}: the pattern's weight must lie between 0 and 1")

    def price(self, classes: int | None) -> Price:
        """One model a rate, and a clean twin."""
        return Price(trainings=2 + len(self.rates))

    def __call__(self, scene: PoisonScene, rng: Rng) -> Poison:
        if not scene.data.has_train:
            raise BadData("There are no training rows to poison: give x_train and y_train.")
        low, high = box(scene.domain.low, scene.domain.high, scene.data.x_train)
        step = scene.domain.step or scene.data.step
        return backdoor(scene, blend(low, high, self.share, step, rng.numpy("trigger")), self.wanted, rng)
