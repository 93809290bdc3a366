"""Adversarial examples to look at, with attributions of clean and changed input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vauban.core.goal import Goal
from vauban.core.target import Domain
from vauban.engine.attributing import Attributed, attribute, baseline
from vauban.engine.batching import answers
from vauban.engine.case import Case
from vauban.parts.attribution import IntegratedGradients
from vauban.schema.access import Access
from vauban.schema.log import Exhibit

if TYPE_CHECKING:
    from vauban.engine.evasion_run import Run

SHOWN = 3
METHOD = IntegratedGradients(steps=32)
NO_SLOPES = "No attributions: the target offers no gradients; `vauban explain` asks for its scores instead."


def adversarial_exhibits(result: Run, case: Case, goal: Goal) -> list[Exhibit]:
    """Up to three examples that survive saving (rounding to the grid where there is one) and a fresh look."""
    broken = torch.tensor([letter == "b" for letter in result.outcomes]) & result.verified.survives
    rows = broken.nonzero().flatten()[:SHOWN]
    if len(rows) == 0:
        return []
    clean, changed = case.data.x_test[rows], result.verified.stored[rows]
    before, after = (_attributed(case, x, rows) for x in (clean, changed))
    captions = _captions(case, clean, changed, goal.labels[rows])
    note = NO_SLOPES if before is None or after is None else _gap(before, after)
    return [
        told(
            case.modality.exhibit(
                clean[one],
                changed[one],
                None if before is None else before.x[one],
                None if after is None else after.x[one],
                [captions[i]],
                case.domain,
            ),
            note,
        )
        for i, one in enumerate(slice(i, i + 1) for i in range(len(rows)))
    ]


def _gap(before: Attributed, after: Attributed) -> str:
    most = max(before.missed or 0.0, after.missed or 0.0)
    return (
        f"Integrated gradients in {METHOD.steps} steps; the sums miss the scores by at most {100 * most:.3g} % of what is "
        "attributed."
    )


def told(shown: Exhibit, more: str) -> Exhibit:
    """The exhibit with a further sentence under it."""
    return shown.model_copy(update={"note": f"{shown.note} {more}".strip()})


def _attributed(case: Case, x: Tensor, rows: Tensor) -> Attributed | None:
    """Integrated gradients of the answers given at `x`; None where the target has no gradients."""
    if Access.GRADIENTS not in case.target.offers:
        return None
    start = case.share("attribution baseline", lambda: baseline(None, case.data, case.domain))
    ids = np.asarray(case.data.ids)[rows.numpy()]
    return attribute(case.target, x, METHOD, start, domain=case.domain, ids=ids, seed=case.seed)


def _captions(case: Case, clean: Tensor, changed: Tensor, labels: Tensor) -> list[str]:
    before, after = (answers(case.target, x).labels for x in (clean, changed))
    return [
        f"{word(b, case.domain)} becomes {word(a, case.domain)} (truth {word(t, case.domain)})"
        for b, a, t in zip(before, after, labels, strict=True)
    ]


def word(value: Tensor, domain: Domain) -> str:
    """An answer in words: the name of a class where it has one; a number in a regression."""
    if domain.task == "regression":
        return f"{float(value):.3g}"
    names = domain.label_names
    return names[int(value)] if int(value) < len(names) else str(int(value))
