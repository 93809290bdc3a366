"""The attacker: goal, capability, knowledge, budget (the words of NIST AI 100-2)."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator

from vauban.schema.access import EVERYTHING, Access
from vauban.schema.errors import BadThreat


def _access(value: Any) -> Access:
    return value if isinstance(value, Access) else Access.parse(list(value))


AccessField = Annotated[
    Access, PlainValidator(_access, json_schema_input_type=list[str]), PlainSerializer(lambda a: a.words())
]

NORMS = ("linf", "l2", "l1", "l0")


class Frozen(BaseModel):
    """Base of everything that is written to disk: immutable, nothing unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Room(Frozen):
    """How far an input may be moved: a space's name and a radius in the data's own units."""

    space: str
    radius: float
    text: str

    @classmethod
    def parse(cls, text: str) -> Room:
        """Read `linf:0.1`, `l2:1.5`, `linf:8/255`. Raises BadThreat with what to write instead."""
        space, colon, amount = text.strip().lower().partition(":")
        if not colon or not space:
            raise BadThreat(
                f"The threat {text!r} has no radius: write a space and a number, such as linf:0.1 or l2:3/2."
            )
        numerator, slash, denominator = amount.partition("/")
        try:
            radius = float(numerator) / (float(denominator) if slash else 1.0)
        except (ValueError, ZeroDivisionError):
            raise BadThreat(f"The threat {text!r} has no usable radius: write a number such as 0.1 or 8/255.") from None
        if not math.isfinite(radius) or radius <= 0:
            raise BadThreat(
                f"The threat {text!r} has radius {radius:g}: an attacker needs a finite room above 0, such as {space}:0.1."
            )
        return cls(space=space, radius=radius, text=text.strip().lower())


class Budget(Frozen):
    """What the attacker may spend; per sample where it applies; None means no limit."""

    queries: int | None = None
    gradients: int | None = None
    seconds: float | None = None
    poison_fraction: float | None = None
    weight_edits: int | None = None


class ThreatModel(Frozen):
    """One attacker: what he wants, what he is granted, how far he may go, what he may spend."""

    id: str
    goal: Literal["untargeted", "targeted"] = "untargeted"
    access: AccessField = EVERYTHING
    knows: str = "everything"
    room: Room | None = None
    budget: Budget = Field(default_factory=Budget)

    @classmethod
    def of(cls, text: str) -> ThreatModel:
        room = Room.parse(text)
        return cls(id=room.text, room=room)
