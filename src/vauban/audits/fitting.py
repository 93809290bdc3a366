"""Whether a defence can be used on what was given."""

from __future__ import annotations

from vauban.audits.runner import Ready
from vauban.engine.gate import offered
from vauban.schema.cards import DefenceCard


def unfit(card: DefenceCard, ready: Ready) -> str:
    """Why a defence cannot be used here, as far as its card tells; empty where it can."""
    case = ready.case
    if case.domain.task not in card.tasks:
        return f"{card.id} is made for {' and '.join(card.tasks)}, and this is a {case.domain.task}."
    if card.modalities and case.domain.kind not in card.modalities:
        return f"{card.id} is made for {' and '.join(card.modalities)} data, and this is {case.domain.kind}."
    missing = card.needs & ~offered(case)
    if missing:
        return (
            f"{card.id} needs {', '.join(missing.words())}, which {case.target.id} with this data does not offer: give the "
            "model as a PyTorch module (a state dict with --factory) together with its training rows."
        )
    return ""
