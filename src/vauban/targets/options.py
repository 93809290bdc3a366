"""What a user says about a model when loading it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vauban.core.target import Domain, OutputKind
from vauban.schema.errors import BadOption


@dataclass(frozen=True, kw_only=True)
class Options:
    """Everything that loaders and makers of targets may need; each takes what it knows."""

    id: str = "model"
    domain: Domain = field(default_factory=Domain)
    output: OutputKind | None = None
    factory: Callable[[], Any] | None = None
    """Makes the untrained model."""
    training: Any = None
    """`targets.torch.Training`: how models like it are trained."""
    trust_pickle: bool = False
    device: str = "cpu"


def options(
    *, bounds: Any = None, classes: int | None = None, task: str | None = None, kind: str | None = None, **rest: Any
) -> Options:
    """Options with a domain made of these facts. Raises BadOption where they contradict themselves."""
    low, high = _bounds(bounds)
    if task not in (None, "classification", "regression"):
        raise BadOption(f"The task {task!r} is not known: it is classification or regression.")
    if classes is not None and classes < 2:
        raise BadOption(f"classes={classes} makes no classifier: there must be at least 2.")
    domain = Domain(kind=kind, task=task, classes=classes, low=low, high=high)  # type: ignore[arg-type]
    return replace(Options(domain=domain), **rest)


def _bounds(bounds: Any) -> tuple[Tensor | float | None, Tensor | float | None]:
    if bounds is None:
        return None, None
    try:
        low, high = (torch.as_tensor(np.asarray(side, dtype=np.float64), dtype=torch.float32) for side in bounds)
    except (TypeError, ValueError):
        raise BadOption(
            f"bounds={bounds!r} cannot be read: give the smallest and the largest valid input, such as (0, 1)."
        ) from None
    if not bool((low < high).all()) or low.isnan().any() or high.isnan().any():
        raise BadOption(f"bounds={bounds!r}: the smallest valid input must lie below the largest.")
    plain = low.dim() == 0 and high.dim() == 0
    return (float(low), float(high)) if plain else (low, high)


def merged(known: Domain, said: Domain) -> Domain:
    """`known` with what was said instead where something was."""
    said_facts = {name: value for name, value in vars(said).items() if value is not None and value != ()}
    return replace(known, **said_facts)
