"""A defence: a frozen, keyword-only dataclass; called with a target and data it returns a new target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from vauban.core.crew import Crew
from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.core.space import Continuous
from vauban.core.target import Target
from vauban.schema.cards import DefenceCard


class Store(Protocol):
    """Where a training leaves what it needs to go on after an interruption."""

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Keep these instead of what was kept before; `facts` hold what JSON can."""
        ...

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was kept last; None where nothing was."""
        ...


class Diary(Protocol):
    """What is written down of a training after every epoch, for people to read along."""

    def write(self, epoch: int, figures: Mapping[str, float], pictures: Mapping[str, Tensor]) -> None:
        """Figures by name, and pictures `[k, channels, height, width]` in [0, 1] by name; epochs are counted from 1."""
        ...


class Context(Protocol):
    """What a defence may ask of the house: the threat it trains against, the space, an attack, progress, a store, the crew that
    trains together, a diary."""

    @property
    def radius(self) -> float | None: ...

    @property
    def space(self) -> Continuous | None: ...

    @property
    def store(self) -> Store | None:
        """None where nothing is kept."""
        ...

    @property
    def crew(self) -> Crew: ...

    @property
    def diary(self) -> Diary | None:
        """None where nobody reads along."""
        ...

    def attack(self, id: str, **settings: Any) -> Callable[..., Any]:
        """`attack(id, **settings)(target, x, y, rng, domain)` gives adversarial inputs `[n, ...]` within the threat; defences never import attacks."""
        ...

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Tell how far it is."""
        ...


@dataclass(frozen=True)
class Hardened:
    """A defended target, and what was done to it in plain facts (an epsilon, a number of epochs, a replaced layer)."""

    target: Target
    facts: dict[str, Any] = field(default_factory=dict)
    caveats: tuple[str, ...] = ()
    """What a reader must know before he relies on it."""
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """All that was learnt, for `restore`; empty where the target has a module, whose state dict it then is."""


class Defence(Protocol):
    card: ClassVar[DefenceCard]

    def __call__(self, target: Target, data: Data, rng: Rng, context: Context) -> Hardened:
        """A hardened target. The given target is never changed, and no global state either, also after an exception.

        Raises NotOffered where the target cannot be defended so, BadData where the data does not suffice.
        """
        ...


@runtime_checkable
class Restorable(Protocol):
    """A defence that can put saved weights back, so that an interrupted run need not train again."""

    def restore(self, target: Target, data: Data, state: Mapping[str, Tensor]) -> Target:
        """The defended target around these weights. Raises ValueError or RuntimeError where they do not fit."""
        ...


@runtime_checkable
class Selective(Protocol):
    """A defence for models of one kind, which no right of access tells."""

    @classmethod
    def unfit(cls, target: Target) -> str:
        """What kind of model the defence is made for, in words that follow its id; empty where `target` is one."""
        ...
