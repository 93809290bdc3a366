"""Ids and names in the public catalogues, from `standards.json`: facts with version, source and date of retrieval."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from vauban.schema.log import Standards

CATALOGUES = ("nist", "atlas", "owasp")


@cache
def facts() -> dict[str, Any]:
    """The whole file: `catalogues` (title, version, source, retrieved, ids) and `mapping` (our keys to their ids)."""
    loaded: dict[str, Any] = json.loads(files("vauban.rules").joinpath("standards.json").read_text(encoding="utf-8"))
    return loaded


def standards(key: str) -> Standards:
    """The ids behind one of our keys, with names; raises KeyError where there is no such row."""
    ids: dict[str, list[str]] = facts()["mapping"][key]
    catalogues = facts()["catalogues"]
    names = {row: name_of(catalogue, row) for catalogue in CATALOGUES for row in ids[catalogue]}
    versions = {
        c: f"{catalogues[c]['title'].partition(',')[0]}, version {catalogues[c]['version']}" for c in CATALOGUES
    }
    return Standards(**ids, names=names, versions=versions)


def name_of(catalogue: str, id: str) -> str:
    """The name that the catalogue gives an id; the id itself where the catalogue does not list it."""
    names: dict[str, str] = facts()["catalogues"][catalogue]["ids"]
    return names.get(id, id)
