"""All that an attack gets to see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vauban.core.goal import Goal
from vauban.core.target import Outputs
from vauban.schema.access import Access

Loss = Callable[[Outputs, Tensor], Tensor]
"""(outputs, rows) -> [m]; attacks maximise it."""


@dataclass(slots=True)
class Spent:
    """Per row, on the CPU: model evaluations and gradient evaluations; int64 `[n]`."""

    queries: Tensor
    gradients: Tensor
    seconds: float = 0.0


@dataclass(slots=True)
class Best:
    """The best point of each row so far.

    In a search for any point: the one with the largest margin. What reaches the goal was checked for radius and box; the best
    of what does not reach it was not, and an attack that looks from outside may leave it there. In a search for the nearest: the
    successful one with the smallest distance; `distance` is inf where there is none yet.
    """

    x: Tensor
    margin: Tensor
    distance: Tensor
    """float64 `[n]`."""

    @property
    def reached(self) -> Tensor:
        """bool `[n]`: the goal is reached by an admissible point."""
        return self.margin > 0


@dataclass(slots=True)
class Look:
    """One look at `m` rows."""

    value: Tensor
    """The loss, `[m]`."""
    grad: Tensor
    """Its gradient with respect to the input, `[m, ...]`."""
    margin: Tensor
    """The goal's margin, `[m]`."""
    open: Tensor
    """bool `[m]`: rows that are still worth a look: not decided, and within their budget."""


@dataclass(slots=True)
class Slopes:
    """One look at several classes of `m` rows."""

    scores: Tensor
    """Logits (log-probabilities where the model gives probabilities), `[m, classes]`."""
    grad: Tensor
    """Gradients of the gaps that were asked for, `[m, k, ...]`."""
    margin: Tensor
    """The goal's margin, `[m]`."""
    open: Tensor
    """bool `[m]`, as in a look."""


class Oracle(Protocol):
    """Meters, limits, keeps the best; one per attempt.

    Every method takes the points `x` `[m, ...]` and the numbers of their rows `[m]` (a row may occur several times),
    counts one query (and one gradient) for each, and refuses with NotOffered what the threat does not grant. A call
    that would overrun the budget of any of its rows, or that comes after the deadline, raises Limit before anything
    is spent; the engine catches it and what was found until then counts. Ask `open` and `left` beforehand.
    """

    goal: Goal
    spent: Spent
    best: Best
    grants: Access
    """What may be asked: the rest is refused."""
    nearest: bool
    """True: look for the nearest success and use the whole budget; False: any success within the radius decides."""

    @property
    def rows(self) -> Tensor:
        """int64: the rows that are open."""
        ...

    def open(self, rows: Tensor, gradients: int = 1) -> Tensor:
        """bool `[m]`: still undecided, with a query and so many gradients within budget."""
        ...

    def left(self, rows: Tensor) -> Tensor:
        """int64 `[m]`: queries that each row may still make (a large number where there is no limit)."""
        ...

    def labels(self, x: Tensor, rows: Tensor) -> Tensor:
        """int64 `[m]` predicted classes; needs LABELS."""
        ...

    def reaches(self, x: Tensor, rows: Tensor) -> Tensor:
        """bool `[m]`: the goal is reached, judged from labels alone; needs LABELS."""
        ...

    def scores(self, x: Tensor, rows: Tensor) -> Tensor:
        """`[m, classes]` logits where granted, otherwise probabilities (`[m]` in a regression); needs SCORES."""
        ...

    def margins(self, x: Tensor, rows: Tensor) -> Tensor:
        """`[m]` margins of the goal from scores; needs SCORES."""
        ...

    def values(self, loss: Loss, x: Tensor, rows: Tensor) -> Tensor:
        """`[m]` values of a loss of one's own from scores; needs SCORES."""
        ...

    def value_and_grad(self, loss: Loss, x: Tensor, rows: Tensor, keep: bool = True) -> Look:
        """A loss, its input gradient, the margin; one query and one gradient a row; needs GRADIENTS.

        With `keep=False` the points are looked at for their gradients alone and never become the best, nor decide a row.
        """
        ...

    def class_slopes(self, x: Tensor, rows: Tensor, classes: Tensor, base: Tensor) -> Slopes:
        """Scores, and input gradients of the gaps between those of `classes` `[m, k]` and that of `base` `[m]`.

        One query and k gradients a row; needs GRADIENTS.
        """
        ...

    def prove(self, effort: str) -> int:
        """Close the open rows that no point within the radius can break, by proof; how many.

        `effort` is one of `parts.bounds.EFFORTS`. 0 where nothing can be proved about the target.
        """
        ...

    def features(self, x: Tensor, rows: Tensor) -> Tensor:
        """`[m, d]` flat activations of the last hidden layer; needs FEATURES."""
        ...

    def feature_value_and_grad(self, loss: Loss, x: Tensor, rows: Tensor) -> Look:
        """As `value_and_grad`, but the loss is given the features `[m, d]` as its outputs' values."""
        ...
