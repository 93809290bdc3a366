"""Any Python function from inputs to answers: a black box."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vauban.core.target import Domain, OutputKind, Outputs, Recipe
from vauban.schema.access import Access
from vauban.schema.errors import BadTarget
from vauban.targets.torch import guess_output


@dataclass(frozen=True, eq=False)
class CallableTarget:
    """A function that takes inputs `[n, ...]` (float32 numpy) and returns scores `[n, classes]`, or labels `[n]`.

    `output` says which: `logits`, `probabilities`, `labels` or `values`; where it is None it is found at the first
    call (whole numbers `[n]` are labels, rows that sum to 1 are probabilities). Raises BadTarget for anything else.
    """

    function: Callable[[np.ndarray], Any]
    id: str = "callable"
    domain: Domain = field(default_factory=Domain)
    output: OutputKind | None = None
    recipe: Recipe | None = None
    _found: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def kind(self) -> OutputKind | None:
        return "values" if self.domain.task == "regression" else self.output or self._found.get("output")

    @property
    def offers(self) -> Access:
        rights = Access.LABELS if self.kind == "labels" else Access.LABELS | Access.SCORES
        rights |= Access.LOGITS if self.kind == "logits" else Access.NONE
        return rights | Access.TRAINING if self.recipe else rights

    def forward(self, x: Tensor) -> Outputs:
        answer = self.function(x.detach().cpu().numpy().copy())  # a copy: it may work in place
        values = self._tensor(answer)
        if values.dim() == 0 or len(values) != len(x):
            raise BadTarget(
                f"{self.id} returned shape {tuple(values.shape)} for {len(x)} inputs: it must return one row an input."
            )
        outputs = read(values, self.kind, self.domain, self.id)
        if self.kind is None:
            self._found["output"] = outputs.kind
        return replace(outputs, values=outputs.values.to(x.device))

    def _tensor(self, answer: Any) -> Tensor:
        if isinstance(answer, Tensor):
            return answer.detach().cpu()
        try:
            return torch.as_tensor(np.ascontiguousarray(answer))
        except (TypeError, ValueError):
            raise BadTarget(
                f"{self.id} returned {_shown(answer)}: it must return numbers, scores [rows, classes] or labels "
                "[rows] numbered 0, 1, 2, ... as the data's are."
            ) from None

    def sha256(self) -> str:
        """What the function says itself; otherwise SHA-256 of its source, or of its qualified name."""
        own = getattr(self.function, "sha256", None)
        if callable(own):
            return str(own())
        function = inspect.unwrap(self.function)
        try:
            text = inspect.getsource(function if inspect.isroutine(function) else type(function))
        except (OSError, TypeError):
            text = f"{type(function).__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"
        return hashlib.sha256(text.encode()).hexdigest()

    def settled(self, domain: Domain) -> CallableTarget:
        return replace(self, domain=domain, output=self.output or self._found.get("output"))


def _shown(answer: Any) -> str:
    held = np.asarray(answer, dtype=object).reshape(-1)
    kind = type(answer).__name__
    inside = type(held[0]).__name__ if len(held) else "nothing"
    return kind if inside == kind else f"{kind} of {inside}"


def read(values: Tensor, kind: OutputKind | None, domain: Domain, id: str) -> Outputs:
    """An answer of `n` rows in the form that the rest of the house expects; `kind` is found where it is None."""
    flat = values.reshape(-1) if values.dim() == 2 and values.shape[1] == 1 else values
    if domain.task == "regression" and flat.dim() == 1:
        return Outputs(flat.to(torch.float64), "values")
    if kind == "labels" or (kind is None and flat.dim() == 1 and not flat.is_floating_point()):
        if flat.dim() != 1 or bool((flat != flat.round()).any() if flat.is_floating_point() else False):
            raise BadTarget(f"{id} returned shape {tuple(values.shape)}: labels must be whole numbers [rows].")
        return Outputs(flat.to(torch.int64), "labels")
    if domain.task == "regression" or flat.dim() > 2:
        raise BadTarget(
            f"{id} returned shape {tuple(values.shape)}: it must be [rows, classes], or [rows] in a regression."
        )
    scores = values.to(torch.float64)
    kind = kind or guess_output(scores) or "logits"
    if flat.dim() == 1:
        one = flat.to(torch.float64)
        scores = torch.stack([1 - one if kind == "probabilities" else torch.zeros_like(one), one], 1)
    return Outputs(scores, kind)
