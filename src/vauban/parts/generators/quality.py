"""How good generated rows are: whether they can be learnt from, whether they are copies, whether their columns are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import fisher_exact, ks_2samp
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor

MOST = 1000
"""Rows of each kind that distances are measured of, at most."""
NEAR = 0.05
"""Share of the test rows that counts as suspiciously near to a training row."""
SURE = 0.01
"""Chance of a false alarm, at most, that copies are told at."""
TREES = 60
ROUNDING = 1e-5
"""Distance below which two rows are the same, in deviations of the columns."""


def forest_right(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, seed: int) -> Tensor:
    """Which test rows `[k]` bool a random forest answers right that was trained on `x` `[n, ...]`, `y` `[n]`."""
    forest = RandomForestClassifier(TREES, random_state=seed % 2**32).fit(x.flatten(1).numpy(), y.numpy())
    return torch.from_numpy(forest.predict(x_test.flatten(1).numpy())) == y_test


@dataclass(frozen=True)
class Copies:
    """Whether rows are copies of training rows, by the distance to the nearest of these over that to the second nearest.

    A copy lies on one training row and away from the next; a new row of the same kind is as far from one as test rows are.
    """

    distance: float
    """Median distance of rows to the nearest training row, over that of test rows: 1 where alike, 0 for copies."""
    near: float
    """Share of rows whose ratio of distances is below what one in twenty test rows has: 0.05 where alike, 1 for copies."""
    expected: float
    """The share of the test rows themselves."""
    copied: bool
    """Whether `near` is more than chance (Fisher's exact test, one-sided, 1 %)."""


def copies(made: Tensor, train: Tensor, test: Tensor) -> Copies:
    """Compares rows `made` `[m, ...]` with rows that were kept back, by their nearest training rows; columns count in deviations.

    Of `made` and `test` the first 1,000 are looked at. `train` must hold two rows at least.
    """
    flat = train.flatten(1).double()
    size = flat.std(0)
    scale = torch.where(size > 0, size, 1.0)
    near_made, near_test = (_nearest(rows[:MOST].flatten(1).double() / scale, flat / scale) for rows in (made, test))
    ratio_made, ratio_test = (_ratio(near[:, 0], near[:, 1]) for near in (near_made, near_test))
    bar = torch.quantile(ratio_test, NEAR)
    few, usual = int((ratio_made < bar).sum()), int((ratio_test < bar).sum())
    table = [[few, len(ratio_made) - few], [usual, len(ratio_test) - usual]]
    return Copies(
        float(_ratio(near_made[:, 0].median(), near_test[:, 0].median())),
        few / len(ratio_made),
        usual / len(ratio_test),
        bool(fisher_exact(table, alternative="greater").pvalue < SURE),
    )


def _nearest(rows: Tensor, train: Tensor) -> Tensor:
    """Distances `[m, 2]` to the two nearest training rows; what is no more than rounding is 0."""
    found = torch.cat([torch.cdist(part, train).topk(2, largest=False).values for part in rows.split(100)])
    return torch.where(found > ROUNDING, found, 0.0)


def _ratio(one: Tensor, two: Tensor) -> Tensor:
    """1 where both are 0: a row that occurs twice is nobody's copy."""
    return torch.where(two > 0, one / two.clamp_min(1e-300), 1.0)


def column_distances(made: np.ndarray, real: np.ndarray, discrete: Sequence[Sequence[int]]) -> np.ndarray:
    """By column of tables `[m, d]`, `[k, d]`, 0 to 1: total variation for discrete ones (groups once), Kolmogorov-Smirnov for others."""
    taken = {i for group in discrete for i in group}
    found = [_variation(made[:, list(group)], real[:, list(group)]) for group in discrete]
    found += [float(ks_2samp(made[:, i], real[:, i]).statistic) for i in range(made.shape[1]) if i not in taken]
    return np.array(found)


def _variation(made: np.ndarray, real: np.ndarray) -> float:
    _, which = np.unique(np.concatenate([made, real]), axis=0, return_inverse=True)
    which = which.reshape(-1)
    shares = [
        np.bincount(part, minlength=which.max() + 1) / len(part) for part in (which[: len(made)], which[len(made) :])
    ]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def correlation_difference(made: np.ndarray, real: np.ndarray) -> float:
    """Mean absolute difference of the correlations of all pairs of columns, 0 to 2; those of constant columns are 0."""
    one, two = _correlations(made), _correlations(real)
    pairs = np.triu_indices(made.shape[1], 1)
    return float(np.abs(one - two)[pairs].mean()) if len(pairs[0]) else 0.0


def _correlations(x: np.ndarray) -> np.ndarray:
    size = x.std(0)
    centred = (x - x.mean(0)) / np.where(size > 1e-12, size, np.inf)
    found: np.ndarray = centred.T @ centred / len(x)
    return found
