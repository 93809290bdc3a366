"""The audit log: everything a report is made of, and nothing else. Written as report.json; the schema is published."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from vauban.schema.threat import Frozen

SCHEMA_VERSION = "1.0"
State = Literal["assessed", "inconclusive", "error", "skipped", "not_applicable"]
Severity = Literal["critical", "high", "medium", "low", "info"]
SEVERITIES: tuple[Severity, ...] = ("critical", "high", "medium", "low", "info")


class Measurement(Frozen):
    """A number with its interval. A rate over nothing assessed has value None, never 0 or 1."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: str = "rate"
    method: str = ""


class Cost(Frozen):
    """What was spent, summed over samples."""

    queries: int = 0
    gradients: int = 0
    doubting: int = 0
    """Queries and gradients spent on doubting the number, not counted above."""
    seconds: float = 0.0


class Series(Frozen):
    """One line of a chart; y may hold None where nothing is known."""

    label: str
    x: list[float]
    y: list[float | None]
    names: list[str] | None = None
    """What each point is called, where that is shown."""
    low: list[float | None] | None = None
    high: list[float | None] | None = None


class Curve(Frozen):
    """A chart as data: the reports draw it."""

    id: str
    title: str
    x_label: str
    y_label: str
    x_scale: Literal["linear", "log"] = "linear"
    y_scale: Literal["linear", "log"] = "linear"
    series: list[Series]
    shape: Literal["line", "steps", "points"] = "line"
    """`steps`: a count that jumps at each point and holds until the next. `points`: no line between them."""
    reading: str = ""
    """One plain sentence: how to read it and what it shows."""


class Picture(Frozen):
    """A small picture: base64 PNG."""

    caption: str
    png: str


class Bars(Frozen):
    """A bar chart as data: for each label one bar of every series, around zero."""

    title: str = ""
    labels: list[str]
    series: list[str]
    values: list[list[float]]
    """One list a series, one number a label."""


class Exhibit(Frozen):
    """Something to look at: a row of pictures, or a table (and bars) for data that is not pictures."""

    title: str
    note: str = ""
    pictures: list[Picture] = Field(default_factory=list)
    columns: list[str] = Field(default_factory=list)
    rows: list[list[str]] = Field(default_factory=list)
    bars: Bars | None = None


class Doubt(Frozen):
    """A reason to mistrust, or a check that found none: measured value against threshold."""

    id: str
    verdict: Literal["pass", "warn", "fail"]
    value: float | None = None
    threshold: float | None = None
    text: str
    remedy: str = ""


class Attempt(Frozen):
    """One check under one threat: what happened, what it cost, what was measured."""

    check: str
    threat: str | None = None
    state: State
    reason: str = ""
    cost: Cost = Field(default_factory=Cost)
    measurements: list[Measurement] = Field(default_factory=list)
    caveats: list[str] = Field(default_factory=list)
    doubts: list[Doubt] = Field(default_factory=list)
    curves: list[Curve] = Field(default_factory=list)
    exhibits: list[Exhibit] = Field(default_factory=list)
    outcomes: str = ""
    """One letter a sample, in the order of the audited samples: `w`rong already when clean, `b`roken, `h`eld, `c`ertified, `u`nknown."""
    params: dict[str, Any] = Field(default_factory=dict)
    facts: dict[str, Any] = Field(default_factory=dict)
    """Further plain facts of this check (flipped bits, recovered shapes, suspicious rows)."""

    def measurement(self, name: str) -> Measurement | None:
        return next((m for m in self.measurements if m.name == name), None)


class Standards(Frozen):
    """Ids in the public catalogues, with their names."""

    nist: list[str] = Field(default_factory=list)
    atlas: list[str] = Field(default_factory=list)
    owasp: list[str] = Field(default_factory=list)
    names: dict[str, str] = Field(default_factory=dict)
    """What each catalogue calls the id."""
    versions: dict[str, str] = Field(default_factory=dict)
    """`nist`, `atlas`, `owasp` -> title and version of the catalogue that the ids were taken from."""


class Evidence(Frozen):
    """What a finding rests on: the attempts by number, and the measurements that matter."""

    attempts: list[int] = Field(default_factory=list)
    """Indices into `attempts`, where curves, pictures and doubts are."""
    measurements: list[Measurement] = Field(default_factory=list)


class Suppression(Frozen):
    """An accepted finding: who accepted it, why, until when (ISO date)."""

    rule: str
    reason: str
    owner: str
    until: str
    threat: str | None = None


class Finding(Frozen):
    """Something that should be dealt with."""

    rule: str
    severity: Severity
    score: float
    claim: str
    name: str = ""
    """What the rule is called."""
    meaning: str = ""
    measured: str = ""
    false_positives: str = ""
    threat: str | None = None
    evidence: Evidence = Field(default_factory=Evidence)
    standards: Standards = Field(default_factory=Standards)
    remedies: list[str] = Field(default_factory=list)
    reproduce: str = ""
    score_inputs: dict[str, float] = Field(default_factory=dict)
    """The factors of the score: impact, knowledge, cost."""
    suppressed: Suppression | None = None


class RunInfo(Frozen):
    id: str
    started: str
    finished: str
    seed: int
    argv: list[str]
    versions: dict[str, str]
    machine: dict[str, str]
    profile: str = "standard"
    config: dict[str, Any] = Field(default_factory=dict)


class TargetInfo(Frozen):
    id: str
    sha256: str
    domain: str
    offers: list[str]
    task: str = "classification"
    classes: int | None = None
    facts: dict[str, Any] = Field(default_factory=dict)
    """What the preflight found, in numbers."""
    preflight: list[Doubt] = Field(default_factory=list)


class DataInfo(Frozen):
    id: str
    sha256: str
    train: int
    test: int
    shape: list[int]
    samples: int
    """How many test rows were audited."""


class Verdict(Frozen):
    state: Literal["pass", "fail", "inconclusive"]
    assessed: int
    not_assessed: int
    sentence: str = ""
    reasons: list[str] = Field(default_factory=list)


class Change(Frozen):
    """One measurement before and after."""

    check: str
    threat: str | None
    name: str
    before: float | None
    after: float | None
    difference: float | None
    low: float | None
    high: float | None
    unit: str = "rate"
    better: bool | None = None
    """True where it improved beyond its interval, False where it got worse, None where it cannot be told."""
    method: str = ""
    """How the interval was made: paired over the same samples, or of independent rates."""


class Slice(Frozen):
    """Accuracy of a part of the samples, clean and under attack, before and after; rates in [0, 1]."""

    name: str
    n: int
    clean_before: float
    clean_after: float
    robust_before: float
    robust_after: float
    low: float
    """Of the change under attack, 95 %."""
    high: float


JudgedOn = Literal["unaudited", "known"]


class Trial(Frozen):
    """One defence tried for a while, judged on rows kept from it. All rates are in [0, 1]."""

    defence: str
    """Its id; empty for the model as it was given."""
    round: int
    """From 1; 0 for the model as it was given."""
    epochs: int | None = None
    rows: int
    """Trained on."""
    clean: float | None = None
    robust: float | None = None
    certified: float | None = None
    outcomes: str = ""
    """As in `Attempt`, of the rows kept aside."""
    training_seconds: float = 0.0
    judging_seconds: float = 0.0
    failed: str = ""
    """Why it could not be tried."""


class Choice(Frozen):
    """Which defence was chosen by experiment, and why."""

    defence: str
    settings: dict[str, Any]
    runner_up: str = ""
    reasons: list[str]
    """Whole sentences: why this one, and what it would take to do better."""
    judge: str
    """The attack that judged."""
    rows: int
    """Kept aside to judge on."""
    source: JudgedOn
    """What these rows are: test rows that are not audited, or training rows that the model as it was given knows."""
    trials: list[Trial]
    curve: Curve
    """Accuracy under attack against accuracy on clean inputs."""


class Comparison(Frozen):
    """Two audits of the same samples side by side."""

    defence: str | None = None
    before: str
    after: str
    adaptive: list[str] = Field(default_factory=list)
    headline: list[Change] = Field(default_factory=list)
    """The few numbers that matter, each the worst over all attacks that measure it."""
    changes: list[Change]
    curves: list[Curve] = Field(default_factory=list)
    """The one to show first leads."""
    caveats: list[str] = Field(default_factory=list)
    facts: dict[str, Any] = Field(default_factory=dict)
    choice: Choice | None = None
    """How the defence was chosen, where it was not named."""
    slices: list[Slice] = Field(default_factory=list)


class AuditLog(Frozen):
    """report.json."""

    schema_version: str = SCHEMA_VERSION
    run: RunInfo
    target: TargetInfo
    data: DataInfo
    attempts: list[Attempt]
    findings: list[Finding]
    verdict: Verdict
    before_after: Comparison | None = None
    notes: list[str] = Field(default_factory=list)
