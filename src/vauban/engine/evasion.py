"""Examine one evasion attack: attack, verify, measure, doubt, show."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vauban.attacks.catalog import ATTACKS
from vauban.core.attack import EvasionScene
from vauban.core.goal import Goal
from vauban.core.registry import configure
from vauban.core.rng import Rng
from vauban.core.space import Continuous, Frame
from vauban.engine.adaptive import afterwards, concluded, own_random, planned, searched, spent
from vauban.engine.batching import slices
from vauban.engine.case import Case, Check, Outcome
from vauban.engine.curve import by_distance, by_runs, distances, joined, nearest
from vauban.engine.doubts import Meter
from vauban.engine.doubts.probe import subset
from vauban.engine.evasion_run import Piece, Run
from vauban.engine.evasion_told import caveats, measurements, query_curve
from vauban.engine.exhibits import adversarial_exhibits
from vauban.engine.measure import median
from vauban.engine.oracle import MeteredOracle, Prover
from vauban.engine.proofs import LazyProver
from vauban.engine.react import Plan
from vauban.engine.verify import margins, refused, verify
from vauban.parts.goals import ClassAs, Shift, misclassify, shunned
from vauban.schema.access import Access
from vauban.schema.errors import BadThreat, Limit
from vauban.schema.log import Attempt, Cost, Curve, Doubt, Measurement
from vauban.schema.threat import NORMS

FALLBACK = "evasion.square"
"""Attacks by scores alone what was held although gradients were doubtful."""
NEAR = 0.05
"""Share of the inputs' range in which a model is asked about its gradients where the attacker turns knobs."""
SEVERAL = 15
"""An attack of more gradients than this is one of many steps."""


def goal_for(case: Case, threat_goal: str, tolerance: float | None = None) -> Goal:
    """What the attacker wants on these rows.

    Classification: any wrong class that is no refusal, or (targeted) a class drawn for each row. Regression: a prediction further than
    `tolerance` from the truth; half a standard deviation of the labels where none is given.
    """
    y = case.data.y_test
    if case.domain.task == "regression":
        spread = case.data.y_train if case.data.has_train else y
        return Shift(y, tolerance if tolerance is not None else 0.5 * float(spread.to(torch.float64).std()))
    if threat_goal == "untargeted":
        return misclassify(y, case.domain.refusal)
    real = torch.tensor([c for c in range(case.domain.classes or 2) if c != case.domain.refusal])
    draw = Rng(case.seed_for("targets"), case.data.ids).integers(torch.arange(len(y)), len(real) - 1)[:, 0]
    place = (y[:, None] == real).long().argmax(1)
    return ClassAs(real[(place + 1 + draw) % len(real)])


def run(
    check: Check, case: Case, *, radius: float | None = None, closed: Tensor | None = None, plan: Plan | None = None
) -> Run:
    """Attack every row and verify.

    `closed` `[n]` marks rows that need not be attacked again, `plan` what was doubted already (security curve).
    """
    started = time.monotonic()
    settings = dict(check.settings)
    goal = goal_for(case, check.threat.goal, settings.pop("tolerance", None))
    space = _space(check, case)
    radius = radius if radius is not None else _radius(check)
    attack_class = ATTACKS.load(check.id)
    profile = getattr(attack_class, "profiles", {}).get(case.profile, {})
    attack = configure(attack_class, {**profile, **settings})
    takes = attack_class.card.takes & check.threat.access & case.target.offers
    white = Access.GRADIENTS in attack_class.card.needs | takes
    prover = LazyProver(case.target, goal, space, radius, case.data.x_test)
    with own_random(case, check.id, check.threat.id):
        plan = plan or planned(check, case, goal, *_asked_in(space, _radius(check), case), white)
        attack = _fitted(attack, plan, settings)
        pieces = [
            _attack_rows(attack, plan, goal, space, radius, check, case, rows, prover)
            for rows in _batches(attack_class, case, closed)
        ]
        alone = _without_gradients(pieces, plan, goal, space, radius, check, case, prover) if plan.rough else 0
        notes = plan.words + ([f"nothing was proved: {prover.reason}"] if prover.reason else [])
        doubts = concluded(plan, alone, len(case.data.x_test))
        seconds = time.monotonic() - started
        return _gather(pieces, plan, goal, space, radius, case, doubts, notes, seconds, prover.tried)


def _fitted(attack: Any, plan: Plan, chosen: Mapping[str, Any]) -> Any:
    """The attack with the settings that the doubts call for, where it has them and the user did not choose."""
    known = {f.name for f in fields(attack)}
    return replace(attack, **{k: v for k, v in plan.settings.items() if k in known and k not in chosen})


def _without_gradients(
    pieces: list[Piece],
    plan: Plan,
    goal: Goal,
    space: Continuous,
    radius: float,
    check: Check,
    case: Case,
    prover: Prover,
) -> int:
    """Attack once more, by scores alone, what was held although the gradients were doubtful; how many that broke."""
    kind = ATTACKS.load(FALLBACK)
    if space.name not in kind.card.spaces or radius == float("inf") or check.threat.budget.queries is not None:
        return 0
    attack = configure(kind, kind.profiles.get(case.profile, {}))
    plain, broke = replace(plan, target=plan.judge), 0
    for number, piece in enumerate(pieces):
        still = ~piece.reached & ~piece.certified
        if not bool(still.any()) or piece.late:
            continue
        more = _attack_rows(attack, plain, goal, space, radius, check, case, piece.rows[still], prover)
        pieces[number] = piece.joined(still, more)
        broke += int(more.reached.sum())
    return broke


def _attack_rows(
    attack: Any,
    plan: Plan,
    goal: Goal,
    space: Continuous,
    radius: float,
    check: Check,
    case: Case,
    rows: Tensor,
    prover: Prover,
) -> Piece:
    ids = np.asarray(case.data.ids)[rows.numpy()]
    frame = space.frame(case.data.x_test[rows], ids)
    x = frame.start
    space, aim = searched(plan, space), plan.goal(subset(goal, rows))
    oracle = MeteredOracle(
        plan.target,
        plan.sought(aim),
        space,
        x,
        radius,
        access=check.threat.access,
        budget=check.threat.budget,
        nearest=radius == float("inf"),
        deadline=case.deadline,
        progress=lambda done, total: case.progress(done, total, check.id),
        prover=prover,
        render=frame.render,
    )
    late, facts, found, returned = False, {}, None, None
    try:
        oracle.begin()
        donors = None if space.knobs else case.data.x_train
        scene = EvasionScene(oracle, x, space, radius, case.domain.classes, donors)
        artefact = attack(scene, Rng(case.seed_for(check.id, check.threat.id), ids))
        facts, returned = artefact.facts, artefact.x
        found = returned if attack.card.joint else None
    except Limit:  # what was found until then counts; a spent budget is the threat's own bound, a deadline is not
        late = case.deadline is not None and time.monotonic() > case.deadline
    leads = oracle.best.margin + plan.lead > 0
    lost = 0
    if found is None:
        found = torch.where(leads.reshape(-1, *[1] * (x.dim() - 1)), oracle.best.x, oracle.best.x if plan.lead else x)
        lost = _lost(plan, aim, oracle.best.reached, returned, oracle, frame)
    spent = oracle.spent
    return Piece(
        rows,
        found,
        spent.queries,
        spent.gradients,
        oracle.certified,
        late,
        oracle.best.reached,
        oracle.best.x,
        lost,
        facts,
    )


def _lost(plan: Plan, aim: Goal, reached: Tensor, returned: Tensor | None, oracle: MeteredOracle, frame: Frame) -> int:
    """Rows whose success the oracle saw, and whose point in the attack's own hands is none."""
    if returned is None or not len(returned):
        return 0
    other = reached & (returned != oracle.best.x).flatten(1).any(1)
    rows = other.nonzero().flatten()
    if not len(rows):
        return 0
    return int((margins(plan.target, subset(aim, rows), frame.render(returned[rows], rows)) <= 0).sum())


def _batches(attack_class: Any, case: Case, closed: Tensor | None) -> list[Tensor]:
    rows = torch.arange(len(case.data.x_test))
    rows = rows if closed is None else rows[~closed]
    if case.batch_size is None or attack_class.card.joint:
        return [rows] if len(rows) else []
    return [rows[cut] for cut in slices(len(rows), case.batch_size)] if len(rows) else []


def _gather(
    pieces: list[Piece],
    plan: Plan,
    goal: Goal,
    space: Continuous,
    radius: float,
    case: Case,
    doubts: list[Doubt],
    notes: list[str],
    seconds: float,
    proved: bool,
) -> Run:
    clean, aim = case.data.x_test, plan.goal(goal)
    frame = space.frame(clean, case.data.ids)
    x, closest, n = frame.start.clone(), frame.start.clone(), len(clean)
    queries, gradients = torch.zeros(n, dtype=torch.int64), 0
    late, certified, claimed = (torch.zeros(n, dtype=torch.bool) for _ in range(3))
    for piece in pieces:
        x[piece.rows] = piece.x
        closest[piece.rows] = piece.closest
        queries[piece.rows] = piece.queries
        gradients += int(piece.gradients.sum())
        late[piece.rows] = piece.late
        certified[piece.rows] = piece.certified
        claimed[piece.rows] = piece.reached
    clean_margin = margins(plan.judge, aim, clean)
    found = verify(plan.judge, aim, space, case.modality, case.domain, x, frame, clean, radius)
    wrong = (clean_margin > 0) | refused(plan.judge, clean, shunned(aim))
    letters = [_letter(*one) for one in zip(*map(Tensor.tolist, (wrong, found.broken, certified, late)), strict=True)]
    return Run(
        x=torch.where(found.broken.reshape(-1, *[1] * (clean.dim() - 1)), found.x, clean),
        outcomes="".join(letters),
        margin=found.margin,
        distance=found.distance,
        queries=queries,
        cost=Cost(queries=int(queries.sum()), gradients=gradients, seconds=seconds),
        verified=found,
        clean_margin=clean_margin,
        doubts=doubts,
        notes=notes,
        facts=pieces[0].facts if len(pieces) == 1 else {},
        proved=proved,
        plan=plan,
        closest=closest,
        claimed=claimed & ~wrong,
        lost=sum(piece.lost for piece in pieces),
    )


def _letter(wrong: bool, broken: bool, certified: bool, late: bool) -> str:
    """Of what is known of a sample, the strongest: an example beats everything, a proof beats an attack that found none."""
    return "w" if wrong else "b" if broken else "c" if certified else "u" if late else "h"


def examine(check: Check, case: Case) -> Outcome:
    """The evasion examiner: fixed-budget attacks under a threat with a radius."""
    if check.threat.room is None:
        raise BadThreat(f"{check.id} needs a radius: give a threat such as --threat linf:0.1.")
    goal = goal_for(case, check.threat.goal, dict(check.settings).get("tolerance"))
    result = run(check, case)
    result, curve, more, zero = _curves(check, case, result)
    numbers = [*measurements(result, _unit(_space(check, case)), case), *more]
    late = result.outcomes.count("u")
    after, meter = _afterwards(check, case, result)
    attempt = Attempt(
        check=check.id,
        threat=check.threat.id,
        state="inconclusive" if late else "assessed",
        reason=f"the time limit was reached with {late} of {len(result.outcomes)} samples undecided" if late else "",
        cost=spent(result.cost, result.plan.real.meter, meter),
        measurements=numbers,
        caveats=result.notes + caveats(result, case, goal),
        doubts=[*result.doubts, *after, *zero],
        curves=[*curve, *query_curve(result)],
        exhibits=adversarial_exhibits(result, case, goal),
        outcomes=result.outcomes,
        params=dict(check.settings),
        facts=result.facts,
    )
    hits = torch.tensor([letter == "b" for letter in result.outcomes])
    return Outcome(attempt, {"rows": hits.nonzero().flatten(), "x": result.x[hits].contiguous()} if hits.any() else {})


def _afterwards(check: Check, case: Case, result: Run) -> tuple[list[Doubt], Meter]:
    """What is to be doubted of an attack of many steps, once it is done."""
    kind = ATTACKS.load(check.id)
    price = kind().price(case.domain.classes)
    # one that matches features does not climb the margin: a step that does may well beat it
    climbs = not kind.card.joint and Access.FEATURES not in kind.card.needs
    # knobs cannot be asked about as inputs can, and few of them leave little to doubt
    climbs = climbs and not _space(check, case).knobs
    iterative = result.cost.gradients > 0 and climbs and price.gradients > SEVERAL
    if not iterative or "u" in result.outcomes or result.plan.real.radius == float("inf"):
        return [], Meter()
    held = torch.tensor([i for i, letter in enumerate(result.outcomes) if letter == "h"], dtype=torch.int64)
    goal = goal_for(case, check.threat.goal, dict(check.settings).get("tolerance"))
    kept = sum(letter == "b" for letter, claim in zip(result.outcomes, result.claimed, strict=True) if claim)
    found = {
        "claimed": int(result.claimed.sum()),
        "kept": kept,
        "silent": result.lost,
        "total": len(result.outcomes),
    }
    with own_random(case, "afterwards", check.id):
        return afterwards(result.plan, goal, case.data.x_test, result.closest, held, found)


def _curves(check: Check, case: Case, result: Run) -> tuple[Run, list[Curve], list[Measurement], list[Doubt]]:
    """The result with what the curve's own search adds to it, the curve, and what else that search tells."""
    kind, base, space = ATTACKS.load(check.id), _radius(check), _space(check, case)
    if not kind.card.curve:
        return result, [], [], []
    quiet, unit = replace(case, progress=lambda *_: None), _unit(space)

    def again(radius: float, closed: Tensor) -> Run:
        return run(check, quiet, radius=radius, closed=closed, plan=result.plan)

    if not hasattr(kind, "nearest"):
        widest = space.widest(space.low, space.high) if space.knobs else float("inf")
        curve, doubts = by_runs(check, case, base, unit, widest, result, again)
        return result, [curve], [], doubts
    near = nearest(result, again)
    if near is None:
        return result, [], [], []
    goal = goal_for(case, check.threat.goal, dict(check.settings).get("tolerance"))
    result = joined(result, near, goal, space, base, case)
    far = distances(result, near, base)
    right = np.array([letter != "w" for letter in result.outcomes])
    found = median("evasion.nearest_median", far.numpy()[right], unit)
    return result, [by_distance(check, base, unit, result, far)], [found], []


def _asked_in(space: Continuous, radius: float, case: Case) -> tuple[Continuous, float]:
    """The room in which the model is asked what may be wrong with its gradients: inputs, also where knobs are searched."""
    if not space.knobs:
        return space, radius
    seen = case.data.x_test
    return case.modality.space("linf", case.domain), NEAR * float(seen.max() - seen.min())


def _unit(space: Continuous) -> str:
    """What a radius is counted in: the norms are their own units."""
    return space.name if space.name in NORMS else space.unit


def _space(check: Check, case: Case) -> Continuous:
    name = check.threat.room.space if check.threat.room else "l2"
    return case.modality.space(name, case.domain)


def _radius(check: Check) -> float:
    return check.threat.room.radius if check.threat.room else float("inf")
