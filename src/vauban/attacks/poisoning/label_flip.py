"""Label flips: wrong labels in the training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from vauban.attacks.poisoning.planting import check_class, check_rates, draw
from vauban.core.attack import Poison, PoisonScene, Price
from vauban.core.rng import Rng
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source
from vauban.schema.errors import BadData

ANY = -1


@dataclass(frozen=True, kw_only=True)
class LabelFlip:
    """Give a share of the training rows another label; inputs are not touched.

    `source`: only rows of this class (-1: of any class). `wanted`: the label they get (-1: any other, drawn
    uniformly); with both set it is a flip of a class pair. `rates`: further shares of poison at which the audit trains
    a model.

    Source: Biggio, Nelson, Laskov, "Support vector machines under adversarial label noise", ACML 2011, section 4
    (random flips; the worst-case search there is not made).
    """

    source: int = ANY
    wanted: int = ANY
    rates: tuple[float, ...] = (0.1,)

    card: ClassVar[AttackCard] = AttackCard(
        id="poisoning.label_flip",
        name="Label flips",
        summary="Corrupts labels in the training data, so that the model learns less, or confuses two classes.",
        needs=Access.DATA_WRITE | Access.TRAINING,
        goals=("untargeted", "targeted"),
        sources=(Source(title="SVMs under adversarial label noise", where="ACML 2011, section 4"),),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"rates": ()},
        "deep": {"rates": (0.01, 0.05, 0.1, 0.2, 0.4)},
    }

    def __post_init__(self) -> None:
        check_rates(self.rates)
        if self.source == self.wanted != ANY:
            raise ValueError(f"source and wanted are both {self.source}: a flip needs two different classes")
        if min(self.source, self.wanted) < ANY:
            raise ValueError("source and wanted are class numbers from 0, or -1 for any class")

    def price(self, classes: int | None) -> Price:
        """One model a rate, and a clean twin."""
        return Price(trainings=2 + len(self.rates))

    def __call__(self, scene: PoisonScene, rng: Rng) -> Poison:
        data = scene.data
        if not data.has_train:
            raise BadData("There are no training rows to poison: give x_train and y_train.")
        for name in ("source", "wanted"):
            if getattr(self, name) != ANY:
                check_class(scene, getattr(self, name), name)
        open_ = torch.ones_like(data.y_train, dtype=torch.bool)
        if self.source != ANY:
            open_ &= data.y_train == self.source
        if self.wanted != ANY:
            open_ &= data.y_train != self.wanted
        rows = draw(scene, open_.nonzero().flatten(), rng)
        y = data.y_train.clone()
        # drawn for every row, so that a larger fraction keeps the flips of a smaller one
        shift = torch.from_numpy(rng.numpy("labels").integers(1, max(scene.classes, 2), len(y)))
        random = (y + shift) % max(scene.classes, 2)
        y[rows] = random[rows] if self.wanted == ANY else self.wanted
        return Poison(data=replace(data, y_train=y), rows=rows, wanted=None if self.wanted == ANY else self.wanted)
