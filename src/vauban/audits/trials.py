"""Defences tried for a short while, and judged on rows that neither they nor the audit are given."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vauban.audits.fitting import unusable
from vauban.audits.progress import Watcher
from vauban.audits.runner import Ready
from vauban.core.data import Data
from vauban.core.registry import configure
from vauban.core.rng import Rng, derive_seed
from vauban.core.target import Target
from vauban.defences.catalog import DEFENCES
from vauban.engine.case import Check
from vauban.engine.context import HouseContext
from vauban.engine.execute import execute
from vauban.schema.errors import BadData, NotOffered
from vauban.schema.log import Attempt, JudgedOn, Trial
from vauban.schema.threat import ThreatModel

JUDGE = "evasion.cascade"
TIER = "screen"
GIVEN = ""
"""The id of the model as it was given, among the trials."""
SOURCES: Mapping[JudgedOn, str] = {
    "unaudited": "test rows that are not audited",
    "known": "training rows kept from the trials, which the model as it was given has seen",
}
"""What rows are judged on, in words."""
FEWEST = 20
"""Rows that must be kept aside."""
SHARE = 5
"""Of so many training rows at most one is kept aside."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A defence, and what is set of it whatever the trial."""

    id: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    spaces: tuple[str, ...] = ()
    """Of the threats that it is meant for; any where empty."""

    def unfit(self, ready: Ready, threat: ThreatModel) -> str:
        """Why it is not tried; empty where it is."""
        where = threat.room.space if threat.room else ""
        if self.spaces and where not in self.spaces:
            return f"{self.id} is meant for {' and '.join(self.spaces)}, and the threat is {threat.id}."
        why = unusable(self.id, ready)
        return f"{self.id} {why}." if why else ""

    @property
    def epochs(self) -> int | None:
        """Of its whole training; None where it does not train by epochs."""
        told = {f.name: f.default for f in dataclasses.fields(DEFENCES.load(self.id))}  # type: ignore[arg-type]
        whole = self.settings.get("epochs", told.get("epochs"))
        return None if whole is None else int(whole)

    def set(self, epochs: int | None) -> dict[str, Any]:
        """Settings of a run that is so long."""
        return {**self.settings, **({} if epochs is None else {"epochs": epochs})}


@dataclass(frozen=True)
class Bench:
    """Where trials are made: rows to learn from, rows to be judged on, the threat."""

    ready: Ready
    threat: ThreatModel
    learnt: Data
    held: Data
    """Its test rows are those that trials are judged on."""
    source: JudgedOn
    """What these rows are: a key of SOURCES."""
    watcher: Watcher

    @classmethod
    def of(cls, ready: Ready, threat: ThreatModel, rows: int, watcher: Watcher) -> Bench:
        """Test rows that are not audited are kept aside; where these are too few, training rows, which the model as it was given has
        seen. Raises BadData where neither suffice."""
        data = ready.request.data
        if not data.has_train:
            raise BadData(f"Trials learn from training rows, and {data.id} has none: give x_train and y_train.")
        spare = np.flatnonzero(~np.isin(data.ids, ready.case.data.ids))
        draw = np.random.default_rng(derive_seed(ready.request.seed, "trials"))
        if len(spare) >= FEWEST:
            held = np.sort(draw.permutation(spare)[:rows])
            aside = replace(data, x_test=data.x_test[held], y_test=data.y_test[held], ids=np.asarray(data.ids)[held])
            return cls(ready, threat, _mixed(data, draw), aside, "unaudited", watcher)
        count = min(rows, len(data.x_train) // SHARE)
        if count < FEWEST:
            raise BadData(
                f"Of {len(data.x_test)} test rows {len(spare)} are not audited, and of {len(data.x_train)} training rows {count} could "
                f"be kept aside; {FEWEST} are needed to judge trials on: give more rows, or name one defence with --with."
            )
        order = draw.permutation(len(data.x_train))
        kept, rest = np.sort(order[:count]), order[count:]
        aside = replace(data, x_test=data.x_train[kept], y_test=data.y_train[kept], ids=kept)
        return cls(ready, threat, _rows(data, rest), aside, "known", watcher)

    def judged(self, target: Target, seconds: float | None) -> Attempt:
        """What the cascade left of a target, on the rows kept aside; None for all the time that it needs."""
        until = None if seconds is None else time.monotonic() + seconds
        case = replace(self.ready.case, target=target, data=self.held, shared={}, deadline=until)
        return execute(Check(JUDGE, self.threat, {"tier": TIER}), case).attempt

    def trial(self, candidate: Candidate, plain: Trial, seconds: float | None) -> Trial:
        """Train as the trial says, and judge for so many seconds. What cannot be trained or judged says why."""
        started = time.perf_counter()
        try:
            target = self._made(candidate, plain.epochs, plain.rows)
        except (NotOffered, BadData) as error:
            return plain.model_copy(update={"failed": str(error)})
        trained = time.perf_counter() - started
        return self.marked(plain, target, seconds).model_copy(update={"training_seconds": trained})

    def marked(self, trial: Trial, target: Target, seconds: float | None) -> Trial:
        """A trial with its marks."""
        started, attempt = time.perf_counter(), self.judged(target, seconds)
        if not attempt.outcomes or "u" in attempt.outcomes:
            return trial.model_copy(update={"failed": attempt.reason or "it could not be attacked"})
        count = len(attempt.outcomes)
        shares = {
            "clean": 1 - attempt.outcomes.count("w") / count,
            "robust": sum(letter in "hc" for letter in attempt.outcomes) / count,
            "certified": attempt.outcomes.count("c") / count,
        }
        more = {"outcomes": attempt.outcomes, "judging_seconds": time.perf_counter() - started}
        return trial.model_copy(update={**shares, **more})

    def seconds_an_epoch(self, candidate: Candidate, rows: int) -> float:
        """Of training on all rows, from one epoch on `rows` of them. Raises what the defence raises."""
        started = time.perf_counter()
        self._made(candidate, 1, rows)
        return (time.perf_counter() - started) * len(self.learnt.x_train) / rows

    def _made(self, candidate: Candidate, epochs: int | None, rows: int) -> Target:
        data = self.learnt
        if rows < len(data.x_train):
            data = _rows(data, np.arange(rows))
        method = configure(DEFENCES.load(candidate.id), candidate.set(epochs))
        context = HouseContext.of(self.ready.case, self.threat, self.watcher.step)
        rng = Rng(derive_seed(self.ready.request.seed, "trial", candidate.id))
        made = method(self.ready.case.target, data, rng, context)
        return made.target.settled(self.ready.case.domain)


def _rows(data: Data, rows: np.ndarray) -> Data:
    return replace(data, x_train=data.x_train[rows], y_train=data.y_train[rows])


def _mixed(data: Data, draw: np.random.Generator) -> Data:
    """In random order, so that the first rows are a sample of all."""
    return _rows(data, draw.permutation(len(data.x_train)))
