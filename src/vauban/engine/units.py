"""Do model, data and declared range speak of the same units?"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vauban.core.data import Data
from vauban.core.target import Domain, Outputs, Target, TorchBacked
from vauban.engine.batching import answers
from vauban.engine.measure import clopper_pearson
from vauban.parts.softened import Entrance
from vauban.schema.errors import WrongUnits
from vauban.schema.log import Doubt

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
    except Exception:  # a user's model may raise anything on inputs that it was not made for
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


def scaling(target: Target, x: Tensor, y: Tensor, outputs: Outputs) -> Doubt:
    """Are inputs prepared twice, or not as they were for training? Where it is too little to refuse, it is told."""
    entered = _as_entered(target, x)
    before = (float(x.mean()), float(x.std()))
    doubled = entered is not None and _standard(*before) and not _standard(float(entered.mean()), float(entered.std()))
    now = max(score(outputs, y), 0.0)
    words, then = max(((w, _score_of(target, f(x), y)) for w, f in RESCALINGS.items()), key=lambda item: item[1])
    better = outputs.kind != "values" and _surely(now, then, outputs, len(y))
    texts = {
        (False, False): "The inputs are in the model's units.",
        (
            False,
            True,
        ): f"The model is right on {now:.1%} of these inputs, and on {then:.1%} of the same inputs {words}.",
    }
    twice = f"The data are standardised already (mean {before[0]:.2g}, deviation {before[1]:.2g}), and the model does it again."
    return Doubt(
        id="units",
        verdict="warn" if doubled or better else "pass",
        value=then - now,
        threshold=0.0,
        text=texts.get((doubled, better), twice),
        remedy="a radius means something else in other units: prepare inputs once, as in training, outside or inside",
    )


def _standard(mean: float, deviation: float) -> bool:
    return abs(mean) < 0.3 and 0.6 < deviation < 1.6


def _as_entered(target: Target, x: Tensor) -> Tensor | None:
    """What the model's own arithmetic makes of its inputs before the first layer; None where it does nothing to them."""
    if not isinstance(target, TorchBacked):
        return None
    answers(target, x[:1])  # at its first pass a target tries the module in several orders of memory
    with torch.no_grad(), Entrance(x[:64].shape) as mode:
        target.forward(x[:64])
    return mode.last


RESCALINGS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "divided by 255": lambda x: x / 255,
    "multiplied by 255": lambda x: x * 255,
    "mapped from [0, 1] to [-1, 1]": lambda x: 2 * x - 1,
    "mapped from [-1, 1] to [0, 1]": lambda x: (x + 1) / 2,
    "standardised (mean 0, deviation 1)": _standardised,
}
