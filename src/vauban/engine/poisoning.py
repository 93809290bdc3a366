"""Examine poisoning: what poison would do to a model trained like this one, and whether the data audit would see it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor

from vauban.attacks.catalog import ATTACKS
from vauban.attacks.poisoning.data_audit import DataAudit, Suspicion
from vauban.core.attack import Poison, PoisonScene
from vauban.core.registry import configure
from vauban.core.rng import Rng
from vauban.core.target import Target
from vauban.engine.case import Case, Check, Outcome
from vauban.engine.measure import clopper_pearson, rate
from vauban.parts.attribution import input_gradient
from vauban.parts.roc import auc
from vauban.schema.access import Access
from vauban.schema.log import Attempt, Cost, Curve, Exhibit, Measurement, Series

FRACTION = 0.03
"""Share of poisoned training rows where the threat model names none."""
PLANTED = ("poisoning.badnets", "poisoning.blended", "poisoning.label_flip")
"""What the data audit is proved on."""
LISTED = 200
"""Row numbers written into the log at most."""
SHOWN = 3


def examine(check: Check, case: Case) -> Outcome:
    """Attacks that write data are carried out on models trained anew; what only reads data is run on the user's own."""
    attack_class: Any = ATTACKS.load(check.id)
    profile = getattr(attack_class, "profiles", {}).get(case.profile, {})
    attack = configure(attack_class, {**profile, **check.settings})
    writes = Access.DATA_WRITE in attack_class.card.needs
    return _examine_attack(attack, check, case) if writes else _examine_audit(attack, check, case)


@dataclass(frozen=True)
class Effect:
    """What one share of poison did. `success` is (hits, rows) on triggered rows, None where there is no trigger."""

    poison: Poison
    model: Target
    right: int
    success: tuple[int, int] | None
    label: str = ""


def _fraction(check: Check) -> float:
    named = check.threat.budget.poison_fraction
    return FRACTION if named is None else named


def _scene(case: Case, fraction: float) -> PoisonScene:
    return PoisonScene(case.data, case.domain, case.target.recipe, fraction, case.domain.true_classes or 2)


def _train(case: Case, x: Tensor, y: Tensor) -> Target:
    """A model trained by the target's recipe; the seed is one for all, so that only the data differ."""
    case.check_time()
    assert case.target.recipe is not None, "the gate lets nobody train without a recipe"
    return case.target.recipe.fit(x, y, case.seed_for("poisoning", "training") % 2**31)


def labels(target: Target, x: Tensor) -> Tensor:
    """Predicted classes `[n]`."""
    with torch.no_grad():
        return torch.cat([target.forward(part).labels for part in x.split(512)])


def _effect(attack: Any, case: Case, fraction: float) -> Effect:
    poison: Poison = attack(_scene(case, fraction), Rng(case.seed_for(attack.card.id), len(case.data.y_train)))
    model = _train(case, poison.data.x_train, poison.data.y_train)
    return _measured(poison, model, case)


def _measured(poison: Poison, model: Target, case: Case) -> Effect:
    x, y = case.data.x_test, case.data.y_test
    right = int((labels(model, x) == y).sum())
    success = None
    if poison.trigger is not None and poison.wanted is not None:
        others = y != poison.wanted
        hits = int(torch.eq(labels(model, poison.trigger(x[others])), poison.wanted).sum()) if others.any() else 0
        success = (hits, int(others.sum()))
    return Effect(poison, model, right, success)


def _examine_attack(attack: Any, check: Check, case: Case) -> Outcome:
    started, fraction = time.monotonic(), _fraction(check)
    further = [r for r in attack.rates if round(r * len(case.data.y_train)) and r != fraction]
    steps = len(further) + 2
    case.progress(0, steps, "training the clean twin")
    twin = case.share("poisoning.twin", lambda: _train(case, case.data.x_train, case.data.y_train))
    effects = {}
    for done, share in enumerate([fraction, *further]):
        case.progress(done + 1, steps, f"training with {share:.1%} poison")
        effects[share] = _effect(attack, case, share)
    case.progress(steps, steps)
    main = effects[fraction]
    # the twin under the same trigger: how often the class comes about without any poison
    effects[0.0] = _measured(replace(main.poison, rows=main.poison.rows[:0]), twin, case)
    found, clean = _suspicion(main.poison, case), _clean_suspicion(case)
    caveats = _caveats(main, found, fraction, case) + _twin_caveats(effects[0.0])
    n = len(case.data.y_test)
    measurements = [rate("poisoning.clean_accuracy", main.right, n)]
    if main.success is not None:
        measurements.insert(0, rate("poisoning.attack_success_rate", *main.success))
    measurements += _detection([(main.poison, found)], clean)
    attempt = Attempt(
        check=check.id,
        threat=check.threat.id,
        state="assessed",
        cost=Cost(queries=_queries(effects), seconds=time.monotonic() - started),
        measurements=measurements,
        caveats=caveats,
        curves=[_curve(check.id, attack.card.name, effects, n)],
        exhibits=_exhibits(main, case),
        params=_params(attack, fraction),
        facts=_facts(main, effects[0.0], found, fraction, case),
    )
    return Outcome(attempt, {"rows": main.poison.rows})


def _queries(effects: dict[float, Effect]) -> int:
    return sum(len(e.poison.data.y_test) + (e.success[1] if e.success else 0) for e in effects.values())


def _params(attack: Any, fraction: float | None = None) -> dict[str, Any]:
    values = {name: getattr(attack, name) for name in attack.__dataclass_fields__}
    shown = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    return shown if fraction is None else {**shown, "fraction": fraction}


def _facts(main: Effect, twin: Effect, found: Suspicion, fraction: float, case: Case) -> dict[str, Any]:
    n, poison = len(case.data.y_test), main.poison
    planted = _planted(poison)
    facts: dict[str, Any] = {
        "poisoned_rows": len(poison.rows),
        "training_rows": len(poison.data.y_train),
        "fraction": fraction,
        "clean_twin_accuracy": twin.right / n,
        "accuracy_lost": (twin.right - main.right) / n,
        "detection_tpr": float(found.flagged[planted].mean()) if planted.any() else None,
        "detection_threshold": found.threshold,
        "detection_calibration_rows": found.clean,
    }
    if poison.trigger is not None and main.success is not None and twin.success is not None:
        clean = case.data.x_test
        change = (poison.trigger(clean) - clean).flatten(1)
        facts |= {
            "wanted": poison.wanted,
            "success_without_poison": twin.success[0] / twin.success[1] if twin.success[1] else None,
            "trigger_l0": float((change != 0).sum(1).float().mean()),
            "trigger_l2": float(change.norm(dim=1).mean()),
            "trigger_linf": float(change.abs().amax()),
        }
    return facts


def _caveats(main: Effect, found: Suspicion, fraction: float, case: Case) -> list[str]:
    caveats = ["One training seed: another seed moves the rates by more than the interval of the test rows."]
    wanted = round(fraction * len(case.data.y_train))
    if len(main.poison.rows) < wanted:
        caveats.append(
            f"Only {len(main.poison.rows)} of {wanted} rows could be poisoned: there are no more candidates."
        )
    if main.success is not None and main.success[1] == 0:
        caveats.append("Every test row is of the wanted class: there is nothing that the trigger could switch.")
    return caveats + _calibration_caveats(found)


def _twin_caveats(twin: Effect) -> list[str]:
    hits, n = twin.success or (0, 0)
    if n == 0 or hits / n < 0.1:
        return []
    return [f"The trigger brings about the class in {hits / n:.0%} of rows without any poison: it is no pure backdoor."]


def _calibration_caveats(found: Suspicion) -> list[str]:
    if found.clean:
        return ["The audit holds the test rows to be clean and of the same kind as the training rows."]
    return ["Too few test rows to calibrate the audit on: its threshold extrapolates the tail of the training rows."]


def _curve(id: str, name: str, effects: dict[float, Effect], n: int) -> Curve:
    order = sorted(effects)
    lines = [_series("accuracy on clean inputs", order, [(effects[r].right, n) for r in order])]
    successes = [s for r in order if (s := effects[r].success) is not None and s[1] > 0]
    if len(successes) == len(order):
        lines.append(_series("success of the trigger", order, successes))
    return Curve(
        id=f"{id}.rates",
        title=f"{name}: what a share of poisoned training rows does",
        x_label="share of poisoned training rows",
        y_label="rate",
        series=lines,
        reading="At 0 stands the clean twin. A backdoor is dangerous where its success rises while the accuracy stays.",
    )


def _series(label: str, x: list[float], counts: list[tuple[int, int]]) -> Series:
    bounds = [clopper_pearson(*c) for c in counts]
    return Series(
        label=label, x=x, y=[k / n for k, n in counts], low=[b[0] for b in bounds], high=[b[1] for b in bounds]
    )


def _exhibits(main: Effect, case: Case) -> list[Exhibit]:
    """Triggered test rows with input gradients of the wanted class: red is what speaks for it."""
    poison = main.poison
    if poison.trigger is None or poison.wanted is None:
        return []
    rows = (case.data.y_test != poison.wanted).nonzero().flatten()[:SHOWN]
    if len(rows) == 0:
        return []
    clean = case.data.x_test[rows]
    changed = poison.trigger(clean)
    before, after = (_slope(main.model, x, poison.wanted) for x in (clean, changed))
    answers = zip(labels(main.model, clean).tolist(), labels(main.model, changed).tolist(), strict=True)
    captions = [f"poisoned model: {_name(case, b)}, with the trigger {_name(case, a)}" for b, a in answers]
    return [
        case.modality.exhibit(clean[one], changed[one], before[one], after[one], [captions[i]], case.domain)
        for i, one in enumerate(slice(i, i + 1) for i in range(len(rows)))
    ]


def _name(case: Case, label: int) -> str:
    return case.domain.label_names[label] if case.domain.label_names else str(label)


def _slope(model: Target, x: Tensor, wanted: int) -> Tensor:
    """Input times input gradient of the wanted class's score; zeros where the model has no gradients."""
    if Access.GRADIENTS not in model.offers:
        return torch.zeros_like(x)
    leaf = x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        return input_gradient(model.forward(leaf).values[:, wanted], leaf) * x


def _examine_audit(audit: Any, check: Check, case: Case) -> Outcome:
    """The user's own training data, and three planted poisons that show what the audit would have found."""
    started, fraction = time.monotonic(), _fraction(check)
    case.progress(0, 1 + len(PLANTED), "examining the training data")
    own: Suspicion = _run(audit, case, case.data)
    planted: dict[str, tuple[Poison, Suspicion]] = {}
    for done, name in enumerate(PLANTED):
        case.check_time()
        case.progress(1 + done, 1 + len(PLANTED), f"planting {name.partition('.')[2]}")
        poison = ATTACKS.load(name)()(_scene(case, fraction), Rng(case.seed_for(name), len(case.data.y_train)))
        planted[name] = (poison, _run(audit, case, poison.data))
    case.progress(1, 1)
    attempt = Attempt(
        check=check.id,
        threat=check.threat.id,
        state="assessed",
        cost=Cost(seconds=time.monotonic() - started),
        measurements=_detection(list(planted.values()), own),
        caveats=[
            "The false-alarm rate counts every flagged row of the data as given as a false alarm: an upper bound where "
            "the data are poisoned already.",
            "The detection AUC is the lowest of the planted poisons; poison made to evade these detectors is harder.",
            *_calibration_caveats(own),
        ],
        exhibits=[_suspects(own, case)],
        params=_params(audit),
        facts={**_own_facts(own, audit), "planted": {name: _power(p, s) for name, (p, s) in planted.items()}},
    )
    return Outcome(attempt, {"scores": torch.from_numpy(own.scores)})


def _run(audit: Any, case: Case, data: Any) -> Suspicion:
    scene = replace(_scene(case, 0.0), data=data)
    found: Suspicion = audit(scene, Rng(case.seed_for(audit.card.id), len(data.y_train)))
    return found


def _suspicion(poison: Poison, case: Case) -> Suspicion:
    return _run(DataAudit(), case, poison.data)


def _clean_suspicion(case: Case) -> Suspicion:
    found: Suspicion = case.share("poisoning.audit", lambda: _run(DataAudit(), case, case.data))
    return found


def _planted(poison: Poison) -> np.ndarray:
    planted = np.zeros(len(poison.data.y_train), dtype=bool)
    planted[poison.rows.numpy()] = True
    return planted


def _power(poison: Poison, found: Suspicion) -> dict[str, Any]:
    planted = _planted(poison)
    return {
        "rows": int(planted.sum()),
        "auc": auc(found.scores, planted) if planted.any() else None,
        "tpr": float(found.flagged[planted].mean()) if planted.any() else None,
        "fpr": float(found.flagged[~planted].mean()) if not planted.all() else None,
        "auc_by_detector": {k: auc(v, planted) for k, v in found.detectors.items()} if planted.any() else {},
    }


def _detection(planted: list[tuple[Poison, Suspicion]], clean: Suspicion) -> list[Measurement]:
    """The lowest AUC of the poisons with its interval, and false alarms on the data as given."""
    known = [(found.scores, _planted(poison)) for poison, found in planted if len(poison.rows)]
    alarms = rate("poisoning.detection_fpr_clean", int(clean.flagged.sum()), len(clean.scores))
    if not known:
        return [Measurement(name="poisoning.detection_auc", value=None, n=0, method="nothing assessed"), alarms]
    scores, positive = min(known, key=lambda pair: auc(*pair))
    low, high = delong(scores, positive)
    area = Measurement(
        name="poisoning.detection_auc",
        value=auc(scores, positive),
        low=low,
        high=high,
        n=len(scores),
        unit="auc",
        method="DeLong 95 %",
    )
    return [area, alarms]


def delong(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """95 % interval of the area under the curve by placement values (DeLong, DeLong, Clarke-Pearson 1988).

    With no spread at all (a perfect separation) the lower end is the exact binomial one for as many successes as the
    smaller group has rows.
    """
    hits, rest = np.sort(scores[positive]), np.sort(scores[~positive])

    def placed(values: np.ndarray, among: np.ndarray) -> np.ndarray:
        below, upto = (np.searchsorted(among, values, side=side) for side in ("left", "right"))
        return (below + upto) / 2 / len(among)

    mine, theirs = placed(hits, rest), placed(rest, hits)
    area = float(mine.mean())
    variance = sum(float(v.var(ddof=1)) / len(v) for v in (mine, theirs) if len(v) > 1)
    if variance == 0:
        least = clopper_pearson(min(len(hits), len(rest)), min(len(hits), len(rest)))[0]
        return (least, area) if area == 1 else (area, area)
    spread = 1.959964 * variance**0.5
    return max(0.0, area - spread), min(1.0, area + spread)


def _own_facts(own: Suspicion, audit: Any) -> dict[str, Any]:
    flagged = np.flatnonzero(own.flagged)
    n, clean = len(own.scores), own.clean
    allowed = int(np.floor(audit.alarms * (clean + 1) + 1e-9)) if clean else 0
    # given the calibration rows, the conformal false-alarm rate is beta distributed (Vovk 2012)
    most = float(beta.ppf(0.975, allowed, clean + 1 - allowed)) if allowed else 2 * audit.alarms
    low = clopper_pearson(len(flagged), n)[0]
    worst = flagged[np.argsort(-own.scores[flagged], kind="stable")]
    return {
        "suspicious_rows": worst[:LISTED].tolist(),
        "suspicious_count": len(flagged),
        "suspicious_rate": len(flagged) / n,
        "expected_false_alarms": audit.alarms * n,
        "expected_rate_at_most": most,
        "more_than_expected": bool(low > most),
        "calibration_rows": clean,
        "spectral_on": own.features,
    }


def _suspects(own: Suspicion, case: Case) -> Exhibit:
    """The most suspicious rows with the scores of every detector."""
    order = np.argsort(-own.scores, kind="stable")[:10]
    names = list(own.detectors)
    rows = [
        [str(i), _name(case, int(case.data.y_train[i])), "yes" if own.flagged[i] else "no"]
        + [f"{own.detectors[name][i]:.3g}" for name in names]
        for i in order
    ]
    return Exhibit(title="The most suspicious training rows", columns=["row", "label", "flagged", *names], rows=rows)
