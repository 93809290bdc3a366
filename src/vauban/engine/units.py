"""Do model, data and declared range speak of the same units?"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vauban.core.data import Data
from vauban.core.target import Domain, Outputs, Target
from vauban.engine.batching import answers
from vauban.engine.measure import clopper_pearson
from vauban.schema.errors import VaubanError, WrongUnits

POOR, GAIN = 0.25, 0.5
"""A score less than a quarter of the way from chance to perfect is poor; one that a rescaling lifts by half the way has the wrong units."""
TINY = 0.01
"""Data that use less than this share of the declared range are in other units."""


def check_bounds(data: Data, declared: Domain) -> None:
    """Raise WrongUnits where inputs lie outside the declared range, or use next to nothing of it."""
    low, high = declared.low, declared.high
    if low is None or high is None:
        return
    parts = [part for part in (data.x_train, data.x_test) if part is not None]
    least, most = (torch.as_tensor(side, dtype=torch.float64) for side in (low, high))
    slack = 1e-5 * torch.where((most - least).isfinite(), most - least, 0.0)
    outside = sum(int(((x < least - slack) | (x > most + slack)).flatten(1).any(1).sum()) for x in parts)
    seen_low, seen_high = min(float(x.min()) for x in parts), max(float(x.max()) for x in parts)
    said = f"{float(least.min()):g} to {float(most.max()):g}"
    if outside:
        raise WrongUnits(
            f"The data lie between {seen_low:g} and {seen_high:g}, but the declared range of inputs is {said} "
            f"({outside} rows lie outside): rescale the data to the model's units, or declare their range with bounds."
        )
    span = float((most - least).max())
    if span < float("inf") and seen_high - seen_low < TINY * span:
        raise WrongUnits(
            f"The data lie between {seen_low:g} and {seen_high:g}, less than {TINY:.0%} of the declared range {said}: "
            "rescale the data to the model's units, or declare their range with bounds."
        )


def check_scale(target: Target, x: Tensor, y: Tensor, outputs: Outputs) -> None:
    """Raise WrongUnits where the model is near chance on `x` and good on `x` in other units."""
    lowest, now = chance(outputs, y), max(score(outputs, y), 0.0)
    if now >= lowest + POOR * (1 - lowest):
        return
    tried = {words: _score_of(target, rescale(x), y) for words, rescale in RESCALINGS.items()}
    words, then = max(tried.items(), key=lambda item: item[1])
    if then >= max(now, lowest) + GAIN * (1 - lowest) and _surely(now, then, outputs, len(y)):
        what = "explained variance" if outputs.kind == "values" else "accuracy"
        raise WrongUnits(
            f"The model's {what} is {now:.1%} on these inputs, but {then:.1%} on the same inputs {words}: the data "
            "are not in the model's units; give them prepared as in training, or put the step into the model."
        )


def _surely(now: float, then: float, outputs: Outputs, n: int) -> bool:
    """Not by the luck of few rows: the intervals of the two accuracies do not meet."""
    if outputs.kind == "values":
        return True
    return clopper_pearson(round(then * n), n)[0] > clopper_pearson(round(now * n), n)[1]


def _score_of(target: Target, x: Tensor, y: Tensor) -> float:
    """0 where the model does not take such inputs."""
    try:
        return score(answers(target, x), y)
    except (VaubanError, RuntimeError, ValueError):
        return 0.0


def score(outputs: Outputs, y: Tensor) -> float:
    """Accuracy; explained variance (R squared) in a regression."""
    if outputs.kind != "values":
        return float((outputs.labels.cpu() == y).double().mean())
    truth = y.double()
    spread = (truth - truth.mean()).square().sum().clamp_min(1e-30)
    return float(1 - (outputs.values.cpu().double() - truth).square().sum() / spread)


def chance(outputs: Outputs, y: Tensor) -> float:
    """What the best constant answer scores."""
    return 0.0 if outputs.kind == "values" else float(y.unique(return_counts=True)[1].max()) / len(y)


def _standardised(x: Tensor) -> Tensor:
    """Mean 0 and deviation 1: of each channel in pictures, of each feature otherwise."""
    axes = (0, *range(2, x.dim()))
    spread = x.std(axes, keepdim=True, unbiased=False)
    return (x - x.mean(axes, keepdim=True)) / torch.where(spread > 0, spread, 1.0)


RESCALINGS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "divided by 255": lambda x: x / 255,
    "multiplied by 255": lambda x: x * 255,
    "mapped from [0, 1] to [-1, 1]": lambda x: 2 * x - 1,
    "mapped from [-1, 1] to [0, 1]": lambda x: (x + 1) / 2,
    "standardised (mean 0, deviation 1)": _standardised,
}
