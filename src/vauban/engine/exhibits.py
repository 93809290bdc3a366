"""Adversarial examples to look at, with attributions of clean and changed input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vauban.core.goal import Goal
from vauban.core.target import Target
from vauban.engine.case import Case
from vauban.parts.attribution import integrated_gradients
from vauban.schema.access import Access
from vauban.schema.log import Exhibit

if TYPE_CHECKING:
    from vauban.engine.evasion_run import Run

SHOWN = 3


def adversarial_exhibits(result: Run, case: Case, goal: Goal) -> list[Exhibit]:
    """Up to three examples that survive saving (rounding to the grid where there is one) and a fresh look."""
    broken = torch.tensor([letter == "b" for letter in result.outcomes]) & result.verified.survives
    rows = broken.nonzero().flatten()[:SHOWN]
    if len(rows) == 0:
        return []
    clean, changed = case.data.x_test[rows], result.verified.stored[rows]
    before, after = (_attribution(case.target, x, clean) for x in (clean, changed))
    captions = _captions(case, clean, changed, goal.labels[rows])
    return [
        case.modality.exhibit(
            clean[i : i + 1], changed[i : i + 1], before[i : i + 1], after[i : i + 1], [captions[i]], case.domain
        )
        for i in range(len(rows))
    ]


def _attribution(target: Target, x: Tensor, clean: Tensor) -> Tensor:
    """Integrated gradients of the answer given at `x`; zeros where the target has no gradients."""
    if Access.GRADIENTS not in target.offers:
        return torch.zeros_like(x)
    with torch.no_grad():
        answer = target.forward(x).values
    picked = answer.argmax(1) if answer.dim() == 2 else None

    def score(z: Tensor) -> Tensor:
        values = target.forward(z).values
        return values if picked is None else values.gather(1, picked[:, None])[:, 0]

    return integrated_gradients(score, x, torch.zeros_like(x))


def _captions(case: Case, clean: Tensor, changed: Tensor, labels: Tensor) -> list[str]:
    with torch.no_grad():
        before, after = (case.target.forward(x).labels for x in (clean, changed))
    names = case.domain.label_names

    def word(value: Tensor) -> str:
        if case.domain.task == "regression":
            return f"{float(value):.3g}"
        return names[int(value)] if int(value) < len(names) else str(int(value))

    return [f"{word(b)} becomes {word(a)} (truth {word(t)})" for b, a, t in zip(before, after, labels, strict=True)]
