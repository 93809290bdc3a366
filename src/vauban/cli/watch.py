"""An audit on the screen: bars where stderr is a terminal, one line for each finished unit where it is not."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from vauban.audits.progress import Quiet, Watcher
from vauban.cli.verb import say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from vauban.audits.plan import Estimate, Plan, Unit
    from vauban.schema.log import Attempt

MARKS = {"assessed": "done", "inconclusive": "open", "error": "ERROR", "skipped": "skip", "not_applicable": "n/a"}


def estimate_text(estimate: Estimate) -> str:
    """`at most 1,234,000 queries (1,200,000 gradients), 8 trainings, about 2 min of attacking`."""
    words = f"at most {estimate.queries:,} queries"
    words += f", {estimate.gradients:,} gradients" if estimate.gradients else ""
    words += f", {estimate.trainings:,} trainings" if estimate.trainings else ""
    return words + (f"; {duration(estimate.seconds)} without trainings" if estimate.seconds is not None else "")


def duration(seconds: float) -> str:
    """Seconds for people: `8 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def name(unit: Unit) -> str:
    return f"{unit.check.id} {unit.check.threat.id}"


EVERY = 30.0
"""Seconds between two lines about what is under way."""
REMEMBERED = 3600.0
"""Seconds of steps that the time left is reckoned from: an epoch may take minutes, and rich forgets after half of one."""


class Lines(Quiet):
    """One line for each finished unit, and one now and then on how long a slow one takes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.at = self.said = clock()
        self.count = self.total = 0
        self.what = ""
        self.first: float | None = None
        """How far it was when its steps began to be counted."""

    def planned(self, plan: Plan, finished: int) -> None:
        self.count, self.total = 0, len(plan.todo)
        left_out = len(plan.units) - self.total
        say(f"plan: {self.total} checks, {left_out} left out; {estimate_text(plan.estimate)}")
        if finished:
            say(f"resuming: {finished} of {self.total} checks are finished already")

    def started(self, unit: Unit) -> None:
        self._begin(name(unit))

    def _begin(self, what: str) -> None:
        self.at = self.said = self.clock()
        self.what, self.first = what, None

    def step(self, done: float, total: float, text: str = "") -> None:
        if self.first is None:
            self.first = max(done - 1, 0)  # what was done before an interruption took no time now
        now = self.clock()
        if now - self.said < EVERY or not self.first < done < total:
            return
        self.said = now
        left = (now - self.at) / (done - self.first) * (total - done)
        more = f", {text}" if text and text.lower() not in self.what.lower() else ""
        say(f"  {self.what}{more}: {done:g} of {total:g}, about {duration(left)} left")

    def ended(self, unit: Unit, attempt: Attempt, reused: bool) -> None:
        if unit.refusal is not None:
            return
        self.count += 1
        took = "kept" if reused else f"{self.clock() - self.at:.1f} s"
        reason = f": {attempt.reason}" if attempt.reason else ""
        say(f"[{self.count}/{self.total}] {MARKS[attempt.state]:5} {name(unit)} ({took}){reason}")

    def note(self, text: str) -> None:
        self._begin(text)
        say(text)


class Bars(Lines):
    """A bar for the whole with the time left, and one for the unit under way."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self._whole: TaskID | None = None
        self._unit: TaskID | None = None

    def planned(self, plan: Plan, finished: int) -> None:
        super().planned(plan, finished)
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        self._whole = self._progress.add_task("audit", total=len(plan.todo))
        self._unit = self._progress.add_task("", total=1, visible=False)

    def started(self, unit: Unit) -> None:
        super().started(unit)
        assert self._unit is not None, "an audit is planned before its units start"
        self._progress.reset(self._unit, total=1, description=name(unit), visible=True)

    def step(self, done: float, total: float, text: str = "") -> None:
        if self._unit is None:  # a defence trains before the first audit is planned
            self._unit = self._progress.add_task(text or "defending", total=total)
        phase = text if text and self._whole is None else None
        self._progress.update(self._unit, completed=done, total=total, description=phase)

    def ended(self, unit: Unit, attempt: Attempt, reused: bool) -> None:
        super().ended(unit, attempt, reused)
        if unit.refusal is None and self._whole is not None:
            self._progress.advance(self._whole)


@contextlib.contextmanager
def watching() -> Iterator[Watcher]:
    """Bars or lines, whichever stderr takes."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    with screen() as progress:
        yield Bars(progress)


def screen(**how: Any) -> Progress:
    """Bars on stderr, with what has passed and what is left; `how` goes to rich."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    how = {"console": Console(stderr=True), "transient": True, **how}
    return Progress(*columns, speed_estimate_period=REMEMBERED, **how)
