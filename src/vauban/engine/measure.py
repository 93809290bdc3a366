"""Numbers with intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import beta

from vauban.parts.roc import auc, auc_deviation
from vauban.schema.log import Measurement


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact binomial interval (Clopper and Pearson 1934) of a rate; raises ValueError for n = 0."""
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"a rate needs 0 <= successes <= n and n > 0, got {successes} of {n}")
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes == n else float(beta.ppf(1 - tail, successes + 1, n - successes))
    return low, high


def rate(name: str, successes: int, n: int) -> Measurement:
    """A rate with its exact interval; None where nothing was assessed."""
    if n == 0:
        return Measurement(name=name, value=None, n=0, method="nothing assessed")
    low, high = clopper_pearson(successes, n)
    return Measurement(name=name, value=successes / n, low=low, high=high, n=n, method="Clopper-Pearson 95 %")


def area(name: str, scores: np.ndarray, positive: np.ndarray) -> Measurement:
    """Area under the curve of scores `[n]` that tell `positive` `[n]` from the rest, with DeLong's interval.

    The interval is made for the logit of the area, so that it stays within 0 and 1. Where every positive lies above every negative
    (or the other way) nothing varies: it is then that of so many successes as the smaller side has rows, all or none.
    """
    value, count = auc(scores, positive), int(min(positive.sum(), (~positive).sum()))
    if count < 2:
        return Measurement(name=name, value=value if count else None, n=len(scores), unit="auc", method="too few rows")
    deviation = auc_deviation(scores, positive)
    if deviation == 0 or not 0 < value < 1:
        low, high = clopper_pearson(round(value * count), count)
    else:
        slope = 1.96 * deviation / (value * (1 - value))
        middle = np.log(value / (1 - value))
        low, high = (float(1 / (1 + np.exp(-end))) for end in (middle - slope, middle + slope))
    return Measurement(name=name, value=value, low=low, high=high, n=len(scores), unit="auc", method="DeLong 95 %")


def bootstrap(
    statistic: Callable[[np.ndarray], float], n: int, seed: int, draws: int = 1000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval (Efron 1979) of a statistic of row numbers `[n]`; draws whose statistic is NaN are left out."""
    generator = np.random.default_rng(seed)
    values = np.array([statistic(generator.integers(0, n, n)) for _ in range(draws)])
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return float("nan"), float("nan")
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def median(name: str, values: np.ndarray, unit: str, seed: int = 0) -> Measurement:
    """A median with its bootstrap interval; inf counts (a failure), and gives None where it is the median."""
    if len(values) == 0:
        return Measurement(name=name, value=None, n=0, unit=unit, method="nothing assessed")
    low, high = bootstrap(lambda rows: float(np.median(values[rows])), len(values), seed)
    middle = float(np.median(values))
    return Measurement(
        name=name,
        value=middle if np.isfinite(middle) else None,
        low=low if np.isfinite(low) else None,
        high=high if np.isfinite(high) else None,
        n=len(values),
        unit=unit,
        method="bootstrap 95 %",
    )
