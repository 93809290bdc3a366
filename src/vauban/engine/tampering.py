"""Examine tampering: how few flipped bits break the model, beside the same number flipped at random."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vauban.attacks.catalog import ATTACKS
from vauban.core.attack import Patch, TamperScene
from vauban.core.registry import configure
from vauban.core.rng import Rng
from vauban.core.target import Target, TorchBacked
from vauban.engine.case import Case, Check, Outcome
from vauban.engine.measure import clopper_pearson
from vauban.parts.quantize import QuantisedWeights
from vauban.schema.errors import BadData, BadTarget
from vauban.schema.log import Attempt, Cost, Curve, Measurement, Series

EDITS = 50
"""Flips allowed where the threat model names no number."""
SEARCHED = 256
"""Rows that the search looks at."""
DRAWS = {"smoke": 5, "standard": 20, "deep": 50}
"""Random controls."""


@dataclass(frozen=True)
class _Control:
    """Accuracy of each random draw after each number of flips: `[draws, points]`."""

    points: list[int]
    accuracy: np.ndarray


def examine(check: Check, case: Case) -> Outcome:
    """Search on rows that are not used to measure, count on the test rows, and flip as many bits at random."""
    started = time.monotonic()
    attack_class: Any = ATTACKS.load(check.id)
    profile = getattr(attack_class, "profiles", {}).get(case.profile, {})
    attack = configure(attack_class, {**profile, **check.settings})
    if not isinstance(case.target, TorchBacked):
        raise BadTarget("The weights of this target cannot be written: bit flips need an nn.Module.")
    target: Any = case.target
    x, y, unseen_x, unseen_y, source = _split(case)
    edits = check.threat.budget.weight_edits or EDITS
    done = 0

    def evaluate(module: nn.Module) -> float:
        nonlocal done
        case.check_time()
        done += 1
        case.progress(min(done, edits), edits, "searching bits")
        return _accuracy(target.around(module, "+flipped"), unseen_x, unseen_y)

    scene = TamperScene(target=case.target, x=x, y=y, edits=edits, evaluate=evaluate)
    patch: Patch = attack(scene, Rng(case.seed_for(check.id), len(x)))
    searched: list[float] = patch.facts["unseen_accuracy"]
    control = _control(target, len(patch.flips), unseen_x, unseen_y, case)
    collapsed = searched[-1] < patch.facts["level"]
    plain = _accuracy(case.target, unseen_x, unseen_y)
    attempt = Attempt(
        check=check.id,
        threat=check.threat.id,
        state="assessed",
        cost=_cost(attack, patch, len(x), control, len(unseen_x), time.monotonic() - started),
        measurements=[_flips(patch, collapsed, len(unseen_y)), _random(control)],
        caveats=_caveats(patch, collapsed, searched, plain),
        curves=[_curve(searched, control, len(unseen_y))],
        params={name: getattr(attack, name) for name in attack.__dataclass_fields__} | {"edits": edits},
        facts=_facts(patch, searched, plain, source, len(x)),
    )
    return Outcome(attempt, {"accuracy": torch.tensor(searched)})


def _split(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor, str]:
    """Rows to search on and rows to measure on: training rows where there are some, otherwise half of the test rows."""
    data = case.data
    if data.has_train:
        pick = np.random.default_rng(case.seed_for("tampering", "rows")).permutation(len(data.x_train))[:SEARCHED]
        rows = torch.from_numpy(np.sort(pick))
        return data.x_train[rows], data.y_train[rows], data.x_test, data.y_test, "training rows"
    if len(data.x_test) < 2:
        raise BadData("Bit flips need at least two test rows: one half to search on, the other to measure on.")
    order = torch.from_numpy(np.random.default_rng(case.seed_for("tampering", "rows")).permutation(len(data.x_test)))
    half = len(order) // 2
    seen, unseen = order[:half][:SEARCHED].sort().values, order[half:].sort().values
    return data.x_test[seen], data.y_test[seen], data.x_test[unseen], data.y_test[unseen], "one half of the test rows"


def _accuracy(target: Target, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        right = sum(int((target.forward(a).labels == b).sum()) for a, b in zip(x.split(512), y.split(512), strict=True))
    return right / len(y)


def _control(target: Any, flips: int, x: Tensor, y: Tensor, case: Case) -> _Control:
    """The same number of flips, anywhere; a draw's flips grow, so that it is a path like the searched one."""
    points = sorted({0, *(round(flips * part / 4) for part in range(1, 5))})
    draws = DRAWS.get(case.profile, DRAWS["standard"])
    accuracy = np.empty((draws, len(points)))
    for draw in range(draws):
        case.check_time()
        for column, count in enumerate(points):
            module = target.clone()
            generator = np.random.default_rng(case.seed_for("tampering", "random", draw))
            QuantisedWeights(module).flip_at_random(count, generator)
            accuracy[draw, column] = _accuracy(target.around(module, "+random"), x, y)
    return _Control(points, accuracy)


def _flips(patch: Patch, collapsed: bool, n: int) -> Measurement:
    return Measurement(
        name="tampering.flips_to_collapse",
        value=len(patch.flips) if collapsed else None,
        n=n,
        unit="flips",
        method=f"flips until accuracy on {n} unseen rows is under {patch.facts['level']:.0%}",
    )


def _random(control: _Control) -> Measurement:
    last = control.accuracy[:, -1]
    low, high = np.quantile(last, [0.025, 0.975])
    return Measurement(
        name="tampering.random_control_accuracy",
        value=float(last.mean()),
        low=float(low),
        high=float(high),
        n=len(last),
        method=f"mean and 95 % range over {len(last)} draws of {control.points[-1]} random flips",
    )


def _cost(attack: Any, patch: Patch, rows: int, control: _Control, unseen: int, seconds: float) -> Cost:
    rounds = len(patch.flips)
    tried = rounds * (attack.candidates + 2) * rows + (rounds + 1 + control.accuracy.size) * unseen
    return Cost(queries=tried, gradients=rounds * rows, seconds=seconds)


def _caveats(patch: Patch, collapsed: bool, searched: Sequence[float], plain: float) -> list[str]:
    caveats = [
        "The weights were quantised to int8 for this test (one scale a tensor); a float file has more dangerous bits still."
    ]
    if not patch.flips and collapsed:
        caveats.append("The model was under the level of collapse before any flip.")
    if not collapsed:
        caveats.append(
            f"Not collapsed after {len(patch.flips)} flips: accuracy is {searched[-1]:.1%}. "
            "More flips, or another search, may still do it."
        )
    if plain - searched[0] > 0.02:
        caveats.append(f"Quantising alone costs {plain - searched[0]:.1%} accuracy: the flips are not all of the loss.")
    return caveats


def _curve(searched: Sequence[float], control: _Control, n: int) -> Curve:
    bounds = [clopper_pearson(round(a * n), n) for a in searched]
    low, high = np.quantile(control.accuracy, [0.025, 0.975], axis=0)
    return Curve(
        id="tampering.flips",
        title="Accuracy against the number of flipped bits",
        x_label="flipped bits",
        y_label="accuracy",
        series=[
            Series(
                label="searched",
                x=[float(i) for i in range(len(searched))],
                y=list(searched),
                low=[b[0] for b in bounds],
                high=[b[1] for b in bounds],
            ),
            Series(
                label="random",
                x=[float(p) for p in control.points],
                y=control.accuracy.mean(0).tolist(),
                low=low.tolist(),
                high=high.tolist(),
            ),
        ],
        reading="Random faults hardly matter; chosen ones do. Only a comparison with a sealed copy shows them.",
    )


def _facts(patch: Patch, searched: Sequence[float], plain: float, source: str, rows: int) -> dict[str, Any]:
    return {
        "flips": [{**asdict(flip), "index": list(flip.index)} for flip in patch.flips],
        "float_accuracy": plain,
        "int8_accuracy": searched[0],
        "accuracy_after": searched[-1],
        "search_accuracy": list(patch.accuracy),
        "level": patch.facts["level"],
        "bits_in_all": patch.facts["bits"],
        "searched_on": f"{rows} {source}",
        "by_bit": dict(sorted(Counter(str(f.bit) for f in patch.flips).items())),
        "by_tensor": dict(Counter(f.tensor for f in patch.flips)),
    }
