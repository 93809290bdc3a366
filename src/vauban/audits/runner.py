"""An audit from beginning to end: look, plan, attack, judge, write. The same call on the same folder resumes."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from vauban.attacks.catalog import ATTACKS
from vauban.audits.gate import judge_gates
from vauban.audits.machine import machine, versions
from vauban.audits.plan import Plan, Request, Speed, Unit, identify, plan
from vauban.audits.profiles import Profile, profile
from vauban.audits.progress import Quiet, Watcher
from vauban.audits.store import Journal, guarded
from vauban.core.data import Data
from vauban.domains.catalog import modality, settle
from vauban.engine.case import Case, Outcome
from vauban.engine.doubts import contradictions
from vauban.engine.execute import execute
from vauban.engine.preflight import preflight
from vauban.reports.write import write
from vauban.rules import suppress
from vauban.rules.base import Context
from vauban.rules.judge import judge, verdict
from vauban.schema.access import Access
from vauban.schema.errors import BadOption, MissingExtra
from vauban.schema.log import Attempt, AuditLog, DataInfo, Doubt, Finding, RunInfo, Severity, TargetInfo, Verdict

LEAST = 0.05
"""Share of the time limit that a check gets at least, while there is time."""
LASTING = ("assessed", "skipped", "not_applicable")
"""States that a second try would not change; the others are tried again when a run is resumed."""


WIDE = frozenset({"leakage", "extraction", "poisoning"})
"""Families whose attacks do not search inputs one by one: test rows cost them next to nothing and narrow their intervals."""
MEASURED = 1000
"""Test rows at most on which these are measured, however few are attacked."""


@dataclass(frozen=True)
class Ready:
    """An audit that has been looked into and planned, and not begun."""

    request: Request
    profile: Profile
    case: Case
    plan: Plan
    doubts: list[Doubt]
    facts: dict[str, Any]

    def case_for(self, family: str) -> Case:
        """The samples for attacks that search inputs; all test rows (up to MEASURED) for the others."""
        if family not in WIDE:
            return self.case
        rows = max(len(self.case.data.x_test), MEASURED)
        return replace(self.case, data=self.request.data.head(rows, self.request.seed))


def prepare(request: Request) -> Ready:
    """Preflight and plan: everything that can be wrong with what was given is found here, before anything is written."""
    _executor(request.executor)
    chosen = profile(request.profile)
    target, doubts, facts = preflight(request.target, request.data, settle(request.target.domain, request.data))
    data = request.data.head(request.samples or chosen.samples, request.seed)
    case = Case(
        target=target,
        data=data,
        domain=target.domain,
        modality=modality(str(target.domain.kind)),
        seed=request.seed,
        profile=chosen.id,
        batch_size=request.batch_size,
    )
    planned = plan(request, case, chosen, Speed(facts.get("forward_seconds"), facts.get("backward_seconds")))
    return Ready(request, chosen, case, planned, doubts, facts)


def audit(request: Request, out: Path | str | None, watcher: Watcher | None = None) -> AuditLog:
    """Audit a model.

    Args:
        request: what to audit, and how.
        out: the run folder, new or of the same run, which is then resumed; None keeps nothing on disk.
        watcher: told what happens.

    Raises RunFolder where the folder holds something else, DiskFull, the errors of what was given, and
    KeyboardInterrupt; finished units stay in the journal in every case.
    """
    ready = prepare(request)
    if out is not None:
        return carry_out(ready, Path(out), watcher or Quiet())
    with tempfile.TemporaryDirectory(prefix="vauban-") as folder:
        return carry_out(ready, Path(folder), watcher or Quiet())


def carry_out(ready: Ready, folder: Path, watcher: Watcher) -> AuditLog:
    """Attack, judge and write a prepared audit."""
    fresh = {"id": uuid.uuid4().hex[:12], "started": _now()}
    with Journal.open(folder, run_identity(ready), **fresh) as journal:
        attempts = cross_examined(_run(ready, journal, watcher), ready.case.target.offers)
        log = conclude(ready, attempts, journal.id, journal.started)
        with guarded(folder):
            write_reports(log, folder, ready.request)
    return log


def cross_examined(attempts: list[Attempt], offers: Access) -> list[Attempt]:
    """The attempts, with the doubts that show only between them."""
    found = contradictions(attempts, {a.check: seen(a, offers) for a in attempts if a.outcomes})
    return [
        a.model_copy(update={"doubts": [*a.doubts, *found[i]]}) if i in found else a for i, a in enumerate(attempts)
    ]


def seen(attempt: Attempt, offers: Access) -> Access:
    """What the attack of an attempt saw of a target that offers so much."""
    card = ATTACKS.load(attempt.check).card
    more = card.takes & offers
    return card.needs | (more if attempt.cost.gradients else more & ~Access.GRADIENTS)


def write_reports(log: AuditLog, folder: Path, request: Request) -> list[Path]:
    """The reports asked for, and report.json in any case: it is what later commands read."""
    return write(log, folder, tuple(dict.fromkeys(("json", *request.formats))), request.lang)


def run_identity(ready: Ready) -> dict[str, Any]:
    """What a folder must agree on to be resumed; limits, formats and gates may change between two calls."""
    request = ready.request
    return {
        **identify(request, ready.case, ready.profile),
        "checks": sorted({unit.check.id for unit in ready.plan.units}),
        "threats": sorted({unit.check.threat.id for unit in ready.plan.units if unit.check.threat.room}),
        "include": sorted(request.include),
        "exclude": dict(request.exclude),
        "settings": {k: dict(v) for k, v in request.settings.items()},
    }


def _run(ready: Ready, journal: Journal, watcher: Watcher) -> list[Attempt]:
    finished = journal.finished()
    watcher.planned(ready.plan, sum(unit.key in finished for unit in ready.plan.todo))
    seconds = ready.request.time_limit if ready.request.time_limit is not None else ready.profile.seconds
    deadline = None if seconds is None else time.monotonic() + seconds
    attempts: dict[str, Attempt] = {}
    ahead = sum(unit.estimate.seconds or 0.0 for unit in ready.plan.todo if unit.key not in finished)
    for unit in ready.plan.turns():
        recorded = finished.get(unit.key)
        reused = recorded is not None
        if unit.refusal is None and not reused:
            watcher.started(unit)
        until = _until(unit, ahead, deadline, seconds)
        ahead -= 0.0 if unit.refusal or reused else unit.estimate.seconds or 0.0
        case = replace(ready.case_for(unit.check.family), progress=watcher.step, deadline=until)
        attempt = recorded or _attempt(unit, case, journal, _left(ready.request, attempts.values()))
        attempts[unit.key] = attempt
        watcher.ended(unit, attempt, reused)
    return [attempts[unit.key] for unit in ready.plan.units]


def _until(unit: Unit, ahead: float, deadline: float | None, limit: float | None) -> float | None:
    """When a unit has to end: of the time that is left it gets what its estimate is of all that are ahead, for the dear ones not
    to leave nothing to the others. Trainings are in no estimate; they may take what is left."""
    own = unit.estimate.seconds
    if deadline is None or limit is None or own is None or unit.estimate.trainings or not ahead > 0:
        return deadline
    left = max(0.0, deadline - time.monotonic())
    return min(deadline, time.monotonic() + max(left * own / ahead, LEAST * limit))


def _left(request: Request, attempts: Iterable[Attempt]) -> int | None:
    """Queries that may still be made; None for no limit."""
    if request.query_limit is None:
        return None
    return max(0, request.query_limit - sum(a.cost.queries for a in attempts))


def _attempt(unit: Unit, case: Case, journal: Journal, left: int | None) -> Attempt:
    check = unit.check
    if unit.refusal is not None:
        return Attempt(check=check.id, threat=check.threat.id, state=unit.refusal.state, reason=unit.refusal.reason)
    if left is not None and unit.estimate.queries > left:
        reason = f"the query limit: this may need {unit.estimate.queries:,} queries, {left:,} are left"
        return Attempt(check=check.id, threat=check.threat.id, state="inconclusive", reason=reason)
    outcome: Outcome = execute(check, case)
    if outcome.attempt.state not in LASTING:
        return outcome.attempt
    return journal.record(unit.key, outcome)


def conclude(ready: Ready, attempts: list[Attempt], id: str, started: str) -> AuditLog:
    """Evidence to findings to verdict."""
    request, case = ready.request, ready.case
    target = TargetInfo(
        id="+".join(filter(None, (request.target_spec, request.defence))) if request.target_spec else case.target.id,
        sha256=case.target.sha256(),
        domain=str(case.domain.kind),
        offers=case.target.offers.words(),
        task=case.domain.task or "classification",
        classes=case.domain.classes,
        facts=ready.facts,
        preflight=ready.doubts,
    )
    info = RunInfo(
        id=id,
        started=started,
        finished=_now(),
        seed=request.seed,
        argv=list(request.argv),
        versions=versions(),
        machine=machine(),
        profile=ready.profile.id,
        config=_config(ready),
    )
    data = _data_info(request, case.data)
    context = Context(
        needs={a.check: seen(a, case.target.offers).words() for a in attempts if a.outcomes},
        target=target,
        data=data,
        target_spec=request.target_spec or target.id,
        defence=request.defence if request.target_spec else "",
        data_spec=data.id,
        seed=request.seed,
        options=request.options,
    )
    today = datetime.now(UTC).date()
    findings = judge(attempts, context, request.suppressions, today)
    log = AuditLog(
        run=info,
        target=target,
        data=data,
        attempts=attempts,
        findings=findings,
        verdict=_verdict(attempts, findings, request.fail_on, ready.doubts),
        notes=[*_absent(ready), *left_to_others(ready), *suppress.notes(findings, request.suppressions, today)],
    )
    return log.model_copy(update={"verdict": gated(log, request)}) if request.gates else log


def _verdict(attempts: list[Attempt], findings: list[Finding], fail_on: str, preflight: list[Doubt]) -> Verdict:
    """`never`: findings do not fail the audit, but too little assessed still leaves it open."""
    if fail_on == "never":
        return verdict(attempts, [f for f in findings if f.severity != "critical"], "critical", preflight)
    return verdict(attempts, findings, cast(Severity, fail_on), preflight)


def gated(log: AuditLog, request: Request) -> Verdict:
    """The verdict, with the user's own thresholds counted in."""
    report = judge_gates(log, list(request.gates), "never")
    broken = [r.sentence for r in report.rulings if r.state != "pass"]
    order = ("fail", "inconclusive", "pass")
    state = min(report.state, log.verdict.state, key=order.index)
    return log.verdict.model_copy(update={"state": state, "reasons": [*log.verdict.reasons, *broken]})


def _data_info(request: Request, audited: Data) -> DataInfo:
    data = request.data
    return DataInfo(
        id=request.data_spec or data.id,
        sha256=data.sha256(),
        train=len(data.x_train) if data.has_train else 0,
        test=len(data.x_test),
        shape=list(data.shape),
        samples=len(audited.x_test),
    )


def _config(ready: Ready) -> dict[str, Any]:
    request = ready.request
    return {
        "profile": ready.profile.id,
        "seed": request.seed,
        "samples": len(ready.case.data.x_test),
        "threats": sorted({u.check.threat.id for u in ready.plan.units if u.check.threat.room}),
        "include": list(request.include),
        "exclude": dict(request.exclude),
        "settings": {k: dict(v) for k, v in request.settings.items()},
        "fail_on": request.fail_on,
    }


def _absent(ready: Ready) -> list[str]:
    absent = ready.plan.absent
    return [f"Not part of this audit, because it was not asked for: {', '.join(absent)}."] if absent else []


def left_to_others(ready: Ready) -> list[str]:
    """That the profile makes some attacks in the place of others, as a note to the report."""
    count = len({check.id for check in ready.plan.left} - {unit.check.id for unit in ready.plan.units})
    if not count:
        return []
    made = ", ".join(sorted({unit.check.id for unit in ready.plan.todo if unit.check.family == "evasion"}))
    return [
        f"The profile {ready.profile.id} makes {made} in the place of {count} other attacks on inputs: "
        "`vauban list attacks` names them, --include adds one."
    ]


def _executor(name: str) -> None:
    if name == "ray":
        raise MissingExtra(
            "The executor 'ray' is not part of this version: run with --executor local; the same folder can be resumed on another machine."
        )
    if name != "local":
        raise BadOption(f"There is no executor {name!r}: the one there is is local.")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
