"""Networks that learn what training rows look like, and make more of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vauban.core.defence import Store
from vauban.core.registry import Catalogue
from vauban.core.rng import Rng
from vauban.schema.errors import BadData

FEWEST, FEWEST_OF_A_CLASS = 32, 2
"""Rows in all, and of every class that there is, below which there is nothing to learn from."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Original:
    """The rows that a generator learns, and what is known of valid ones."""

    x: Tensor
    """`[n, ...]` on the CPU."""
    y: Tensor
    """Class numbers `[n]`."""
    low: Tensor
    """Smallest valid values, broadcastable to one row."""
    high: Tensor
    step: float | None = None
    """Inputs are stored on a grid of this size; None for real numbers."""

    def __post_init__(self) -> None:
        if len(self.x) < FEWEST:
            raise BadData(
                f"A generator was to be learnt from {len(self.x)} rows, too few to tell what they have in common: give at "
                f"least {FEWEST}, or train without generated data."
            )
        counts = torch.bincount(self.y)
        rare = [c for c, count in enumerate(counts.tolist()) if 0 < count < FEWEST_OF_A_CLASS]
        if rare:
            raise BadData(
                f"A generator was to be learnt, and of class {rare[0]} there is {int(counts[rare[0]])} row: give at least "
                f"{FEWEST_OF_A_CLASS} of every class, leave the class out, or train without generated data."
            )

    @property
    def classes(self) -> int:
        return int(self.y.max()) + 1


class Generator(Protocol):
    """What was learnt."""

    @property
    def ended(self) -> str:
        """Why learning ended before its time; empty where it did not."""
        ...

    def sample(self, y: Tensor, rng: Rng) -> Tensor:
        """New rows `[m, ...]` of classes `y` `[m]`, on the CPU: inside the box and on the grid of the original.

        A row depends on its class and its own numbers in `rng`, not on those beside it.
        """
        ...

    def likeness(self, made: Tensor, real: Tensor) -> dict[str, float]:
        """How unlike the distributions of rows `made` `[m, ...]` and `real` `[k, ...]` are, by name; 0 is alike."""
        ...


class Learner(Protocol):
    """Settings of a generator, called to learn for so many steps of it."""

    def __call__(
        self,
        original: Original,
        rounds: int,
        seed: int,
        device: torch.device,
        store: Store | None = None,
        progress: Progress | None = None,
    ) -> Generator: ...


GENERATORS: Catalogue[Callable[[], Learner]] = Catalogue(
    "generator for data of the kind",
    "vauban.generators",
    {
        "image": "vauban.parts.generators.image:PictureLearner",
        "tabular": "vauban.parts.generators.table:TableLearner",
    },
)
"""Kind of data -> what learns it."""
