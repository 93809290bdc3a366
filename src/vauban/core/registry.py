"""Catalogues: an id, where its class lives, loaded when used. Third parties add rows through entry points."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from vauban.schema.errors import BadOption, UnknownName

T = TypeVar("T")


class Catalogue(Generic[T]):
    """Rows of `id -> "module:name"`. Nothing is imported before `load`.

    A plug-in package adds rows through the entry-point group; it cannot replace a row of ours, and one that fails to
    load is named in `broken` and left out.
    """

    def __init__(self, kind: str, group: str, rows: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = group
        self.broken: dict[str, str] = {}
        self._rows = dict(rows)
        self._plugins: dict[str, Callable[[], T]] | None = None

    def ids(self) -> list[str]:
        return sorted({*self._rows, *self._entry_points()})

    def __contains__(self, id: object) -> bool:
        return id in self._rows or id in self._entry_points()

    def load(self, id: str) -> T:
        """The class behind an id; raises UnknownName with the nearest ids."""
        if id in self._rows:
            module, _, name = self._rows[id].partition(":")
            thing: T = getattr(importlib.import_module(module), name)
            return thing
        plugins = self._entry_points()
        if id in plugins:
            return plugins[id]()
        raise UnknownName(f"There is no {self.kind} {id!r}{self._nearest(id)} `vauban list` shows them all.")

    def select(self, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> list[str]:
        """Ids that one of `include` names (an id or a family; all where empty) and none of `exclude`."""
        wanted, unwanted = list(include), list(exclude)
        for name in (*wanted, *unwanted):
            if name not in self and not any(i.startswith(f"{name}.") for i in self.ids()):
                raise UnknownName(
                    f"There is no {self.kind} or family {name!r}{self._nearest(name)} `vauban list` shows them all."
                )
        chosen = [i for i in self.ids() if not wanted or _named(i, wanted)]
        return [i for i in chosen if not _named(i, unwanted)]

    def _entry_points(self) -> dict[str, Callable[[], T]]:
        if self._plugins is None:
            points = [p for p in entry_points(group=self.group) if p.name not in self._rows]
            self._plugins = {p.name: p.load for p in points}
        return self._plugins

    def _nearest(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.ids(), n=3, cutoff=0.4)
        return f"; did you mean {' or '.join(close)}?" if close else "."


def _named(id: str, names: list[str]) -> bool:
    return any(id == name or id.startswith(f"{name}.") for name in names)


def configure(cls: type[T], settings: Mapping[str, Any]) -> T:
    """An attack or defence with these settings; raises BadOption naming what it takes."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # every entry is a dataclass
    for name in settings:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise BadOption(f"{_title(cls)} has no setting {name!r}{hint} It takes: {', '.join(fields) or 'none'}.")
    values = {name: _cast(cls, name, fields[name].default, value) for name, value in settings.items()}
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise BadOption(f"{_title(cls)} cannot take these settings: {error}") from None


def _title(cls: type) -> str:
    card = getattr(cls, "card", None)
    return card.id if card is not None else cls.__name__


def _cast(cls: type, name: str, default: Any, value: Any) -> Any:
    if not isinstance(value, str) or isinstance(default, str):
        return value
    kind = type(default) if default is not None else float
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        return kind(value)
    except (ValueError, KeyError, TypeError):
        raise BadOption(f"{_title(cls)}: {name}={value!r} cannot be read as {kind.__name__}.") from None
