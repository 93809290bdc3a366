"""The processes that train one model together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Crew(Protocol):
    """One process among those that train a model together. All of them call `total` and `same` in the same order."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0; the first one judges, writes and speaks."""
        ...

    @property
    def size(self) -> int: ...

    @property
    def device(self) -> torch.device | None:
        """Where this one trains; None for wherever the model is."""
        ...

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes, in each of them."""
        ...

    def same(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process, where alone it is called; tensors in it are on the CPU."""
        ...


@dataclass(frozen=True)
class Alone:
    """A crew of one."""

    rank: int = 0
    size: int = 1
    device: torch.device | None = None

    def total(self, values: Tensor) -> Tensor:
        return values

    def same(self, make: Callable[[], T]) -> T:
        return make()


ALONE = Alone()
