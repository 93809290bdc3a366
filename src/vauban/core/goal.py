"""What an attacker wants of a model's answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from vauban.core.target import Outputs


class Goal(Protocol):
    """A margin per row, positive where the goal is reached. Differentiable where the outputs are.

    `rows` are the numbers of the rows that `outputs` answers, so that a goal can look up their labels.
    """

    @property
    def targeted(self) -> bool: ...

    @property
    def labels(self) -> Tensor:
        """`[n]`: true classes (untargeted), or wanted classes (targeted); true or wanted values in a regression."""
        ...

    def margin(self, outputs: Outputs, rows: Tensor) -> Tensor:
        """`[m]`, > 0 where reached. From bare labels it is -1 or +1."""
        ...

    def surrogate(self, outputs: Outputs, rows: Tensor) -> Tensor:
        """`[m]`, a smooth loss that grows towards the goal: cross-entropy for classes, the margin otherwise."""
        ...

    def objectives(self, name: str) -> tuple[Callable[[Outputs, Tensor], Tensor], ...]:
        """The losses of that name (`ce`, `margin`, `dlr`), `(outputs, rows) -> [m]`, growing towards the goal.

        More than one where the goal can be reached in several ways that no single smooth loss shows (a regression's
        prediction too high, or too low): an attack tries them in turn.
        """
        ...
