"""What a defence may ask of the house: implements `core.defence.Context`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vauban.attacks.catalog import ATTACKS
from vauban.core.attack import EvasionScene
from vauban.core.crew import ALONE, Crew
from vauban.core.defence import Diary, Store
from vauban.core.goal import Goal
from vauban.core.registry import configure
from vauban.core.rng import Rng
from vauban.core.space import Continuous
from vauban.core.target import Domain, Target
from vauban.engine.case import Case, Progress, silent
from vauban.engine.oracle import MeteredOracle
from vauban.parts.goals import Firmly, Shift, misclassify
from vauban.schema.errors import BadThreat
from vauban.schema.threat import ThreatModel


@dataclass(frozen=True)
class HouseContext:
    """The threat that a defence trains against, the space in which it lies, attacks by id, progress."""

    radius: float | None
    space: Continuous | None
    tell: Progress = silent
    store: Store | None = None
    crew: Crew = ALONE
    diary: Diary | None = None
    lead: float = 0.0
    """By which attacks must reach their goal: where none can, they make all their steps."""

    @classmethod
    def of(
        cls,
        case: Case,
        threat: ThreatModel | None,
        tell: Progress = silent,
        store: Store | None = None,
        crew: Crew = ALONE,
        diary: Diary | None = None,
    ) -> HouseContext:
        """The context of a case; without a threat that has a room, there is neither radius nor space."""
        if threat is None or threat.room is None:
            return cls(None, None, tell, store, crew, diary)
        space = case.modality.space(threat.room.space, case.domain)
        return cls(threat.room.radius, space, tell, store, crew, diary)

    def attack(self, id: str, **settings: Any) -> Callable[..., Tensor]:
        """`attack(id, **settings)(target, x, y, rng, domain)` gives adversarial inputs `[n, ...]` within the threat.

        Rows that were not broken hold the point that came closest; an infinite radius asks for the nearest success. Raises BadThreat without a threat.
        """
        space, radius = self.space, self.radius
        if space is None or radius is None:
            raise BadThreat(f"{id} needs a radius: give a threat such as --threat linf:0.1.")
        attack: Any = configure(ATTACKS.load(id), settings)

        def run(target: Target, x: Tensor, y: Tensor, rng: Rng, domain: Domain) -> Tensor:
            goal: Goal = (
                Shift(y, 0.5 * float(y.std())) if domain.task == "regression" else misclassify(y, domain.refusal)
            )
            goal = Firmly(goal, self.lead) if self.lead else goal
            frame, rows = space.frame(x), torch.arange(len(x), device=x.device)
            oracle = MeteredOracle(
                target, goal, space, frame.start, radius, nearest=radius == float("inf"), render=frame.render
            )
            oracle.begin()
            attack(EvasionScene(oracle, frame.start, space, radius, domain.classes), rng)
            return frame.render(oracle.best.x, rows)

        return run

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Tell how far it is."""
        self.tell(done, total, text)
