"""Columns of a table as a network sees them, and back."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture
from torch import Tensor

FEW = 10
"""A column of at most so many values is taken as discrete, where each value comes twice on average."""
MODES, LIGHTEST, SPREAD = 10, 0.005, 4.0
"""Modes of a continuous column at most; the weight below which one is dropped; deviations that a mode's numbers cover."""
SPIKE = 0.1
"""Share of the rows from which a single value of a continuous column is a mode of its own."""
ENOUGH = 2000
"""Rows that modes are found on, at most."""
FINEST = 100_000
"""Steps of a grid at most, beyond which a column is taken for real numbers."""


class Column(Protocol):
    """One column, or several that go together, of a table `[n, d]`."""

    @property
    def at(self) -> Sequence[int]:
        """Their numbers in the table."""
        ...

    @property
    def width(self) -> int:
        """Numbers that they become."""
        ...

    @property
    def squashed(self) -> int:
        """How many of these, the first, are real numbers in about [-1, 1]; the rest say one of several."""
        ...

    def encode(self, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """float32 `[n, width]` from values `[n, len(at)]`."""
        ...

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """float64 `[n, len(at)]` from codes `[n, width]`."""
        ...


@dataclass(frozen=True, eq=False)
class Levels:
    """One of a few values; or several columns of which one alone is set, taken together."""

    at: tuple[int, ...]
    values: np.ndarray
    """The levels `[k, len(at)]`."""

    @property
    def width(self) -> int:
        return len(self.values)

    squashed = 0

    @classmethod
    def of(cls, at: tuple[int, ...], x: np.ndarray) -> Levels:
        return cls(at, np.unique(x[:, list(at)], axis=0))

    def which(self, values: np.ndarray) -> np.ndarray:
        """The level `[n]` of each row; the nearest, where it is none of them."""
        apart = np.abs(values[:, None, :] - self.values[None]).sum(2)
        found: np.ndarray = apart.argmin(1)
        return found

    def encode(self, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.eye(self.width, dtype=np.float32)[self.which(values)]

    def decode(self, codes: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.values[codes.argmax(1)]
        return found


@dataclass(frozen=True, eq=False)
class Modes:
    """A real number: which mode of its column it belongs to, and where in the mode it lies.

    Source: Xu et al. 2019 (arXiv:1907.00503, section 4.2).
    Departures: numbers beyond four deviations of their mode are not cut off, so that nothing is lost on the way and back; no
    mode is narrower than a thousandth of the column's range; a value that a tenth of the rows share is a mode of its own; values are
    kept on the column's grid, where it has one, and within its range.
    """

    at: tuple[int, ...]
    spikes: np.ndarray
    """Values that are modes of their own; they come before the others."""
    means: np.ndarray
    deviations: np.ndarray
    weights: np.ndarray
    low: float
    high: float
    step: float
    """Of the grid that all values lie on, from `low`; 0 where there is none."""

    @property
    def width(self) -> int:
        return 1 + len(self.spikes) + len(self.means)

    squashed = 1

    @classmethod
    def of(cls, at: tuple[int, ...], x: np.ndarray, rng: np.random.Generator) -> Modes:
        """Found by a mixture of Gaussians that keeps no more modes than it needs."""
        values = x[:, at[0]]
        low, high = float(values.min()), float(values.max())
        levels, counts = np.unique(values, return_counts=True)
        spikes = levels[counts >= SPIKE * len(values)]
        scaled = (values[~np.isin(values, spikes)] - low) / (high - low)
        some = scaled if len(scaled) <= ENOUGH else rng.choice(scaled, ENOUGH, replace=False)
        mixture = BayesianGaussianMixture(
            n_components=min(MODES, len(np.unique(some))), weight_concentration_prior_type="dirichlet_process",
            weight_concentration_prior=1e-3, max_iter=100, random_state=int(rng.integers(2**31)),
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(some[:, None])
        kept = mixture.weights_ > LIGHTEST
        means, deviations = mixture.means_[kept, 0], np.sqrt(mixture.covariances_[kept, 0, 0])
        weights = mixture.weights_[kept] / mixture.weights_[kept].sum()
        wide = high - low
        return cls(at, spikes, low + means * wide, deviations * wide, weights, low, high, grid(values))

    def encode(self, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The mode is drawn by how likely it is for the value."""
        apart = (values - self.means) / self.deviations
        heights = np.log(self.weights / self.deviations) - apart**2 / 2
        drawn = (heights + rng.gumbel(size=heights.shape)).argmax(1)
        place = np.take_along_axis(apart, drawn[:, None], 1) / SPREAD
        same = np.concatenate([values == self.spikes, np.zeros((len(values), 1), dtype=bool)], 1)
        alone = np.asarray(same.any(1))[:, None]
        chosen = np.where(alone[:, 0], same.argmax(1), len(self.spikes) + drawn)
        return np.concatenate([np.where(alone, 0, place), np.eye(self.width - 1)[chosen]], 1).astype(np.float32)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        chosen = codes[:, 1:].argmax(1)
        means = np.concatenate([self.spikes, self.means])[chosen]
        deviations = np.concatenate([np.zeros(len(self.spikes)), self.deviations])[chosen]
        values = means + SPREAD * deviations * codes[:, 0].astype(np.float64)
        if self.step:
            values = self.low + np.round((values - self.low) / self.step) * self.step
        return np.clip(values, self.low, self.high)[:, None]


def grid(values: np.ndarray) -> float:
    """The step of a regular grid, from the smallest value on, that all values lie on; 0 where none is found.

    Tried are the smallest gap between two values and, where all are whole numbers, 1.
    """
    levels = np.unique(values.astype(np.float64))
    if len(levels) < 2:
        return 0.0
    width = levels[-1] - levels[0]
    for gap in (float(np.diff(levels).min()), 1.0):
        count = round(width / gap)
        places = (levels - levels[0]) / width * count
        if 0 < count <= FINEST and np.abs(places - np.round(places)).max() < 0.01:
            return float(width / count)
    return 0.0


def columns(x: np.ndarray, rng: np.random.Generator) -> list[Column]:
    """How the table `[n, d]` is taken apart: neighbours of which exactly one is 1 in every row, few values, real numbers."""
    found: list[Column] = []
    at = 0
    while at < x.shape[1]:
        many = one_of(x, at)
        group = tuple(range(at, at + many))
        few = len(np.unique(x[:, at])) <= min(FEW, max(2, len(x) // 2))
        found.append(Levels.of(group, x) if many > 1 or few else Modes.of(group, x, rng))
        at += many
    return found


def one_of(x: np.ndarray, at: int) -> int:
    """How many columns from `at` on are 0 but for a single 1 in every row; 1 where there are no such."""
    total = np.zeros(len(x))
    for end in range(at, x.shape[1]):
        if not np.isin(x[:, end], (0.0, 1.0)).all():
            break
        total = total + x[:, end]
        if total.max() > 1:
            break
        if total.min() == 1:
            return end - at + 1
    return 1


@dataclass(frozen=True, eq=False)
class Layout:
    """All columns of a table, and where each stands among the codes."""

    columns: Sequence[Column]
    features: int

    @property
    def width(self) -> int:
        return sum(column.width for column in self.columns)

    def encode(self, x: np.ndarray, rng: np.random.Generator) -> Tensor:
        """float32 `[n, width]` from rows `[n, d]`."""
        return torch.from_numpy(np.concatenate([c.encode(x[:, list(c.at)], rng) for c in self.columns], 1))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """float64 `[n, d]`."""
        x = np.empty((len(codes), self.features))
        start = 0
        for column in self.columns:
            x[:, list(column.at)] = column.decode(codes[:, start : start + column.width])
            start += column.width
        return x
