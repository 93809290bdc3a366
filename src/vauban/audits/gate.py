"""May this model pass? Thresholds of one's own, and what got worse since a baseline. Nothing is computed anew."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator

from vauban.audits.compare import compare
from vauban.schema.log import SEVERITIES, AuditLog, Finding, Measurement, Severity
from vauban.schema.threat import Frozen

State = Literal["pass", "fail", "inconclusive"]
FailOn = Severity | Literal["never"]
FAIL_ON: tuple[str, ...] = (*get_args(Severity), "never")


class Gate(Frozen):
    """One threshold, e.g. `{check: evasion.apgd, metric: evasion.robust_accuracy, min: 0.4, use: low}`."""

    metric: str
    """A measurement name; its family may be left out (`robust_accuracy`)."""
    check: str | None = None
    """An attack or a family; any where left out."""
    threat: str | None = None
    min: float | None = None
    max: float | None = None
    use: Literal["value", "low", "high"] = "value"
    """The number itself, or an end of its 95 % interval."""

    @model_validator(mode="after")
    def _bounded(self) -> Gate:
        if self.min is None and self.max is None:
            raise ValueError("a gate needs min or max, or both")
        return self

    @property
    def text(self) -> str:
        where = " ".join(t for t in (self.check, self.threat) if t)
        bounds = [f">= {self.min:g}"] if self.min is not None else []
        bounds += [f"<= {self.max:g}"] if self.max is not None else []
        end = "" if self.use == "value" else f" ({self.use} end)"
        return f"{where + ': ' if where else ''}{self.metric}{end} {' and '.join(bounds)}"


class Ruling(Frozen):
    """One gate's answer."""

    gate: str
    state: State
    sentence: str


class GateReport(Frozen):
    """Every gate's answer. One failure fails the whole; otherwise one that could not be told leaves it open."""

    state: State
    rulings: list[Ruling] = Field(default_factory=list)


def judge_gates(
    log: AuditLog, gates: list[Gate], fail_on: str = "high", baseline: AuditLog | None = None
) -> GateReport:
    """Thresholds, findings from severity `fail_on` up, and (with a baseline) what is new or worse."""
    rulings = [ruling for gate in gates for ruling in _threshold(log, gate)]
    rulings += _assessed(log) if not gates else []
    rulings += _since(log, baseline) if baseline is not None else _severe(log, fail_on)
    states = {r.state for r in rulings}
    state: State = "fail" if "fail" in states else "inconclusive" if "inconclusive" in states else "pass"
    return GateReport(state=state, rulings=rulings)


def _threshold(log: AuditLog, gate: Gate) -> list[Ruling]:
    found = list(_measurements(log, gate))
    if not found:
        return [Ruling(gate=gate.text, state="inconclusive", sentence=f"Nothing was measured for {gate.text}.")]
    return [_ruling(gate, where, m) for where, m in found]


def _measurements(log: AuditLog, gate: Gate) -> list[tuple[str, Measurement]]:
    return [
        (f"{a.check} {a.threat or ''}".strip(), m)
        for a in log.attempts
        if (gate.check is None or a.check == gate.check or a.check.startswith(f"{gate.check}."))
        and (gate.threat is None or a.threat == gate.threat)
        for m in a.measurements
        if m.name == gate.metric or m.name.endswith(f".{gate.metric}")
    ]


def _ruling(gate: Gate, where: str, m: Measurement) -> Ruling:
    number: float | None = getattr(m, gate.use)
    if number is None:
        return Ruling(gate=gate.text, state="inconclusive", sentence=f"{where}: {m.name} has no {gate.use}.")
    kept = (gate.min is None or number >= gate.min) and (gate.max is None or number <= gate.max)
    verb = "keeps" if kept else "breaks"
    return Ruling(
        gate=gate.text,
        state="pass" if kept else "fail",
        sentence=f"{where}: {m.name} {gate.use} {number:.4g} {verb} {gate.text}.",
    )


def _assessed(log: AuditLog) -> list[Ruling]:
    verdict = log.verdict
    counted = f"{verdict.assessed} checks were assessed, {verdict.not_assessed} were not."
    if verdict.state == "inconclusive":
        return [Ruling(gate="assessed", state="inconclusive", sentence=f"{counted} {verdict.sentence}")]
    return [Ruling(gate="assessed", state="pass", sentence=counted)]


def _severe(log: AuditLog, fail_on: str) -> list[Ruling]:
    if fail_on == "never":
        return []
    counted = SEVERITIES[: SEVERITIES.index(fail_on) + 1]
    severe = [f for f in log.findings if f.suppressed is None and f.severity in counted]
    name = f"no finding of severity {fail_on} or above"
    if not severe:
        return [Ruling(gate=name, state="pass", sentence=f"There is {name}.")]
    return [Ruling(gate=name, state="fail", sentence=f"{f.severity}: {f.claim}") for f in severe]


def _since(log: AuditLog, baseline: AuditLog) -> list[Ruling]:
    """New findings by rule and threat (not by their number), and measurements worse beyond their interval."""
    known = {_key(f) for f in baseline.findings}
    new = [f for f in log.findings if f.suppressed is None and f.severity != "info" and _key(f) not in known]
    rulings = [Ruling(gate="no new finding", state="fail", sentence=f"New: {f.severity}: {f.claim}") for f in new]
    worse = [c for c in compare(baseline, log).changes if c.better is False]
    rulings += [
        Ruling(
            gate="nothing worse",
            state="fail",
            sentence=f"Worse: {c.check} {c.threat or ''}: {c.name} went from {c.before:.4g} to {c.after:.4g} "
            f"(difference {c.low:+.4g} to {c.high:+.4g}).",
        )
        for c in worse
    ]
    lost = {a.check for a in baseline.attempts if a.state == "assessed"} - {
        a.check for a in log.attempts if a.state == "assessed"
    }
    rulings += [
        Ruling(gate="nothing lost", state="inconclusive", sentence=f"{check} was assessed in the baseline, not here.")
        for check in sorted(lost)
    ]
    return rulings or [
        Ruling(gate="baseline", state="pass", sentence="Nothing is new, worse or lost since the baseline.")
    ]


def _key(finding: Finding) -> tuple[str, str | None]:
    return finding.rule, finding.threat
