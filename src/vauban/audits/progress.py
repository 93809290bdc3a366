"""Whoever watches an audit is told here; a run that nobody watches is told to `Quiet`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vauban.audits.plan import Plan, Unit
    from vauban.schema.log import Attempt


class Watcher(Protocol):
    """What an audit tells while it goes on."""

    def planned(self, plan: Plan, finished: int) -> None:
        """Before anything is attacked: what will be done, what it costs, how many units an earlier run finished."""
        ...

    def started(self, unit: Unit) -> None: ...

    def step(self, done: float, total: float, text: str = "") -> None:
        """How far the unit under way is."""
        ...

    def ended(self, unit: Unit, attempt: Attempt, reused: bool) -> None: ...

    def note(self, text: str) -> None:
        """A plain sentence about the run as a whole."""
        ...


class Quiet:
    """Nobody watches."""

    def planned(self, plan: Plan, finished: int) -> None:
        pass

    def started(self, unit: Unit) -> None:
        pass

    def step(self, done: float, total: float, text: str = "") -> None:
        pass

    def ended(self, unit: Unit, attempt: Attempt, reused: bool) -> None:
        pass

    def note(self, text: str) -> None:
        pass
