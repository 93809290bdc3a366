"""An attack: a frozen, keyword-only dataclass of hyper-parameters, called with a scene and a generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor

from vauban.core.data import Data
from vauban.core.oracle import Oracle
from vauban.core.rng import Rng
from vauban.core.space import Continuous
from vauban.core.target import Domain, Recipe, Target
from vauban.schema.cards import AttackCard


@dataclass(frozen=True)
class Price:
    """What an attack costs at most: per sample for `queries` and `gradients`, in all for `trainings`."""

    queries: int = 0
    gradients: int = 0
    trainings: int = 0


@dataclass(frozen=True)
class EvasionScene:
    """Inputs to be moved. Points go through the oracle; what it calls best is what counts."""

    oracle: Oracle
    x: Tensor
    """Clean inputs `[n, ...]`."""
    space: Continuous
    radius: float
    """inf where the nearest success is wanted."""
    classes: int | None
    donors: Tensor | None = None
    """Other inputs `[k, ...]` of the same kind that an attacker has (starting points, feature guides)."""


@dataclass(frozen=True)
class PoisonScene:
    """Training data that may be changed before a model is trained on it."""

    data: Data
    domain: Domain
    recipe: Recipe | None
    fraction: float
    """Share of the training rows that may be changed."""
    classes: int


@dataclass(frozen=True)
class TamperScene:
    """A deployed copy of a model whose stored numbers may be changed."""

    target: Target
    x: Tensor
    y: Tensor
    edits: int
    """Changes allowed."""
    evaluate: Callable[[Any], float]
    """Accuracy of a changed module on rows that the attack does not see."""


@dataclass(frozen=True)
class TheftScene:
    """A model behind a query interface, to be copied."""

    query: Callable[[Tensor], Tensor]
    """Counts and answers: scores `[m, k]` float64 (or labels `[m]` where only labels are granted)."""
    domain: Domain
    shape: tuple[int, ...]
    queries: int
    """Queries allowed."""
    pool: Tensor
    """Inputs of the same kind that the thief has."""
    labels_only: bool
    kind: str
    """What the scores are: `logits`, `probabilities`, `values`, `labels`."""


@dataclass(frozen=True)
class LeakScene:
    """Records of which some were trained on. `member` is the truth, used only to measure."""

    target: Target
    x: Tensor
    y: Tensor
    member: Tensor
    """bool `[n]`."""
    recipe: Recipe | None
    pool: Data
    """All data that the attacker may train reference models on."""
    domain: Domain
    references: Callable[[int], Any] | None = None
    """`references(count)` gives reference models shared between attacks: see engine/leakage.py."""


@dataclass(frozen=True)
class Perturbed:
    """Changed inputs `[n, ...]`; rows without a success hold the best attempt."""

    x: Tensor
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Poison:
    """Changed training data and what was done to it."""

    data: Data
    rows: Tensor
    """Numbers of the changed training rows."""
    trigger: Callable[[Tensor], Tensor] | None = None
    """Puts the trigger on inputs `[n, ...]`; None where there is none."""
    wanted: int | None = None
    """The class that the trigger should bring about."""


@dataclass(frozen=True)
class Flip:
    """One changed bit of one stored number."""

    tensor: str
    index: tuple[int, ...]
    bit: int
    before: float
    after: float


@dataclass(frozen=True)
class Patch:
    """Changes to stored weights, in order, and the accuracy after each on the rows that the attack saw."""

    flips: Sequence[Flip]
    module: Any
    accuracy: Sequence[float]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Replica:
    """A stolen model."""

    predict: Callable[[Tensor], Tensor]
    """Scores `[m, k]` (or values `[m]`) of the copy."""
    queries: int
    parameters: dict[str, Tensor] | None = None
    """Recovered parameters, where the attack claims them exactly."""
    steps: Sequence[tuple[int, Callable[[Tensor], Tensor]]] = ()
    """Copies at growing numbers of queries: the curve."""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Leak:
    """A score per record: larger means more likely a member. Or reconstructions of training inputs."""

    scores: Tensor | None = None
    reconstructed: Tensor | None = None
    """`[classes, ...]` inputs recovered from the model."""
    queries: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


S = TypeVar("S", contravariant=True)
A = TypeVar("A", covariant=True)


class Attack(Protocol, Generic[S, A]):
    """`card` says what it is; `profiles` how its settings differ from the defaults (which are `standard`)."""

    card: ClassVar[AttackCard]
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]]
    """`{"smoke": {...}, "deep": {...}}`."""

    def price(self, classes: int | None) -> Price:
        """The most it spends."""
        ...

    def __call__(self, scene: S, rng: Rng) -> A: ...
