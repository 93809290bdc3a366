"""Where an attacker may move an input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

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


class Space(Protocol):
    """Distances and rules between an input `x` and a changed input `z`, both `[n, ...]`."""

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


class Modality(Protocol):
    """One kind of data: its spaces, how it is stored, how it is shown. One folder in domains/."""

    @property
    def kind(self) -> str: ...

    @property
    def spaces(self) -> tuple[str, ...]: ...

    def space(self, name: str, domain: Domain) -> Continuous:
        """The space of that name; raises BadThreat where this kind of data has none."""
        ...

    def stored(self, x: Tensor, clean: Tensor, domain: Domain) -> Tensor:
        """`x` as it would be after saving: rounded to the grid, towards `clean` so that no budget is overrun."""
        ...

    def looks(self, changed: Tensor, clean: Tensor, domain: Domain) -> dict[str, Tensor]:
        """How different the changes look to people, by name of the measure, float64 `[n]`; empty where nobody looks."""
        ...

    def exhibit(
        self, clean: Tensor, changed: Tensor, before: Tensor, after: Tensor, captions: list[str], domain: Domain
    ) -> Exhibit:
        """Something to look at. `clean`, `changed` `[n, ...]` inputs; `before`, `after` their attributions, same shape."""
        ...
