"""What an examiner is given, and what it gives back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from vauban.core.data import Data
from vauban.core.rng import derive_seed
from vauban.core.space import Modality
from vauban.core.target import Domain, Target
from vauban.schema.errors import Limit
from vauban.schema.log import Attempt
from vauban.schema.threat import ThreatModel


class Progress(Protocol):
    """Told how far the unit under way is; the command line draws a bar from it."""

    def __call__(self, done: float, total: float, text: str = "") -> None: ...


def silent(done: float, total: float, text: str = "") -> None:
    """No progress shown."""


@dataclass(frozen=True)
class Check:
    """One unit of an audit: an attack (by id) under a threat model."""

    id: str
    threat: ThreatModel
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Hyper-parameters that the user set."""

    @property
    def family(self) -> str:
        return self.id.partition(".")[0]

    def within(self, name: str) -> bool:
        """Whether `name` means this check: its id, or its family."""
        return self.id == name or self.id.startswith(f"{name}.")


@dataclass(frozen=True)
class Case:
    """The model, the data and the means."""

    target: Target
    data: Data
    """Test rows are those audited; training rows are the target's own (or missing)."""
    domain: Domain
    modality: Modality
    seed: int = 0
    profile: str = "standard"
    batch_size: int | None = None
    """Samples that an attack is handed at a time; None for all. Results do not depend on it."""
    progress: Progress = silent
    deadline: float | None = None
    """`time.monotonic()` at which to stop; checked between steps."""
    shared: dict[str, Any] = field(default_factory=dict)
    """Things that several checks use (reference models), made by the first that needs them."""

    def share(self, key: str, make: Callable[[], Any]) -> Any:
        """The shared thing of that name, made on first use."""
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]

    def seed_for(self, *name: object) -> int:
        """A seed that depends on the run's seed and the name alone, so that order does not matter."""
        return derive_seed(self.seed, *name)

    def check_time(self) -> None:
        """Raise Limit once the deadline is passed."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise Limit("the time limit was reached")


@dataclass(frozen=True)
class Outcome:
    """An attempt for the log, and arrays for `samples/` (adversarial inputs, scores)."""

    attempt: Attempt
    arrays: dict[str, Tensor] = field(default_factory=dict)


Examiner = Callable[[Check, Case], Outcome]
