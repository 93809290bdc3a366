"""What an evasion run says of itself: numbers, caveats, the curve of success against queries."""

from __future__ import annotations

import numpy as np
import torch

from vauban.core.goal import Goal
from vauban.engine.case import Case
from vauban.engine.evasion_run import Run
from vauban.engine.measure import median, rate
from vauban.parts.goals import Shift
from vauban.schema.log import Curve, Measurement, Series


def measurements(result: Run, unit: str, case: Case) -> list[Measurement]:
    letters = result.outcomes
    broken = np.array([i for i, letter in enumerate(letters) if letter == "b"], dtype=np.int64)
    right = sum(letter != "w" for letter in letters)
    looks = case.modality.looks(result.x[broken], case.data.x_test[broken], case.domain)
    return [
        rate("evasion.clean_accuracy", right, len(letters)),
        _robust(letters),
        *([rate("evasion.certified_accuracy", letters.count("c"), len(letters))] if result.proved else []),
        median("evasion.median_distance", result.distance.numpy()[broken], unit),
        median("evasion.queries_median", result.queries.numpy()[broken].astype(np.float64), "queries"),
        *(median(f"evasion.{name}_median", values.cpu().numpy(), "") for name, values in looks.items()),
    ]


def _robust(letters: str) -> Measurement:
    """The share that no attack broke; where time cut the attack short, only that it lies between two numbers."""
    held, late, n = sum(letter in "hc" for letter in letters), letters.count("u"), len(letters)
    if not late:
        return rate("evasion.robust_accuracy", held, n)
    low, high = held / n, (held + late) / n
    return Measurement(
        name="evasion.robust_accuracy", value=None, low=low, high=high, n=n, method=f"bounds: {late} undecided"
    )


def caveats(result: Run, case: Case, goal: Goal) -> list[str]:
    """What a reader of the numbers must know."""
    out: list[str] = []
    if isinstance(goal, Shift):
        out.append(
            f"a prediction counts as right where it lies within {goal.tolerance:.4g} of the true value: half a standard deviation of "
            "the labels, unless tolerance was set"
        )
    claimed = int(((result.verified.margin > 0) & ~result.verified.admissible & (result.clean_margin <= 0)).sum())
    if claimed:
        out.append(f"{claimed} claimed successes were rejected by the independent check")
    broken = torch.tensor([letter == "b" for letter in result.outcomes])
    if case.domain.refusal is not None or result.plan.shunned is not None:
        wrong = torch.tensor([letter == "w" for letter in result.outcomes])
        turned = int((wrong & (result.clean_margin <= 0).cpu()).sum())
        out.append(
            f"the model refuses {turned} of {len(wrong)} clean inputs (false alarms), which counts as no right answer; to be "
            "refused is no success of the attacker"
        )
    if case.domain.step is not None and broken.any():
        alive = int((result.verified.survives & broken).sum())
        out.append(
            f"{alive} of {int(broken.sum())} adversarial inputs survive rounding to the grid of {case.domain.step:.4g} on which inputs are stored"
        )
    return out


def query_curve(result: Run) -> list[Curve]:
    """Share of the correctly answered samples that are broken, against queries spent on each."""
    broken = np.array([letter == "b" for letter in result.outcomes])
    attacked = np.array([letter in "bh" for letter in result.outcomes])
    if not broken.any():
        return []
    used = np.sort(result.queries.numpy()[broken]).astype(float)
    most = float(result.queries.numpy()[attacked].max())
    grid = np.unique(np.round(np.geomspace(1, max(most, 2), 24)))
    share = [float((used <= g).sum() / attacked.sum()) for g in grid]
    curve = Curve(
        id="query_curve",
        title="Success against queries",
        x_label="queries a sample",
        y_label="share broken",
        x_scale="log",
        shape="steps",
        series=[Series(label="broken", x=[float(g) for g in grid], y=list(share))],
        reading=f"Half of the successes needed at most {np.median(used):.0f} queries.",
    )
    return [curve]
