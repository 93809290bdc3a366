"""A defence chosen by experiment: short trials, the better ones tried for longer, the best one trained in full.

Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943, algorithm 1), with equal time for all where time is limited,
equal epochs where it is not. Trials are judged on rows that are kept from them, never on the rows of the audit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from vauban.audits.compare import paired
from vauban.audits.progress import Watcher
from vauban.audits.runner import Ready
from vauban.audits.store import guarded, write_whole
from vauban.audits.trials import GIVEN, JUDGE, SOURCES, TIER, Bench, Candidate
from vauban.core.crew import Crew
from vauban.core.registry import Catalogue
from vauban.core.target import Target
from vauban.defences.catalog import DEFENCES
from vauban.schema.cards import DefenceCard, Source
from vauban.schema.errors import BadOption, CorruptFile, NotOffered
from vauban.schema.log import Choice, Curve, Series, Trial
from vauban.schema.threat import ThreatModel

AUTO = "auto"
SHORT = "its training in a trial may take"
"""Words of a trial for which there was no time."""
RECORD = "trials.json"
CANDIDATES = (
    Candidate("train.pgd"),
    Candidate("train.trades"),
    Candidate("train.mart"),
    Candidate("train.awp"),
    Candidate("train.fast"),
    Candidate("train.free"),
    Candidate("train.ibp", {}, ("linf",)),
    Candidate("train.robust_linear"),
    Candidate("train.robust_trees", {}, ("linf",)),
    Candidate("certify.smoothing", {"epochs": 10}, ("l2",)),
    Candidate("preprocess.squeeze"),
    Candidate("preprocess.variation"),
)
CHOICES: Catalogue[type[Auto]] = Catalogue("defence", "vauban.choices", {AUTO: "vauban.audits.choose:Auto"})
"""What stands beside the defences where one is named."""
TRIALS, AUDITS = 0.35, 0.4
"""Shares of a time limit for all trials, and for the audits before and after; training in full has the rest."""
LOST = 0.3
"""Accuracy on clean inputs below the best trial's, from which a trial is not drawn."""
PILOT = 256
"""Rows of the epoch that tells how long an epoch takes."""
HEAD = 64
"""Rows that a trial is trained on at least."""


@dataclass(frozen=True, kw_only=True)
class Auto:
    """Tries every defence that fits for a short while, the better ones for longer, and takes the best.

    Each is trained on the training rows, and judged on test rows that the audit does not use (where these are too few, on training rows
    kept from the trials) by the cascade of attacks that an audit makes, which looks through defences that hide gradients. The best is the one that holds most rows among those that lose no more than `allowed`
    of the accuracy on clean inputs. Without a time limit all trials of a round have equal epochs; with one they have equal
    time, and 35 % of it are for trials, 25 % for training in full, 40 % for the audits before and after.

    Source: Jamieson and Talwalkar 2016 (arXiv:1502.07943, algorithm 1: successive halving).
    Departures: a trial of a later round begins anew, so that its schedule of rate and radius is whole; the last round is the
    training in full, of one.

    Args:
        allowed: accuracy on clean inputs that a defence may cost, as a share of all rows, in [0, 1].
        rounds: of trials, 1 or more.
        keep: of so many trials one goes on to the next round, 2 or more.
        first: epochs of a trial in the first round where time is not limited; in later rounds `keep` times as many.
        rows: rows that are kept aside to judge on, at most; of training rows at most a fifth.
        candidates: ids, separated by commas; all that fit where empty.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id=AUTO,
        name="A choice by experiment",
        summary="Tries the defences that fit on your model and data under the time you have, and takes the best.",
        tasks=("classification", "regression"),
        adaptive=(JUDGE,),
        sources=(
            Source(
                title="Non-stochastic best arm identification and hyperparameter optimization",
                where="Jamieson, Talwalkar, AISTATS 2016, arXiv:1502.07943, algorithm 1",
            ),
        ),
    )

    allowed: float = 0.05
    rounds: int = 2
    keep: int = 3
    first: int = 2
    rows: int = 200
    candidates: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.allowed <= 1:
            raise ValueError(f"allowed is a share in [0, 1], got {self.allowed}")
        for name, least in (("rounds", 1), ("keep", 2), ("first", 1), ("rows", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    @property
    def listed(self) -> list[Candidate]:
        """Those to try; raises UnknownName."""
        named = [word.strip() for word in self.candidates.split(",") if word.strip()]
        known = {c.id: c for c in CANDIDATES}
        for name in named:
            DEFENCES.load(name)
        return [known.get(name, Candidate(name, {})) for name in named] or list(CANDIDATES)


def choose(how: Auto, ready: Ready, threat: ThreatModel, folder: Path, watcher: Watcher) -> Choice:
    """The defence that does best on rows kept aside; finished trials lie in the folder, and are not made again.

    Raises NotOffered where none fits, BadOption where the time is too short for one trial, BadData for too few rows.
    """
    reasons = {c: c.unfit(ready, threat) for c in how.listed}
    candidates = [c for c, reason in reasons.items() if not reason]
    if not candidates:
        raise NotOffered(f"None of the defences that can be tried fits: {next(iter(reasons.values()))}")
    record = _Record(folder / RECORD)
    if record.choice is not None:
        return record.choice
    bench = Bench.of(ready, threat, how.rows, watcher)
    contest = _Contest(how, bench, record, ready.request.time_limit)
    made = contest.run(candidates, ready.case.target)
    record.close(made)
    return made


def one_process(crew: Crew) -> None:
    """Raises BadOption where several processes were started to make a choice."""
    if crew.size > 1:
        raise BadOption(
            f"{AUTO} makes its trials in one process, and there are {crew.size}: start one, or name a defence."
        )


class _Record:
    """What is known of trials made before, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trials: list[Trial] = []
        self.choice: Choice | None = None
        if path.exists():
            try:
                kept = json.loads(path.read_text("utf-8"))
                self.trials = [Trial.model_validate(t) for t in kept["trials"]]
                self.choice = Choice.model_validate(kept["choice"]) if kept.get("choice") else None
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise CorruptFile(f"{path} cannot be read ({error}): delete it to make the trials again.") from error

    def once(self, defence: str, turn: int, make: Callable[[], Trial]) -> Trial:
        """That defence's trial in that round: found, or made and kept."""
        found = next((t for t in self.trials if (t.defence, t.round) == (defence, turn)), None)
        if found is None:
            found = make()
            self.trials.append(found)
            self._write(None)
        return found

    def close(self, choice: Choice) -> None:
        self.choice = choice
        self._write(choice)

    def _write(self, choice: Choice | None) -> None:
        body = {"trials": [t.model_dump() for t in self.trials], "choice": choice.model_dump() if choice else None}
        with guarded(self.path.parent):
            write_whole(self.path, (json.dumps(body, indent=1) + "\n").encode())


@dataclass
class _Contest:
    how: Auto
    bench: Bench
    record: _Record
    limit: float | None
    pace: dict[str, float] = field(default_factory=dict)
    """Seconds of an epoch on all rows, as measured."""

    def run(self, candidates: list[Candidate], given: Target) -> Choice:
        plain = Trial(defence=GIVEN, round=0, rows=0)
        base = self.record.once(GIVEN, 0, lambda: self.bench.marked(plain, given, None))
        if base.failed:
            raise NotOffered(f"The model as it is cannot be judged by {JUDGE}: {base.failed}")
        alive, last = candidates, []
        for turn in range(1, self.how.rounds + 1):
            last = [t for c in alive if not (t := self._tried(c, turn, len(alive))).failed]
            if not last:
                raise self._hopeless()
            last.sort(key=lambda trial: self._rank(trial, base), reverse=True)
            left = [t.defence for t in last[: math.ceil(len(last) / self.how.keep)]] if turn < self.how.rounds else []
            alive = [c for name in left for c in candidates if c.id == name]
        best = last[0]
        second = next(iter(last[1:]), None) or self._dropped(best, base)
        winner = next(c for c in candidates if c.id == best.defence)
        settings = winner.set(self._whole(winner))
        return Choice(
            defence=best.defence,
            settings=settings,
            runner_up=second.defence if second else "",
            reasons=[
                *_why(best, second, base, self.how, SOURCES[self.bench.source]),
                *self._better(best, winner, settings),
            ],
            judge=f"{JUDGE} ({TIER})",
            rows=len(self.bench.held.x_test),
            source=self.bench.source,
            trials=self.record.trials,
            curve=_curve(self.record.trials, best),
        )

    def _rank(self, trial: Trial, base: Trial) -> tuple[bool, float, float, float, float]:
        """Kept enough of the accuracy; rows held; and of equals the more accurate one, the one that proves more, the cheaper one."""
        kept = (trial.clean or 0.0) >= (base.clean or 0.0) - self.how.allowed - 1e-9
        return kept, trial.robust or 0.0, trial.clean or 0.0, trial.certified or 0.0, -trial.training_seconds

    def _dropped(self, best: Trial, base: Trial) -> Trial | None:
        """The best of those that were left behind."""
        others = [t for t in self.record.trials if not t.failed and t.defence not in (GIVEN, best.defence)]
        return max(others, key=lambda t: (t.round, *self._rank(t, base)), default=None)

    def _tried(self, candidate: Candidate, turn: int, many: int) -> Trial:
        def make() -> Trial:
            self.bench.watcher.note(f"round {turn} of {self.how.rounds}: trying {candidate.id}")
            return self._trial(candidate, Trial(defence=candidate.id, round=turn, rows=self.rows), many)

        if candidate.epochs is None and turn > 1:  # nothing grows with the round
            first = self.record.once(candidate.id, 1, make)
            return self.record.once(candidate.id, turn, lambda: first.model_copy(update={"round": turn}))
        return self.record.once(candidate.id, turn, make)

    def _trial(self, candidate: Candidate, plain: Trial, many: int) -> Trial:
        whole = candidate.epochs
        if self.limit is None:
            epochs = None if whole is None else min(whole, self.how.first * self.how.keep ** (plain.round - 1))
            return self.bench.trial(candidate, plain.model_copy(update={"epochs": epochs}), None)
        mine = self.limit * TRIALS / self.how.rounds / many
        if whole is None:
            return self.bench.trial(candidate, plain, mine)
        # one half to train, one to be judged
        try:
            pace = self.pace.get(candidate.id) or self._measured(candidate)
        except NotOffered as error:
            return plain.model_copy(update={"failed": str(error)})
        rows, epochs = min(self.rows, int(self.rows * mine / 2 / pace)), max(1, min(whole, int(mine / 2 / pace)))
        if rows < min(HEAD, self.rows):
            told = f"an epoch takes about {pace:.1f} s, and {SHORT} {mine / 2:.1f} s"
            return plain.model_copy(update={"failed": told})
        return self.bench.trial(candidate, plain.model_copy(update={"epochs": epochs, "rows": rows}), mine)

    @property
    def rows(self) -> int:
        return len(self.bench.learnt.x_train)

    def _measured(self, candidate: Candidate) -> float:
        self.pace[candidate.id] = self.bench.seconds_an_epoch(candidate, min(self.rows, PILOT))
        return self.pace[candidate.id]

    def _whole(self, winner: Candidate) -> int | None:
        """Epochs of the training in full: its own number, or as many as there is time for."""
        if winner.epochs is None or self.limit is None:
            return winner.epochs
        tried = [t for t in self.record.trials if t.defence == winner.id and t.epochs and t.training_seconds]
        pace = tried[-1].training_seconds / (tried[-1].epochs or 1) / tried[-1].rows
        all_rows = len(self.bench.ready.request.data.x_train)
        return max(1, min(winner.epochs, int(self.limit * (1 - TRIALS - AUDITS) / (pace * all_rows))))

    def _hopeless(self) -> Exception:
        failed = [t for t in self.record.trials if t.failed]
        told = "; ".join(f"{t.defence}: {t.failed}" for t in failed[:3])
        if self.limit is not None and any(SHORT in t.failed for t in failed):
            return BadOption(
                f"The time limit of {self.limit:g} s is too short for one trial ({told}): give more with --time-limit, or "
                "name one defence with --with."
            )
        return NotOffered(f"None of the trials could be made: {told}")

    def _better(self, best: Trial, winner: Candidate, settings: dict[str, Any]) -> list[str]:
        """What it would take to do better, as far as was measured."""
        said = []
        earlier = [t for t in self.record.trials if t.defence == best.defence and t.round < best.round and t.epochs]
        if earlier and best.epochs and (best.robust or 0) > (earlier[-1].robust or 0) + 0.02:
            said.append(
                f"To do better: from {earlier[-1].epochs} to {best.epochs} epochs it rose from "
                f"{earlier[-1].robust:.1%} to {best.robust:.1%} under attack, so that a longer training may gain more."
            )
        if winner.epochs and settings.get("epochs", winner.epochs) < winner.epochs:
            said.append(
                f"The time was enough for {settings['epochs']} of its usual {winner.epochs} epochs: give a longer --time-limit."
            )
        late = [t.defence for t in self.record.trials if SHORT in t.failed]
        if late:
            said.append(f"Too slow to be tried in that time: {', '.join(dict.fromkeys(late))}.")
        return said


def _why(best: Trial, second: Trial | None, base: Trial, how: Auto, source: str) -> list[str]:
    """The reason of the choice, in whole sentences."""
    n = len(best.outcomes)
    said = [
        f"{best.defence} held {best.robust:.1%} of {n} {source} against {JUDGE}, the model as it was given {base.robust:.1%}; "
        f"on clean inputs it answered {best.clean:.1%} right, before {base.clean:.1%}."
    ]
    if (best.clean or 0) < (base.clean or 0) - how.allowed - 1e-9:
        said.append(f"None of those tried kept all but {how.allowed:.0%} of the accuracy on clean inputs.")
    if second is not None:
        low, high = paired([c in "hc" for c in second.outcomes], [c in "hc" for c in best.outcomes])
        sure = "" if low > 0 else ", which may be chance"
        more = f" after {second.epochs} epochs" if second.epochs else ""
        said.append(
            f"The runner-up, {second.defence}{more}, held {second.robust:.1%} and answered {second.clean:.1%} right: "
            f"{(best.robust or 0) - (second.robust or 0):+.1%} between them (95 %: {low:+.1%} to {high:+.1%}{sure})."
        )
    return said


def _curve(trials: Sequence[Trial], best: Trial) -> Curve:
    """The trade-off as a picture: the last trial of each, but for those that are no use."""
    last = {t.defence: t for t in trials if not t.failed}
    lost = [name for name, t in last.items() if (t.clean or 0) < (best.clean or 0) - LOST and name != best.defence]
    last = {name: t for name, t in last.items() if name not in lost}
    groups = {
        "as given": [t for t in last.values() if t.defence == GIVEN],
        "tried": [t for t in last.values() if t.defence not in (GIVEN, best.defence)],
        "chosen": [last[best.defence]],
    }
    series = [
        Series(
            label=label,
            x=[t.clean or 0.0 for t in group],
            y=[t.robust for t in group],
            names=[t.defence.rpartition(".")[2] for t in group],
        )
        for label, group in groups.items()
        if group
    ]
    return Curve(
        id="trade_off",
        title="What each defence holds, and what it costs",
        x_label="accuracy on clean inputs",
        y_label="accuracy under attack",
        series=series,
        shape="points",
        reading="Up is more robust, right is more accurate on clean inputs; each point is the longest trial of a defence."
        + (f" Not shown, far less accurate: {', '.join(lost)}." if lost else ""),
    )


def spent(limit: float | None) -> float | None:
    """What one of the two audits has of a time limit."""
    return None if limit is None else limit * AUDITS / 2
