"""A defence: a frozen, keyword-only dataclass; called with a target and data it returns a new target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.core.space import Continuous
from vauban.core.target import Target
from vauban.schema.cards import DefenceCard


class Context(Protocol):
    """What a defence may ask of the house: the threat it trains against, the space, an attack, progress."""

    @property
    def radius(self) -> float | None: ...

    @property
    def space(self) -> Continuous | None: ...

    def attack(self, id: str, **settings: Any) -> Callable[..., Any]:
        """`attack(id, **settings)(target, x, y, rng, domain)` gives adversarial inputs `[n, ...]` within the threat; defences never import attacks."""
        ...

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Tell how far it is."""
        ...


class Defence(Protocol):
    card: ClassVar[DefenceCard]

    def __call__(self, target: Target, data: Data, rng: Rng, context: Context) -> Target:
        """A hardened target. The given target is never changed. Facts about it (an epsilon, a squeeze) go into its id and `facts`."""
        ...
