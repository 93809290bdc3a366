"""needs <= grants <= offers, else skipped with the reason."""

from __future__ import annotations

from dataclasses import dataclass

from vauban.engine.case import Case
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard
from vauban.schema.log import State
from vauban.schema.threat import ThreatModel


@dataclass(frozen=True)
class Refusal:
    state: State
    reason: str


def offered(case: Case) -> Access:
    """What the target and the data at hand offer together."""
    access = case.target.offers
    if case.data.has_train:
        return access | Access.DATA_READ | Access.DATA_WRITE
    return access & ~Access.TRAINING


def refusal(card: AttackCard, threat: ThreatModel, case: Case) -> Refusal | None:
    """Why this attack cannot be made here, or None. A skip is never a pass."""
    domain = case.domain
    if domain.task not in card.tasks:
        return Refusal("not_applicable", f"{card.name} is not defined for {domain.task}")
    if card.modalities and domain.kind not in card.modalities:
        return Refusal(
            "not_applicable", f"{card.name} works on {' and '.join(card.modalities)} data, this is {domain.kind}"
        )
    if threat.room is not None and card.spaces and threat.room.space not in card.spaces:
        return Refusal("not_applicable", f"{card.name} searches {', '.join(card.spaces)}, not {threat.room.space}")
    if domain.task == "classification" and (domain.classes or 0) < card.min_classes:
        return Refusal(
            "not_applicable", f"{card.name} needs {card.min_classes} classes, the model has {domain.classes}"
        )
    ungranted = card.needs & ~threat.access
    if ungranted:
        return Refusal("skipped", f"the threat model does not grant {', '.join(ungranted.words())}")
    missing = card.needs & ~offered(case)
    if missing:
        return Refusal("skipped", f"the target does not offer {', '.join(missing.words())}{_hint(missing)}")
    if threat.goal not in card.goals and card.spaces:
        return Refusal("not_applicable", f"{card.name} is not made for a {threat.goal} goal")
    return None


def _hint(missing: Access) -> str:
    hints = {
        Access.DATA_READ: "give training data (x_train, y_train)",
        Access.DATA_WRITE: "give training data (x_train, y_train)",
        Access.TRAINING: "give training data and a factory or an estimator that can be trained anew",
    }
    tips = sorted({tip for flag, tip in hints.items() if flag in missing})
    return f": {'; '.join(tips)}" if tips else ""
