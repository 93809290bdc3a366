"""What an attack or a defence says of itself."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from vauban.schema.access import Access
from vauban.schema.threat import AccessField, Frozen

Family = Literal["evasion", "poisoning", "tampering", "extraction", "leakage"]
Task = Literal["classification", "regression"]


class Source(Frozen):
    """Where a method comes from."""

    title: str
    where: str
    """Venue or identifier with section, e.g. `ICML 2020, arXiv:2003.01690, Algorithm 1`."""


class AttackCard(Frozen):
    """Facts about an attack that the gate and the reader need."""

    id: str
    name: str
    """What people call it, e.g. `Projected gradient descent`."""
    summary: str
    """One plain sentence for somebody who does not know the field."""
    needs: AccessField = Access.LABELS
    takes: AccessField = Access.NONE
    """Rights that it makes use of where they are granted, and does without where they are not."""
    spaces: tuple[str, ...] = ()
    """Spaces it can search (`linf`, `l2`, `l1`, `l0`); empty where it does not move inputs."""
    tasks: tuple[Task, ...] = ("classification",)
    modalities: tuple[str, ...] = ()
    """Kinds of data it works on; empty means any."""
    goals: tuple[str, ...] = ("untargeted",)
    min_classes: int = 2
    joint: bool = False
    """True where samples are attacked together (a universal perturbation), so that they depend on each other."""
    curve: bool = False
    """True where the engine also runs it at other radii, for the security curve."""
    sources: tuple[Source, ...] = Field(default=())

    @property
    def family(self) -> str:
        return self.id.partition(".")[0]


class DefenceCard(Frozen):
    """Facts about a defence, the adaptive attacks that know it among them."""

    id: str
    name: str
    summary: str
    needs: AccessField = Access.WEIGHTS_READ | Access.TRAINING
    tasks: tuple[Task, ...] = ("classification",)
    modalities: tuple[str, ...] = ()
    adaptive: tuple[str, ...] = ()
    """Ids of the attacks (after BPDA where it applies) that know this defence; a report names them."""
    adaptive_settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """For an adaptive attack, the settings that make it one (a loss that the defence does not flatten)."""
    threats: tuple[str, ...] = ("evasion",)
    """Families of threat that it answers."""
    sources: tuple[Source, ...] = Field(default=())


class RuleCard(Frozen):
    """A rule of judgement: what it means, how it is measured, when it is wrong, what to do."""

    id: str
    name: str
    meaning: str
    measured: str
    false_positives: str
    remedies: tuple[str, ...]
    standards: str
    """Key of the row in `standards.json` with the NIST, ATLAS and OWASP ids."""
    sources: tuple[Source, ...] = Field(default=())
