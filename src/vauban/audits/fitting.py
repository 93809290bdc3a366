"""Which defences can be used on what was given, and why others cannot."""

from __future__ import annotations

from typing import Any

from vauban.audits.runner import Ready
from vauban.core.defence import Selective
from vauban.defences.catalog import DEFENCES
from vauban.engine.gate import offered
from vauban.schema.cards import DefenceCard


def unusable(id: str, ready: Ready) -> str:
    """Why a defence cannot be used on this model with this data, in words that follow its id; empty where it can."""
    case = ready.case
    method: Any = DEFENCES.load(id)
    card: DefenceCard = method.card
    if case.domain.task not in card.tasks:
        return f"is made for {' and '.join(card.tasks)}, and this is a {case.domain.task}"
    if card.modalities and case.domain.kind not in card.modalities:
        return f"is made for {' and '.join(card.modalities)} data, and this is {case.domain.kind}"
    if isinstance(method, Selective) and (kind := method.unfit(case.target)):
        return f"{kind}, and {case.target.id} is none"
    missing = card.needs & ~offered(case)
    if missing:
        return (
            f"needs {', '.join(missing.words())}, which {case.target.id} with this data does not offer (a PyTorch module, or a "
            "state dict with --factory, together with its training rows offers all)"
        )
    return ""


def instead(ready: Ready) -> str:
    """Which defences can be used, in words that follow a colon."""
    fit = [name for name in DEFENCES.ids() if not unusable(name, ready)]
    return f"use one that can be used: {', '.join(fit)}" if fit else "none can be used on it"
