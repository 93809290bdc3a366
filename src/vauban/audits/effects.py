"""What a defence changed for whom: class by class, slice by slice, and for the examples that broke the model before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vauban.audits.compare import paired
from vauban.audits.runner import Ready
from vauban.core.target import Domain, Target
from vauban.engine.batching import answers
from vauban.rules.evasion.union import union, with_outcomes
from vauban.schema.log import Attempt, AuditLog, Slice

FEWEST = 20
"""Samples of a slice that is worth a line."""
FEW_VALUES = 5
"""A column with no more of them is sliced by value, one with more at its median."""
WORST = 8
"""Slices by columns that are shown: those least robust after."""
CLASSES = 20
"""Classes that are shown at most."""

Named = tuple[str, Tensor]
"""What a slice is called, and which rows it has, bool `[n]`."""


def slices(before: AuditLog, after: AuditLog, ready: Ready, threat: str) -> list[Slice]:
    """Accuracy before and after in each class, and in the least robust parts of a table; empty for a regression."""
    data, domain = ready.case.data, ready.case.domain
    letters = [_together(log.attempts, threat) for log in (before, after)]
    if domain.task == "regression" or not letters[0] or len(letters[0]) != len(letters[1]):
        return []
    count = len(letters[0])
    x, y = data.x_test[:count], data.y_test[:count]
    classes = [_slice(name, rows, letters) for name, rows in _classes(y, domain)]
    parts = [_slice(name, rows, letters) for name, rows in _columns(x, domain)]
    return [*classes, *sorted(parts, key=lambda part: part.robust_after)[:WORST]]


def _together(attempts: Sequence[Attempt], threat: str) -> str:
    found = with_outcomes([a for a in attempts if a.threat == threat])
    return union(found).outcomes if found else ""


def _slice(name: str, rows: Tensor, letters: Sequence[str]) -> Slice:
    picked = [[side[i] for i in rows.nonzero().flatten().tolist()] for side in letters]
    clean = [[c not in "w-" for c in side] for side in picked]
    robust = [[c in "hcu" for c in side] for side in picked]
    low, high = paired(*robust)
    n = len(picked[0])
    return Slice(
        name=name, n=n, clean_before=sum(clean[0]) / n, clean_after=sum(clean[1]) / n,
        robust_before=sum(robust[0]) / n, robust_after=sum(robust[1]) / n, low=low, high=high,
    )  # fmt: skip


def _classes(y: Tensor, domain: Domain) -> Iterator[Named]:
    seen = y.unique().tolist()
    for c in seen[:CLASSES]:
        name = domain.label_names[c] if c < len(domain.label_names) else str(c)
        yield f"class {name}", y == c


def _columns(x: Tensor, domain: Domain) -> Iterator[Named]:
    """Parts of a table that hold FEWEST rows or more."""
    if domain.kind != "tabular" or x.dim() != 2:
        return
    for number, column in enumerate(x.unbind(1)):
        name = domain.feature_names[number] if number < len(domain.feature_names) else f"feature {number}"
        values, middle = column.unique(), column.median()
        few = len(values) <= FEW_VALUES
        by_value = [(f"{name} = {value:.4g}", column == value) for value in values.tolist()] if few else []
        halves = [(f"{name} <= {middle:.4g}", column <= middle), (f"{name} > {middle:.4g}", column > middle)]
        parts = by_value if few else halves
        yield from ((word, rows) for word, rows in parts if FEWEST <= int(rows.sum()) < len(x))


def old_examples(before: AuditLog, after: AuditLog, folder: Path, target: Target, ready: Ready) -> dict[str, int]:
    """How many samples were broken before, how many of those examples break the new model too, and how many of these no attack
    on the new model broke. Empty where there is nothing to tell."""
    y, still, tried = ready.case.data.y_test, set(), set()
    if ready.case.domain.task == "regression":
        return {}
    for attempt in before.attempts:
        found = broken_samples(folder, attempt)
        if found is None:
            continue
        rows, x = found
        labels = answers(target, x).labels.cpu()
        refusal = target.domain.refusal
        wrong = (labels != y[rows]) & (labels != (-1 if refusal is None else refusal))
        tried |= set(rows.tolist())
        still |= set(rows[wrong].tolist())
    if not tried:
        return {}
    letters = union(with_outcomes(after.attempts)).outcomes
    missed = [row for row in still if row < len(letters) and letters[row] in "hu"]
    return {"old_examples": len(tried), "old_examples_still_break": len(still), "old_examples_alone_break": len(missed)}


def told(found: dict[str, int]) -> list[str]:
    """The same in sentences."""
    if not found:
        return []
    said = [
        f"Of {found['old_examples']} samples that were broken before, the old examples still break {found['old_examples_still_break']}."
    ]
    alone = found["old_examples_alone_break"]
    if alone:
        said.append(
            f"{alone} of these were held against every attack made on the new model: count them as broken, and mistrust those "
            "attacks; try a deeper profile."
        )
    return said


def broken_samples(folder: Path, attempt: Attempt) -> tuple[Tensor, Tensor] | None:
    """Numbers `[m]` and inputs `[m, ...]` of the samples that an attack on inputs broke; None where the folder holds none."""
    name = attempt.facts.get("samples")
    if not attempt.check.startswith("evasion.") or not isinstance(name, str):
        return None
    try:
        arrays = load_file(folder / name)
    except (OSError, SafetensorError):  # a folder that was tidied up: there is nothing to tell
        return None
    return (arrays["rows"].long(), arrays["x"]) if {"rows", "x"} <= set(arrays) and len(arrays["x"]) else None
