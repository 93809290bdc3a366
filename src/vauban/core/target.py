"""The one seam to any model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from vauban.schema.access import Access
from vauban.schema.cards import Task

OutputKind = Literal["logits", "probabilities", "labels", "values"]


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a model answered to `n` inputs.

    `values`: logits or probabilities `[n, classes]`, class numbers `[n]` int64, or regression values `[n]`.
    """

    values: Tensor
    kind: OutputKind

    def __getitem__(self, rows: Any) -> Outputs:
        return replace(self, values=self.values[rows])

    @property
    def labels(self) -> Tensor:
        """int64 `[n]`: predicted classes (for a regression: the values themselves)."""
        return self.values if self.values.dim() == 1 else self.values.argmax(1)


@dataclass(frozen=True)
class Domain:
    """Facts about inputs and outputs. None means not known yet: `domains.settle` completes them from the data."""

    kind: str | None = None
    """`image`, `tabular`, ...: the modality, a folder in domains/."""
    task: Task | None = None
    classes: int | None = None
    low: Tensor | float | None = None
    """Smallest valid input, broadcastable to one row."""
    high: Tensor | float | None = None
    step: float | None = None
    """Inputs are stored on a grid of this size (1/255 for 8-bit pictures); None for real numbers."""
    label_names: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    refusal: int | None = None
    """The class by which the model refuses to answer, where it has one: no input is of that class. It is counted in `classes`."""

    @property
    def true_classes(self) -> int | None:
        """How many classes an input can be of: all but the refusal."""
        return None if self.classes is None else self.classes - (self.refusal is not None)


class Recipe(Protocol):
    """How models like the target are trained."""

    def fit(self, x: Tensor, y: Tensor, seed: int) -> Target:
        """A new target trained from scratch on `x`, `y`; the same seed gives the same weights."""
        ...


class Target(Protocol):
    """A model under test. `forward` is differentiable with respect to `x` where `offers` has GRADIENTS.

    A target never changes: defences return a new one.
    """

    @property
    def id(self) -> str: ...

    @property
    def domain(self) -> Domain: ...

    @property
    def offers(self) -> Access: ...

    @property
    def recipe(self) -> Recipe | None: ...

    def forward(self, x: Tensor) -> Outputs:
        """Answers for `x` `[n, ...]` in the data's own units."""
        ...

    def sha256(self) -> str:
        """Identity of the weights (or of the code, where there are none to read)."""
        ...

    def settled(self, domain: Domain) -> Target:
        """The same model with completed facts about its inputs."""
        ...


@runtime_checkable
class TorchBacked(Protocol):
    """A target around an `nn.Module`. Whoever wants to change weights works on `clone()` and wraps with `around`."""

    @property
    def module(self) -> nn.Module: ...

    def clone(self) -> nn.Module:
        """A deep copy of the module in evaluation mode."""
        ...

    def around(self, module: nn.Module, suffix: str) -> Target:
        """The same target around another module of the same shape; `suffix` is added to the id."""
        ...

    def read(self, raw: object) -> Outputs:
        """What the module returned, in the form that the rest of the house expects. Differentiable."""
        ...


@runtime_checkable
class Featured(Protocol):
    """A target whose last hidden layer can be read."""

    def forward_features(self, x: Tensor) -> tuple[Outputs, Tensor]:
        """The answer and the flat activations `[n, d]` that the last layer reads, from one pass."""
        ...


@runtime_checkable
class Adaptive(Protocol):
    """A defended target that hides its gradients, together with a version of it that does not."""

    def softened(self) -> Target:
        """Gives the same answers, with useful gradients: non-differentiable parts pass them straight through (BPDA)."""
        ...


@runtime_checkable
class EstimatorBacked(Protocol):
    """A black box around a fitted estimator of scikit-learn. Whoever wants another one in its place wraps it with `refitted`."""

    @property
    def id(self) -> str: ...

    @property
    def recipe(self) -> Recipe | None: ...

    @property
    def estimator(self) -> Any: ...

    def refitted(self, estimator: Any, suffix: str, recipe: Recipe | None) -> Target:
        """The same target around another fitted estimator of the same classes; `suffix` is added to the id."""
        ...


@runtime_checkable
class Portable(Protocol):
    """A target that may be written down in the format that it came in."""

    def files(self) -> dict[str, bytes]:
        """The model by file name, each a file that loads by itself; empty where its format does not hold such a model."""
        ...
