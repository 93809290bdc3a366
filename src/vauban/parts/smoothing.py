"""Randomised smoothing: from counts of answers under Gaussian noise to a radius that holds.

The smoothed model answers with the class that the base model gives most often to x + N(0, sigma^2 I). If that class has
probability at least p > 1/2, no change shorter than sigma Phi^-1(p) in l2 alters the answer (Cohen, Rosenfeld and
Kolter 2019, arXiv:1902.02918, theorem 1). p is bounded from below by sampling, so that the radius is wrong with
probability at most alpha.

Limits: the theorem speaks of exact Gaussian noise and exact sums, sampling here of float32 ones (the gap is discussed
by Voracek and Hein 2023, arXiv:2206.05360). It says nothing of one finite vote, only of the vote without end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.special import betaincinv, ndtr, ndtri
from torch import Tensor

from vauban.core.rng import Rng, derive_seed
from vauban.core.target import Target
from vauban.parts.batching import micro_batch
from vauban.schema.errors import BadOption, NotOffered

SLACK = 1e-12
"""Bounds are moved outwards by this much, more than the inverse beta and normal functions err."""
ABSTAINED = -1
"""The class of a row for which none can be given."""
LAST_SHARE = 0.75
"""The part of alpha that is kept for the look after all draws."""
FAINT, DOUBTFUL = 0.05, 0.005
"""Give up when the last look would succeed with this probability, at a rate that is exceeded with that one."""


def lower_bound(successes: Any, n: Any, alpha: Any) -> np.ndarray:
    """One-sided Clopper-Pearson: below the true rate with probability at least 1 - alpha; float64, elementwise."""
    k, n = np.broadcast_arrays(np.asarray(successes, dtype=np.float64), np.asarray(n, dtype=np.float64))
    _sensible(k, n, alpha)
    found = betaincinv(np.maximum(k, 1), n - k + 1, alpha)
    return np.where(k > 0, np.maximum(found - SLACK, 0), 0.0)


def upper_bound(successes: Any, n: Any, alpha: Any) -> np.ndarray:
    """One-sided Clopper-Pearson: above the true rate with probability at least 1 - alpha."""
    k, n = np.broadcast_arrays(np.asarray(successes, dtype=np.float64), np.asarray(n, dtype=np.float64))
    return 1 - lower_bound(n - k, n, alpha)


def _sensible(k: np.ndarray, n: np.ndarray, alpha: Any) -> None:
    if not (np.all((n > 0) & (k >= 0) & (k <= n)) and np.all((np.asarray(alpha) > 0) & (np.asarray(alpha) < 1))):
        raise ValueError("a bound needs 0 <= successes <= n, n > 0, and alpha between 0 and 1")


def certified_radius(rate: Any, sigma: float) -> np.ndarray:
    """The l2 radius of a class whose probability is at least `rate`; 0 up to one half."""
    rate = np.asarray(rate, dtype=np.float64)
    return np.where(rate > 0.5, np.maximum(sigma * ndtri(rate) * (1 - SLACK), 0.0), 0.0)


def rate_for(radius: float, sigma: float) -> float:
    """The probability that a class must have for this radius: the inverse of `certified_radius`, rounded up."""
    return float(min(ndtr(radius / sigma) + 2 * SLACK, 1.0))


def needed(n: int, rate: float, alpha: float) -> int:
    """The fewest successes of `n` that put the lower bound at `rate` or above; n + 1 where none does."""
    low, high = 0, n + 1
    while low < high:
        middle = (low + high) // 2
        enough = middle > 0 and float(lower_bound(middle, n, alpha)) >= rate
        low, high = (low, middle) if enough else (middle + 1, high)
    return low


@dataclass(frozen=True, kw_only=True)
class Sequential:
    """Is the class's probability at least `rate`? Looked at several times on the way to `n` draws.

    The looks lie at `n`, two thirds of it, two thirds of that, ... down to `first`. Each spends its own part of alpha,
    three quarters the last, so that by the union bound all lower bounds hold together with probability 1 - alpha, and
    with nearly the power that one test with all draws has.

    Accepted is as soon as a bound reaches `rate`, or when the last look cannot fail any more. Rejected when the last look
    cannot succeed any more, or hardly: when the rate is, by an upper bound of 99.5 %, so low that the last look would
    succeed once in twenty times. A rejection can only cost power, never soundness.
    """

    rate: float
    n: int
    alpha: float
    first: int = 64

    @cached_property
    def looks(self) -> np.ndarray:
        """Numbers of draws at which one looks, int64, increasing, ending with `n`."""
        at = [self.n]
        while (earlier := at[-1] * 2 // 3) >= self.first:
            at.append(earlier)
        return np.array(at[::-1], dtype=np.int64)

    @cached_property
    def spent(self) -> np.ndarray:
        """The part of alpha of each look; they sum to alpha."""
        early = len(self.looks) - 1
        return self.alpha * np.array([(1 - LAST_SHARE) / early] * early + [LAST_SHARE] if early else [1.0])

    @cached_property
    def accept(self) -> np.ndarray:
        """At each look, the fewest successes that accept (more than there are draws, where none do)."""
        own = [needed(int(n), self.rate, float(a)) for n, a in zip(self.looks, self.spent, strict=True)]
        return np.minimum(own, own[-1])

    @cached_property
    def reject(self) -> np.ndarray:
        """At each look, the most successes that reject; negative where none do."""
        final = int(self.accept[-1])
        hopeless = final - 1 - (self.n - self.looks)
        if final > self.n:
            return np.array(hopeless)
        faint = float(lower_bound(final, self.n, FAINT))
        # the upper bound of a rate is one minus the lower bound of its failures
        low = self.looks - np.array([needed(int(n), 1 - faint, DOUBTFUL) for n in self.looks])
        low[-1] = final - 1
        return np.maximum(low, hopeless)


@dataclass(frozen=True)
class Certificates:
    """What sampling proved of `n` rows."""

    labels: Tensor
    """int64 `[n]`: the smoothed model's class; -1 where it abstains."""
    radius: Tensor
    """float64 `[n]`: no shorter change in l2 alters the answer; 0 where it abstains. Wrong with probability alpha a row."""
    draws: Tensor
    """int64 `[n]`: noisy copies that were looked at."""

    @property
    def abstained(self) -> Tensor:
        return self.labels == ABSTAINED

    def certified(self, labels: Tensor, radius: float) -> Tensor:
        """bool `[n]`: the answer is the true class `labels`, and stays so within `radius`."""
        return (self.labels == labels) & (self.radius >= radius)


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """The certificate of Cohen et al. (CERTIFY in algorithm 1), and a sequential one.

    Without `radius`: `select` draws choose the class, `n` others bound its probability. With `radius`, drawing stops as
    soon as it is known whether that radius is certified (see `Sequential`); the radius given is then the largest that
    was proven on the way. Noise is not clipped, as in the paper: the model sees values outside its box.

    Each row has its own random stream and micro-batches of its own, so that its certificate does not depend on the other
    rows, and memory does not grow with `n`.

    Args:
        sigma: standard deviation of the noise, in input units.
        n: draws to bound the probability with.
        select: draws to choose the class with.
        alpha: probability with which a row's radius may be wrong.
        radius: stop once this l2 radius is decided; None for the largest radius.
        batch: draws that go through the model at once; chosen for the cache where None.
    """

    sigma: float
    n: int = 10_000
    select: int = 100
    alpha: float = 0.001
    radius: float | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        rules = {
            "sigma must be above 0": np.isfinite(self.sigma) and self.sigma > 0,
            "alpha must lie between 0 and 1": 0 < self.alpha < 1,
            "n, select and batch must be at least 1": min(self.n, self.select, self.batch or 1) >= 1,
            "radius must be above 0": self.radius is None or self.radius > 0,
        }
        wrong = [words for words, kept in rules.items() if not kept]
        if wrong:
            raise BadOption(f"This certificate cannot be made: {'; '.join(wrong)}.")

    def __call__(self, target: Target, x: Tensor, rng: Rng) -> Certificates:
        """Certify `x` `[n, ...]`; `rng` has a stream for every row. Raises NotOffered for a regression."""
        if target.domain.task == "regression":
            raise NotOffered("Randomised smoothing is made for classification, and this is a regression.")
        rows = len(x)
        labels, draws = torch.full((rows,), ABSTAINED), torch.zeros(rows, dtype=torch.int64)
        radius = torch.zeros(rows, dtype=torch.float64)
        if not rows:
            return Certificates(labels, radius, draws)
        batch = self.batch or (micro_batch(target, x) if x.device.type == "cpu" else 1024)
        for i in range(rows):
            source = _Draws(target, x[i], self.sigma, batch, derive_seed(rng.seed, "smoothing", int(rng.ids[i])))
            top = int(source.counts(self.select).argmax())
            rate = self._rate(source, top)
            radius[i] = float(certified_radius(rate, self.sigma))
            labels[i] = top if rate > 0.5 else ABSTAINED
            draws[i] = source.drawn
        return Certificates(labels, radius, draws)

    @cached_property
    def test(self) -> Sequential | None:
        """The sequential test of `radius`; None without one."""
        if self.radius is None:
            return None
        return Sequential(rate=rate_for(self.radius, self.sigma), n=self.n, alpha=self.alpha)

    def _rate(self, source: _Draws, top: int) -> float:
        """A lower bound of the probability of class `top`."""
        test = self.test
        if test is None:
            return float(lower_bound(source.count(top, self.n), self.n, self.alpha))
        best, hits, before = 0.0, 0, 0
        plan = zip(test.looks, test.spent, test.accept, test.reject, strict=True)
        for look, alpha, accept, reject in plan:
            hits += source.count(top, int(look) - before)
            before = int(look)
            best = max(best, float(lower_bound(hits, look, alpha)))
            if hits >= accept:
                return max(best, test.rate)
            if hits <= reject:
                break
        return best


class _Draws:
    """Answers of a target to noisy copies of one row, a micro-batch at a time."""

    def __init__(self, target: Target, row: Tensor, sigma: float, batch: int, seed: int) -> None:
        self.target, self.row, self.sigma, self.batch = target, row, sigma, batch
        self.noise = torch.Generator(device=row.device).manual_seed(seed)
        self.drawn = 0

    def counts(self, n: int) -> Tensor:
        """int64 `[classes]`: how often each class is the answer to `n` new draws."""
        parts = [torch.bincount(self._answers(m)) for m in self._sizes(n)]
        total = torch.zeros(max(len(part) for part in parts), dtype=torch.int64)
        for part in parts:
            total[: len(part)] += part.cpu()
        return total

    def count(self, label: int, n: int) -> int:
        """How often `label` is the answer to `n` new draws."""
        return sum(int((self._answers(m) == label).sum()) for m in self._sizes(n))

    def _sizes(self, n: int) -> list[int]:
        return [min(self.batch, n - start) for start in range(0, n, self.batch)]

    def _answers(self, m: int) -> Tensor:
        shape = (m, *self.row.shape)
        device = self.row.device
        z = torch.randn(shape, generator=self.noise, device=device).mul_(self.sigma).to(self.row.dtype).add_(self.row)
        self.drawn += m
        with torch.no_grad():
            return self.target.forward(z).labels
