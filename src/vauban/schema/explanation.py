"""Explained answers: everything that explanation.html is made of. Written as explanation.json."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from vauban.schema.log import Exhibit
from vauban.schema.threat import Frozen

SCHEMA_VERSION = "1.0"


class Feature(Frozen):
    """One entry of an input, and how much the answer rests on it; after the attack, too, where there was one."""

    name: str
    value: float
    attribution: float
    changed: float | None = None
    after: float | None = None


class Answer(Frozen):
    """What a model answered to one input, and how well the attributions add up to it."""

    label: str
    explained: str
    """The class that is explained; the answer itself unless another was asked about."""
    score: float
    """What is explained: the class's logit or probability (of two logits their difference), or a regression's value."""
    change: float | None = None
    """The score here less that at the baseline; None for methods whose attributions need not sum to it."""
    gap: float | None = None
    """How far the sum of the attributions misses `change` (completeness)."""


class ExplainedRow(Frozen):
    """One test row."""

    row: int
    truth: str
    clean: Answer
    attacked: Answer | None = None
    """None where nothing was attacked, or no example was found that survives saving."""
    status: str = ""
    """What became of the attack, in words; empty where there was none."""
    largest: list[Feature]
    """The entries with the largest attributions, before or after."""
    exhibit: Exhibit


class Explanation(Frozen):
    """Which parts of some test rows a model's answers rest on."""

    schema_version: str = SCHEMA_VERSION
    target: str
    sha256: str
    data: str
    kind: str
    method: str
    settings: dict[str, Any] = Field(default_factory=dict)
    baseline: str
    about: int | None = None
    """The class that is explained; None for the model's own answer at each input."""
    attack: str | None = None
    threat: str | None = None
    seed: int = 0
    notes: list[str] = Field(default_factory=list)
    rows: list[ExplainedRow]
