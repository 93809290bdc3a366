"""Examine a leakage attack: what it tells members from non-members by, beside a blind baseline and a null control."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from vauban.attacks.catalog import ATTACKS
from vauban.core.attack import Leak, LeakScene
from vauban.core.registry import configure
from vauban.core.rng import Rng
from vauban.engine.case import Case, Check, Outcome
from vauban.engine.measure import bootstrap, rate
from vauban.engine.reconstruction import reconstruction
from vauban.engine.records import FEWEST, Records, pool_of, records_of
from vauban.parts.roc import auc, hits_at_fpr, roc, thin
from vauban.schema.access import Access
from vauban.schema.log import Attempt, Cost, Curve, Doubt, Measurement, Series

RATES = (("1pct", 0.01), ("0.1pct", 0.001))
FEW_FALSE_ALARMS = 10
"""Below so many non-members allowed to be called members, a rate comes with a caveat; below 1 it is refused."""
MOST_EXPOSED = 20


def examine(check: Check, case: Case) -> Outcome:
    """Run one leakage attack and measure it.

    Membership attacks are measured on as many training rows as test rows; inversions on how near they come to the
    training rows. Skipped without training data, inconclusive with too few records.
    """
    started = time.monotonic()
    base = Attempt(check=check.id, threat=check.threat.id, state="assessed")
    if not case.data.has_train:
        reason = "who was in the training data is measured on training rows: give x_train, y_train"
        return Outcome(base.model_copy(update={"state": "skipped", "reason": reason}))
    records = records_of(case)
    count = int(records.member.sum())
    if count < FEWEST:
        reason = f"only {count} members and non-members at hand: leakage needs at least {FEWEST} of each"
        return Outcome(base.model_copy(update={"state": "inconclusive", "reason": reason}))
    cls = ATTACKS.load(check.id)
    settings = {**cls.profiles.get(case.profile, {}), **check.settings}
    attack = configure(cls, settings)
    scene = _scene(case, records, check)
    leak = attack(scene, _rng(check, case, len(records.x)))
    measured = _membership if leak.scores is not None else reconstruction
    outcome = measured(base, leak, scene, case)
    if leak.scores is not None:
        outcome = _with_controls(outcome, attack, scene, check, case)
    cost = Cost(queries=leak.queries, gradients=int(leak.facts.get("gradients", 0)), seconds=time.monotonic() - started)
    return replace(outcome, attempt=outcome.attempt.model_copy(update={"cost": cost, "params": settings}))


def _rng(check: Check, case: Case, count: int) -> Rng:
    return Rng(case.seed_for(check.id, check.threat.id), count)


def _scene(case: Case, records: Records, check: Check) -> LeakScene:
    training = Access.TRAINING in check.threat.access
    pool = pool_of(case) if training else None
    return LeakScene(
        target=case.target,
        x=records.x,
        y=records.y,
        member=records.member,
        recipe=case.target.recipe if training else None,
        pool=case.data,
        domain=case.domain,
        references=pool.get if pool is not None else None,
    )


def _membership(base: Attempt, leak: Leak, scene: LeakScene, case: Case) -> Outcome:
    """AUC, true positives at fixed false-positive rates, the curve, the most exposed rows."""
    assert leak.scores is not None
    scores, member = leak.scores.numpy(), scene.member.numpy()
    records = records_of(case)
    caveats = []
    if records.duplicates:
        caveats.append(
            f"{records.duplicates} test rows repeat a training row; they are left out, as they are not non-members"
        )
    measurements = [_auc("leakage.membership.auc", scores, member, case)]
    for suffix, false_rate in RATES:
        measurement, caveat = _tpr(suffix, false_rate, scores, member)
        measurements.append(measurement)
        caveats.extend(caveat)
    attempt = base.model_copy(
        update={
            "measurements": measurements,
            "caveats": caveats,
            "curves": [_curve(base.check, [_series("attack", scores, member)])],
            "facts": {**leak.facts, "members": int(member.sum()), "most_exposed": _exposed(scores, records)},
        }
    )
    arrays = {"scores": leak.scores, "member": scene.member, "rows": records.rows}
    return Outcome(attempt, arrays)


def _auc(name: str, scores: np.ndarray, member: np.ndarray, case: Case) -> Measurement:
    low, high = bootstrap(lambda rows: auc(scores[rows], member[rows]), len(scores), case.seed_for(name), draws=500)
    return Measurement(
        name=name, value=auc(scores, member), low=low, high=high, n=len(scores), unit="auc", method="bootstrap 95 %"
    )


def _tpr(suffix: str, false_rate: float, scores: np.ndarray, member: np.ndarray) -> tuple[Measurement, list[str]]:
    """True positives at a false-positive rate; refused where not even one false alarm could be told from none."""
    name = f"leakage.membership.tpr_at_fpr_{suffix}"
    allowed = int((~member).sum()) * false_rate
    if allowed < 1:
        text = f"{name} is not given: it needs at least {1 / false_rate:.0f} non-members, there are {(~member).sum()}"
        return Measurement(name=name, value=None, n=int(member.sum()), method="too few non-members"), [text]
    found = rate(name, hits_at_fpr(scores, member, false_rate), int(member.sum()))
    few = f"{name} rests on {int(allowed)} non-members that may be called members: read its interval as too narrow"
    return found, [few] if allowed < FEW_FALSE_ALARMS else []


def _exposed(scores: np.ndarray, records: Records) -> list[dict[str, Any]]:
    """The training rows with the highest scores, worst first."""
    members = np.flatnonzero(records.member.numpy())
    worst = members[np.argsort(-scores[members], kind="stable")[:MOST_EXPOSED]]
    return [
        {"row": int(records.rows[i]), "label": float(records.y[i]), "score": float(np.nan_to_num(scores[i]))}
        for i in worst
    ]


def _with_controls(
    outcome: Outcome, attack: Callable[..., Leak], scene: LeakScene, check: Check, case: Case
) -> Outcome:
    """The same outcome beside the blind baseline and the null control."""
    attempt = outcome.attempt
    member = scene.member.numpy()
    blind = case.share("leakage.blind", lambda: blind_scores(scene, case.seed_for("leakage.blind")))
    blind_auc = _auc("leakage.blind_auc", blind, member, case)
    series = [*attempt.curves[0].series, _series("blind baseline (inputs and labels only)", blind, member)]
    doubts, caveats = [_blind_doubt(blind_auc)], list(attempt.caveats)
    null = _null_scores(attack, scene, check, case)
    if null is None:
        null_auc = Measurement(name="leakage.null_auc", value=None, n=0, unit="auc", method="no recipe to train with")
        caveats.append("no null control: the target comes without a recipe, so no like model could be trained")
    else:
        null_auc = _auc("leakage.null_auc", null, member, case)
        series.append(_series("null control (a model that did not know them)", null, member))
        doubts.append(_null_doubt(null_auc))
    caveats += [doubt.text for doubt in doubts if doubt.verdict != "pass"]
    update = {
        "measurements": [*attempt.measurements, blind_auc, null_auc],
        "doubts": doubts,
        "caveats": caveats,
        "curves": [_curve(check.id, [*series, _chance()])],
    }
    return replace(outcome, attempt=attempt.model_copy(update=update))


def blind_scores(scene: LeakScene, seed: int) -> np.ndarray:
    """Out-of-fold probabilities `[n]` of membership from a forest that sees inputs and labels, never the model.

    Anything above chance here is a difference between the training and the test rows themselves, not leakage.
    """
    features = torch.cat([scene.x.flatten(1), scene.y[:, None].to(scene.x.dtype)], 1).numpy()
    forest = RandomForestClassifier(n_estimators=100, min_samples_leaf=5, random_state=seed % 2**32)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed % 2**32)
    return cross_val_predict(forest, features, scene.member.numpy(), cv=folds, method="predict_proba")[:, 1]


def _null_scores(attack: Callable[..., Leak], scene: LeakScene, check: Check, case: Case) -> np.ndarray | None:
    """The attack's scores on a reference model, whose training half is independent of the target's membership."""
    pool = pool_of(case) if scene.references is not None else None
    if pool is None:
        return None
    pool.get(2)
    assert pool.null is not None
    control = replace(scene, target=pool.null, references=pool.without_null)
    leak = attack(control, _rng(check, case, len(scene.x)))
    return None if leak.scores is None else leak.scores.numpy()


def _standard_errors(found: Measurement) -> float:
    """How many bootstrap standard errors an AUC is away from chance."""
    value, low, high = (found.value or 0.0), (found.low or 0.0), (found.high or 0.0)
    return abs(value - 0.5) / max((high - low) / 3.92, 1e-12)


def _blind_doubt(found: Measurement) -> Doubt:
    distance = _standard_errors(found)
    differs = distance > 1.96 and (found.value or 0) > 0.5
    text = (
        f"members and non-members differ by themselves: a classifier that never sees the model tells them apart with "
        f"AUC {found.value:.3f}, so an attack's AUC up to that is not leakage"
        if differs
        else "training and test rows look alike to a classifier that never sees the model"
    )
    remedy = "draw training and test rows from the same source at random" if differs else ""
    return Doubt(
        id="leakage.blind_baseline",
        verdict="warn" if differs else "pass",
        value=found.value,
        threshold=0.5,
        text=text,
        remedy=remedy,
    )


def _null_doubt(found: Measurement) -> Doubt:
    """Fails beyond 3.3 standard errors (1 in 1,000 by chance), warns beyond 1.96 (1 in 20)."""
    distance = _standard_errors(found)
    verdict: Literal["pass", "warn", "fail"] = "fail" if distance > 3.29 else "warn" if distance > 1.96 else "pass"
    text = (
        "the attack finds nothing where there is nothing to find"
        if verdict == "pass"
        else f"the attack scores AUC {found.value:.3f} on a model that did not know the members: part of its AUC is not leakage"
    )
    return Doubt(id="leakage.null_control", verdict=verdict, value=found.value, threshold=0.5, text=text)


def _series(label: str, scores: np.ndarray, member: np.ndarray) -> Series:
    fpr, tpr, _ = roc(scores, member)
    x, y = thin(fpr, tpr)
    return Series(label=label, x=x, y=list(y))


def _chance() -> Series:
    return Series(label="chance", x=[1e-3, 1e-2, 1e-1, 1.0], y=[1e-3, 1e-2, 1e-1, 1.0])


def _curve(check: str, series: list[Series]) -> Curve:
    return Curve(
        id=f"{check}.roc",
        title="Members found against false alarms",
        x_label="false-positive rate",
        y_label="true-positive rate",
        x_scale="log",
        y_scale="log",
        series=series,
        reading=(
            "The share of training records found (up) at each share of outsiders wrongly called members (right); a "
            "model that gives nothing away stays on the chance line, and the left edge is where an attacker is sure."
        ),
    )
