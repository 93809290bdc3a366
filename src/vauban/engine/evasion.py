"""Examine one evasion attack: attack, verify, measure, doubt, show."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vauban.attacks.catalog import ATTACKS
from vauban.core.attack import EvasionScene
from vauban.core.goal import Goal
from vauban.core.registry import configure
from vauban.core.rng import Rng
from vauban.core.space import Continuous
from vauban.core.target import Target
from vauban.engine import doubt
from vauban.engine.batching import slices
from vauban.engine.case import Case, Check, Outcome
from vauban.engine.exhibits import adversarial_exhibits
from vauban.engine.measure import median, rate
from vauban.engine.oracle import MeteredOracle
from vauban.engine.react import stand_in
from vauban.engine.verify import Verified, margins, verify
from vauban.parts.goals import ClassAs, Misclassify, Shift
from vauban.schema.access import Access
from vauban.schema.errors import BadThreat, Limit
from vauban.schema.log import Attempt, Cost, Curve, Doubt, Measurement, Series

RADII = {
    "smoke": (0.5, 1.0, 2.0),
    "standard": (0.25, 0.5, 1.0, 1.5, 2.0, 4.0),
    "deep": (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0),
}
WORDS = {"w": "broken", "b": "broken", "h": "held", "c": "certified", "u": "unknown"}


@dataclass(frozen=True)
class Run:
    """One attack on all samples, verified."""

    x: Tensor
    """The points to keep, `[n, ...]`: adversarial where broken, the clean input where held."""
    outcomes: str
    """`w`rong when clean, `b`roken, `h`eld, `u`nknown (the attack ended early)."""
    margin: Tensor
    distance: Tensor
    queries: Tensor
    cost: Cost
    verified: Verified
    clean_margin: Tensor
    doubts: list[Doubt]
    notes: list[str]
    facts: dict[str, Any]

    @property
    def status(self) -> list[str]:
        """broken, held, certified or unknown, a word a sample."""
        return [WORDS[letter] for letter in self.outcomes]


def goal_for(case: Case, threat_goal: str, tolerance: float | None = None) -> Goal:
    """What the attacker wants on these rows.

    Classification: any wrong class, or (targeted) a class drawn for each row. Regression: a prediction further than
    `tolerance` from the truth; half a standard deviation of the labels where none is given.
    """
    y = case.data.y_test
    if case.domain.task == "regression":
        spread = case.data.y_train if case.data.has_train else y
        return Shift(y, tolerance if tolerance is not None else 0.5 * float(spread.to(torch.float64).std()))
    if threat_goal == "untargeted":
        return Misclassify(y)
    classes = case.domain.classes or 2
    draw = Rng(case.seed_for("targets"), case.data.ids).integers(torch.arange(len(y)), classes - 1)[:, 0]
    return ClassAs((y + 1 + draw) % classes)


def run(check: Check, case: Case, *, radius: float | None = None, closed: Tensor | None = None) -> Run:
    """Attack every row and verify. `closed` `[n]` marks rows that need not be attacked again (security curve)."""
    started = time.monotonic()
    settings = dict(check.settings)
    goal = goal_for(case, check.threat.goal, settings.pop("tolerance", None))
    space = _space(check, case)
    radius = radius if radius is not None else _radius(check)
    attack_class = ATTACKS.load(check.id)
    profile = getattr(attack_class, "profiles", {}).get(case.profile, {})
    attack = configure(attack_class, {**profile, **settings})
    white = Access.GRADIENTS in attack_class.card.needs
    doubts = [case.share("randomness", lambda: doubt.randomness(case.target, case.data.x_test))]
    attacked, notes = stand_in(case.target, doubts) if white else (case.target, [])
    if white:
        name = f"gradient_health:{check.threat.goal}"
        doubts += case.share(name, lambda: doubt.gradient_health(attacked, goal, case.data.x_test))
    pieces = [
        _attack_rows(attack, attacked, goal, space, radius, check, case, rows)
        for rows in _batches(attack_class, case, closed)
    ]
    return _gather(pieces, goal, space, radius, case, doubts, notes, time.monotonic() - started)


@dataclass(frozen=True)
class _Piece:
    rows: Tensor
    x: Tensor
    queries: Tensor
    gradients: Tensor
    late: bool
    """The deadline passed before the attack was through."""
    facts: dict[str, Any]


def _attack_rows(
    attack: Any, target: Target, goal: Goal, space: Continuous, radius: float, check: Check, case: Case, rows: Tensor
) -> _Piece:
    x = case.data.x_test[rows]
    oracle = MeteredOracle(
        target,
        _subset(goal, rows),
        space,
        x,
        radius,
        access=check.threat.access,
        budget=check.threat.budget,
        nearest=radius == float("inf"),
        deadline=case.deadline,
        progress=lambda done, total: case.progress(done, total, check.id),
    )
    late, facts, found = False, {}, None
    try:
        oracle.begin()
        scene = EvasionScene(oracle, x, space, radius, case.domain.classes, case.data.x_train)
        artefact = attack(scene, Rng(case.seed_for(check.id, check.threat.id), np.asarray(case.data.ids)[rows.numpy()]))
        facts, found = artefact.facts, artefact.x if attack.card.joint else None
    except Limit:  # what was found until then counts; a spent budget is the threat's own bound, a deadline is not
        late = case.deadline is not None and time.monotonic() > case.deadline
    if found is None:
        reached = oracle.best.reached.reshape(-1, *[1] * (x.dim() - 1))
        found = torch.where(reached, oracle.best.x, x)
    return _Piece(rows, found, oracle.spent.queries, oracle.spent.gradients, late, facts)


def _subset(goal: Goal, rows: Tensor) -> Goal:
    part: Goal = replace(goal, labels=goal.labels[rows])  # type: ignore[type-var]
    return part


def _batches(attack_class: Any, case: Case, closed: Tensor | None) -> list[Tensor]:
    rows = torch.arange(len(case.data.x_test))
    rows = rows if closed is None else rows[~closed]
    if case.batch_size is None or attack_class.card.joint:
        return [rows] if len(rows) else []
    return [rows[cut] for cut in slices(len(rows), case.batch_size)] if len(rows) else []


def _gather(
    pieces: list[_Piece],
    goal: Goal,
    space: Continuous,
    radius: float,
    case: Case,
    doubts: list[Doubt],
    notes: list[str],
    seconds: float,
) -> Run:
    clean = case.data.x_test
    x, n = clean.clone(), len(clean)
    queries, gradients = torch.zeros(n, dtype=torch.int64), 0
    for piece in pieces:
        x[piece.rows] = piece.x
        queries[piece.rows] = piece.queries
        gradients += int(piece.gradients.sum())
    clean_margin = margins(case.target, goal, clean)
    found = verify(case.target, goal, space, case.modality, case.domain, x, clean, radius)
    wrong = clean_margin > 0
    late = torch.zeros(n, dtype=torch.bool)
    for piece in pieces:
        late[piece.rows] = piece.late
    letters = ["w" if wrong[i] else "b" if found.broken[i] else "u" if late[i] else "h" for i in range(n)]
    cost = Cost(queries=int(queries.sum()), gradients=gradients, seconds=seconds)
    facts = pieces[0].facts if len(pieces) == 1 else {}
    return Run(
        x, "".join(letters), found.margin, found.distance, queries, cost, found, clean_margin, doubts, notes, facts
    )


def examine(check: Check, case: Case) -> Outcome:
    """The evasion examiner: fixed-budget attacks under a threat with a radius."""
    if check.threat.room is None:
        raise BadThreat(f"{check.id} needs a radius: give a threat such as --threat linf:0.1.")
    result = run(check, case)
    card = ATTACKS.load(check.id).card
    curve, zero = _security_curve(check, case, result) if card.curve else (None, [])
    measurements = _measurements(result, check.threat.room.space, case)
    late = result.outcomes.count("u")
    attempt = Attempt(
        check=check.id,
        threat=check.threat.id,
        state="inconclusive" if late else "assessed",
        reason=f"the time limit was reached with {late} of {len(result.outcomes)} samples undecided" if late else "",
        cost=result.cost,
        measurements=measurements,
        caveats=result.notes + _caveats(result, case),
        doubts=[*result.doubts, doubt.output_kind(_kind(case.target, case.data.x_test)), *zero],
        curves=[c for c in (curve, _query_curve(result)) if c is not None],
        exhibits=adversarial_exhibits(
            result, case, goal_for(case, check.threat.goal, dict(check.settings).get("tolerance"))
        ),
        outcomes=result.outcomes,
        params=dict(check.settings),
        facts=result.facts,
    )
    hits = torch.tensor([letter == "b" for letter in result.outcomes])
    return Outcome(attempt, {"rows": hits.nonzero().flatten(), "x": result.x[hits].contiguous()} if hits.any() else {})


def _measurements(result: Run, unit: str, case: Case) -> list[Measurement]:
    letters = result.outcomes
    assessed = [letter for letter in letters if letter != "u"]
    broken = np.array([i for i, letter in enumerate(letters) if letter == "b"], dtype=np.int64)
    right = sum(letter != "w" for letter in letters)
    looks = case.modality.looks(result.x[broken], case.data.x_test[broken], case.domain)
    return [
        rate("evasion.clean_accuracy", right, len(letters)),
        rate("evasion.robust_accuracy", sum(letter in "hc" for letter in assessed), len(assessed)),
        median("evasion.median_distance", result.distance.numpy()[broken], unit),
        median("evasion.queries_median", result.queries.numpy()[broken].astype(np.float64), "queries"),
        *(median(f"evasion.{name}_median", values.cpu().numpy(), "") for name, values in looks.items()),
    ]


def _caveats(result: Run, case: Case) -> list[str]:
    out: list[str] = []
    claimed = int(((result.verified.margin > 0) & ~result.verified.admissible & (result.clean_margin <= 0)).sum())
    if claimed:
        out.append(f"{claimed} claimed successes were rejected by the independent check")
    broken = torch.tensor([letter == "b" for letter in result.outcomes])
    if case.domain.step is not None and broken.any():
        alive = int((result.verified.survives & broken).sum())
        out.append(
            f"{alive} of {int(broken.sum())} adversarial inputs survive rounding to the grid of {case.domain.step:.4g} on which inputs are stored"
        )
    return out


def _kind(target: Target, x: Tensor) -> str:
    with torch.no_grad():
        return target.forward(x[:1]).kind


def _security_curve(check: Check, case: Case, result: Run) -> tuple[Curve, list[Doubt]]:
    """Accuracy against radius, upwards: what is broken at a smaller radius stays broken."""
    base = _radius(check)
    letters = list(result.outcomes)
    right = [letter != "w" for letter in letters]
    points: list[tuple[float, float]] = [(0.0, sum(right) / len(right))]
    closed = ~torch.tensor(right)
    quiet = replace(case, progress=lambda *_: None)
    for factor in RADII[case.profile]:
        case.check_time()
        if factor == 1.0:
            now = torch.tensor([letter in "wb" for letter in letters])
        else:
            now = torch.tensor(
                [letter in "wb" for letter in run(check, quiet, radius=base * factor, closed=closed).outcomes]
            )
        closed = closed | now
        points.append((base * factor, 1 - float(closed.to(torch.float64).mean())))
    intervals = [rate("", round(a * len(letters)), len(letters)) for _, a in points]
    unit = check.threat.room.space if check.threat.room else ""
    series = Series(
        label=check.id,
        x=[r for r, _ in points],
        y=[a for _, a in points],
        low=[m.low for m in intervals],
        high=[m.high for m in intervals],
    )
    curve = Curve(
        id="security_curve",
        title="Accuracy as the attacker gets more room",
        x_label=f"radius ({unit})",
        y_label="accuracy",
        series=[series],
        reading=f"At radius {base:g} the model is right on {dict(points)[base]:.0%} of the inputs, without an attack on {points[0][1]:.0%}.",
    )
    return curve, [doubt.curve_reaches_zero([a for _, a in points], [r for r, _ in points])]


def _query_curve(result: Run) -> Curve | None:
    """Share of the correctly answered samples that are broken, against queries spent on each."""
    broken = np.array([letter == "b" for letter in result.outcomes])
    attacked = np.array([letter in "bh" for letter in result.outcomes])
    if not broken.any():
        return None
    used = np.sort(result.queries.numpy()[broken]).astype(float)
    most = float(result.queries.numpy()[attacked].max())
    grid = np.unique(np.round(np.geomspace(1, max(most, 2), 24)))
    share = [float((used <= g).sum() / attacked.sum()) for g in grid]
    return Curve(
        id="query_curve",
        title="Success against queries",
        x_label="queries a sample",
        y_label="share broken",
        x_scale="log",
        shape="steps",
        series=[Series(label="broken", x=[float(g) for g in grid], y=list(share))],
        reading=f"Half of the successes needed at most {np.median(used):.0f} queries.",
    )


def _space(check: Check, case: Case) -> Continuous:
    name = check.threat.room.space if check.threat.room else "l2"
    return case.modality.space(name, case.domain)


def _radius(check: Check) -> float:
    return check.threat.room.radius if check.threat.room else float("inf")
