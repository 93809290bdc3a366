"""A store with several shelves, for work in parts of which each goes on by itself after an interruption."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vauban.core.defence import Store


@dataclass(frozen=True)
class Shelf:
    """One part of a store; what lies on the other shelves stays there."""

    store: Store
    name: str

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Keep these instead of what was on this shelf."""
        held, said = self.store.load() or ({}, {})
        others = {k: v for k, v in held.items() if not k.startswith(self._prefix)}
        self.store.save(others | {self._prefix + k: v for k, v in tensors.items()}, said | {self.name: dict(facts)})

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was kept last on this shelf; None where nothing was."""
        held, said = self.store.load() or ({}, {})
        if self.name not in said:
            return None
        return {k.removeprefix(self._prefix): v for k, v in held.items() if k.startswith(self._prefix)}, said[self.name]

    @property
    def _prefix(self) -> str:
        return f"{self.name}:"


def shelf(store: Store | None, name: str) -> Shelf | None:
    """The shelf of that name; None where nothing is kept."""
    return None if store is None else Shelf(store, name)
