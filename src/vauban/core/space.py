"""Where an attacker may move an input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.schema.log import Exhibit

Radius = float | Tensor
"""One radius for all rows, or one a row `[n]`."""


@dataclass(frozen=True)
class Validity:
    """For each named rule, which rows keep it: bool `[n]`."""

    rules: dict[str, Tensor]

    @property
    def all(self) -> Tensor:
        out: Tensor | None = None
        for kept in self.rules.values():
            out = kept if out is None else out & kept
        assert out is not None, "a space has at least one rule"
        return out


class Frame(Protocol):
    """What the points of a space mean for certain inputs `[n, ...]`."""

    @property
    def start(self) -> Tensor:
        """The points that change nothing, one a row, `[n, ...]`: the inputs themselves, or knobs at zero."""
        ...

    def render(self, z: Tensor, rows: Tensor) -> Tensor:
        """The inputs `[m, ...]` that points `z` `[m, ...]` of rows `[m]` stand for; gives exactly the input at `start`.

        Differentiable wherever small steps have small effects.
        """
        ...


class Space(Protocol):
    """Distances and rules between a point `x` that changes nothing and another point `z`, both `[n, ...]`.

    In most spaces a point is an input. In a space of knobs it holds what an attacker may turn (an angle, a brightness), and
    its frame makes inputs of it; nothing but the frame and who asks the model need know the difference.
    """

    @property
    def knobs(self) -> tuple[str, ...]:
        """What the numbers of a point are called; empty where a point is an input itself."""
        ...

    def frame(self, x: Tensor, ids: Sequence[int] | np.ndarray | None = None) -> Frame:
        """The frame of inputs `x` `[n, ...]`, whose numbers in the data are `ids` (0 to n - 1 where None).

        Raises BadThreat where inputs of this shape cannot be changed so.
        """
        ...

    def widest(self, low: Tensor, high: Tensor) -> float:
        """The largest radius that means anything for inputs between rows `low` and `high`, `[1, ...]` each.

        inf where they are no rows and the space itself sets no limit.
        """
        ...

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...

    def distance(self, z: Tensor, x: Tensor) -> Tensor:
        """float64 `[n]`."""
        ...

    def allowed(self, z: Tensor, x: Tensor) -> Validity:
        """Which rows are valid inputs at all (inside the box, finite), whatever their distance."""
        ...


class Continuous(Space, Protocol):
    """A space in which one can take gradient steps, so that PGD is written once."""

    @property
    def low(self) -> Tensor: ...

    @property
    def high(self) -> Tensor: ...

    def project(self, z: Tensor, x: Tensor, radius: Radius) -> Tensor:
        """The nearest point to `z` that is within `radius` of `x` and inside the box."""
        ...

    def within(self, x: Tensor, radius: Radius) -> Callable[[Tensor], Tensor]:
        """`project` for one `x` and `radius`, with all that depends on these alone done once: what loops use."""
        ...

    def steepest(self, g: Tensor, x: Tensor, radius: Radius) -> Tensor:
        """The change of size `radius` from `x` along which `g` grows most; zero where `g` is zero."""
        ...

    def sample(self, x: Tensor, radius: Radius, rng: Rng, rows: Tensor) -> Tensor:
        """A random point within `radius` of `x` and inside the box, uniform before the box cuts it."""
        ...


class Knobbed(Continuous, Protocol):
    """A space whose points are knobs: few enough to try them all."""

    @property
    def smooth(self) -> bool:
        """Small turns have small effects; otherwise there is nothing between the points of a lattice."""
        ...

    def lattice(self, start: Tensor, radius: float, most: int) -> Tensor:
        """At most about `most` points `[p, ...]` that cover what lies within `radius` of a row of `start`, the farthest first."""
        ...

    def told(self, z: Tensor) -> list[str]:
        """In words, which knobs are turned at points `z` `[m, ...]`."""
        ...


class Modality(Protocol):
    """One kind of data: its spaces, how it is stored, how it is shown. One folder in domains/."""

    @property
    def kind(self) -> str: ...

    @property
    def spaces(self) -> tuple[str, ...]: ...

    def space(self, name: str, domain: Domain) -> Continuous:
        """The space of that name; raises BadThreat where this kind of data has none."""
        ...

    def stored(self, x: Tensor, clean: Tensor | None, domain: Domain) -> Tensor:
        """`x` as it would be after saving: rounded to the grid, towards `clean` so that no budget is overrun.

        To the nearest where `clean` is None, because the distance is not one between inputs.
        """
        ...

    def looks(self, changed: Tensor, clean: Tensor, domain: Domain) -> dict[str, Tensor]:
        """How different the changes look to people, by name of the measure, float64 `[n]`; empty where nobody looks."""
        ...

    def exhibit(
        self,
        clean: Tensor,
        changed: Tensor | None,
        before: Tensor | None,
        after: Tensor | None,
        captions: list[str],
        domain: Domain,
    ) -> Exhibit:
        """Something to look at: `clean`, `changed` `[n, ...]` inputs; `before`, `after` their attributions, same shape.

        Without `changed` the clean input alone, without `before` no attributions; `after` goes with both.
        """
        ...
