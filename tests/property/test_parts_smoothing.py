"""Certificates by sampling: bounds that cover, and a sequential test that never spends more than alpha."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm
from torch import nn

from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.parts.smoothing import (
    ABSTAINED,
    Sequential,
    Smoothing,
    certified_radius,
    lower_bound,
    needed,
    rate_for,
    upper_bound,
)
from vauban.schema.errors import BadOption, NotOffered
from vauban.targets.callable import CallableTarget
from vauban.targets.torch import TorchTarget

RATES = st.floats(0.01, 0.99)
ALPHAS = st.sampled_from([0.1, 0.01, 0.001])


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 400), p=RATES, alpha=ALPHAS)
def test_one_sided_bounds_miss_with_probability_alpha_at_most(n: int, p: float, alpha: float) -> None:
    k = np.arange(n + 1)
    chance = binom.pmf(k, n, p)
    assert chance[lower_bound(k, n, alpha) > p].sum() <= alpha + 1e-9
    assert chance[upper_bound(k, n, alpha) < p].sum() <= alpha + 1e-9


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 400), alpha=ALPHAS, data=st.data())
def test_the_lower_bound_is_where_the_tail_is_alpha(n: int, alpha: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    p = float(lower_bound(k, n, alpha))
    assert binom.sf(k - 1, n, p) == pytest.approx(alpha, rel=1e-5)
    assert binom.sf(k - 1, n, p) <= alpha * (1 + 1e-12)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 400), rate=RATES, alpha=ALPHAS)
def test_needed_is_the_first_count_that_suffices(n: int, rate: float, alpha: float) -> None:
    enough = [k for k in range(n + 1) if lower_bound(k, n, alpha) >= rate]
    assert needed(n, rate, alpha) == (enough[0] if enough else n + 1)


@settings(max_examples=60, deadline=None)
@given(radius=st.floats(0.001, 3.0), sigma=st.floats(0.1, 2.0))
def test_rate_and_radius_are_each_others_inverse(radius: float, sigma: float) -> None:
    rate = rate_for(radius, sigma)
    found = float(certified_radius(rate, sigma))
    if rate < 1 - 1e-9:
        # measured as a probability, for far out in the tail a rounding of the rate is a large step of the radius
        assert radius <= found
        assert norm.cdf(radius / sigma) <= norm.cdf(found / sigma) <= rate
    assert float(certified_radius(0.5, sigma)) == 0.0


def ends(test: Sequential, p: float) -> tuple[float, float]:
    """(probability of acceptance, expected draws), exactly: the law of the count is carried from look to look."""
    law, before, accepted, draws = np.ones(1), 0, 0.0, 0.0
    for look, accept, reject in zip(test.looks, test.accept, test.reject, strict=True):
        law = np.convolve(law, binom.pmf(np.arange(look - before + 1), look - before, p))
        draws += law.sum() * (look - before)
        before = int(look)
        k = np.arange(len(law))
        yes, no = k >= accept, (k < accept) & (k <= reject)
        accepted += law[yes].sum()
        law = np.where(yes | no, 0.0, law)
    assert law.sum() < 1e-12, "the last look decides"
    return accepted, draws


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 700), rate=st.floats(0.5, 0.999), alpha=ALPHAS, first=st.sampled_from([8, 64]))
def test_the_sequential_test_accepts_wrongly_with_probability_alpha_at_most(
    n: int, rate: float, alpha: float, first: int
) -> None:
    test = Sequential(rate=rate, n=n, alpha=alpha, first=first)
    assert test.spent.sum() == pytest.approx(alpha)
    assert list(test.looks) == sorted({*test.looks})
    assert test.looks[-1] == n
    for below in (rate, rate - 0.01, rate - 0.1):
        assert ends(test, below)[0] <= alpha


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 2000), rate=st.floats(0.5, 0.999), alpha=ALPHAS)
def test_what_it_accepts_a_single_test_with_the_same_draws_accepts_too(n: int, rate: float, alpha: float) -> None:
    test = Sequential(rate=rate, n=n, alpha=alpha)
    for look, accept in zip(test.looks, test.accept, strict=True):
        assert accept > look or lower_bound(int(accept), int(look), alpha) >= rate
        assert accept >= needed(int(look), rate, alpha)


def test_it_has_nearly_the_power_of_a_single_test_at_a_small_part_of_the_draws() -> None:
    n, rate, alpha = 2000, 0.8, 0.001
    test = Sequential(rate=rate, n=n, alpha=alpha)
    single = needed(n, rate, alpha)
    for p in np.linspace(0.7, 0.99, 30):
        assert abs(ends(test, p)[0] - binom.sf(single - 1, n, p)) < 0.06
    assert ends(test, 0.6)[1] < 0.1 * n
    assert ends(test, 0.97)[1] < 0.1 * n


def test_simulated_coverage_of_the_radius() -> None:
    """Of 4,000 sequential runs at a known rate, no more exceed the true radius than alpha allows (five deviations)."""
    alpha, runs, generator = 0.05, 4000, np.random.default_rng(0)
    for p, radius in ((0.7, 0.25), (0.7, 0.1312), (0.95, 0.5)):
        test = Sequential(rate=rate_for(radius, 0.25), n=1000, alpha=alpha)
        true, best, hits, before = norm.ppf(p) * 0.25, np.zeros(runs), np.zeros(runs, dtype=int), 0
        live = np.ones(runs, dtype=bool)
        for look, spent, accept, reject in zip(test.looks, test.spent, test.accept, test.reject, strict=True):
            hits[live] += generator.binomial(look - before, p, live.sum())
            before = look
            best[live] = np.maximum(best[live], lower_bound(hits[live], look, spent))
            won = live & (hits >= accept)
            best[won] = np.maximum(best[won], test.rate)
            live &= ~won & (hits > reject)
        wrong = int((certified_radius(best, 0.25) > true).sum())
        assert wrong <= alpha * runs + 5 * (alpha * runs) ** 0.5


def line(x: torch.Tensor) -> tuple[TorchTarget, torch.Tensor]:
    """A linear model, and the signed distances of `x` from its boundary."""
    module = nn.Linear(5, 2).requires_grad_(False)
    module.weight.copy_(torch.tensor([[0.3, -0.2, 0.5, 0.1, -0.4], [-0.1, 0.4, 0.2, -0.3, 0.6]]))
    module.bias.copy_(torch.tensor([0.1, -0.1]))
    slope, offset = module.weight[1] - module.weight[0], module.bias[1] - module.bias[0]
    away = ((x @ slope + offset) / slope.norm()).double()
    return TorchTarget(module, "line", Domain(task="classification", classes=2), "logits"), away


def test_a_linear_model_is_certified_up_to_its_boundary_and_not_beyond() -> None:
    """Under noise the share of the class is Phi(distance / sigma): the certificate is the distance itself."""
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    target, away = line(x)
    sigma = 0.5
    found = Smoothing(sigma=sigma, n=20_000, alpha=1e-4)(target, x, Rng(0, 40))
    assert bool((found.radius <= away.abs()).all())
    clear = (away.abs() > 0.1) & (away.abs() < 2 * sigma)
    assert int(clear.sum()) > 10
    assert bool((found.labels == (away > 0))[clear].all())
    assert bool((found.radius >= away.abs() - 0.06)[clear].all())
    assert bool((found.radius[found.abstained] == 0).all())
    assert bool((found.draws == 20_100).all())


def test_stopping_early_decides_as_all_draws_do() -> None:
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(2))
    target, away = line(x)
    away = away.abs()
    whole = Smoothing(sigma=0.5, n=5000)(target, x, Rng(3, 60))
    early = Smoothing(sigma=0.5, n=5000, radius=0.3)(target, x, Rng(3, 60))
    far = (away - 0.3).abs() > 0.1
    assert bool(((whole.radius >= 0.3) == (early.radius >= 0.3))[far].all())
    assert float(early.draws.double().mean()) < 0.4 * 5100
    assert bool((early.radius <= away + 1e-6).all())


def test_a_row_is_certified_alike_alone_and_in_company() -> None:
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(4))
    target, _ = line(x)
    how = Smoothing(sigma=0.5, n=500, radius=0.2)
    whole = how(target, x, Rng(5, np.arange(10, 16)))
    alone = how(target, x[3:4], Rng(5, [13]))
    assert torch.equal(alone.radius, whole.radius[3:4])
    assert torch.equal(alone.draws, whole.draws[3:4])
    assert not torch.equal(how(target, x, Rng(6, 6)).radius, whole.radius)


def test_classes_that_are_equally_likely_are_left_open() -> None:
    target = CallableTarget(lambda x: (x[:, 0] > 0).astype(np.int64), domain=Domain(task="classification", classes=2))
    found = Smoothing(sigma=1.0, n=2000)(target, torch.zeros(3, 2), Rng(0, 3))
    assert found.labels.tolist() == [ABSTAINED] * 3
    assert found.radius.tolist() == [0.0] * 3
    assert not bool(found.certified(torch.zeros(3, dtype=torch.int64), 0.0).any())


def test_no_rows_no_draws_and_nonsense_is_refused() -> None:
    target, _ = line(torch.zeros(1, 5))
    assert len(Smoothing(sigma=1.0)(target, torch.zeros(0, 5), Rng(0, 0)).radius) == 0
    for bad in ({"sigma": 0.0}, {"sigma": 1.0, "alpha": 0.0}, {"sigma": 1.0, "n": 0}, {"sigma": 1.0, "radius": -1.0}):
        with pytest.raises(BadOption, match="cannot be made"):
            Smoothing(**bad)  # type: ignore[arg-type]
    value = TorchTarget(nn.Linear(5, 1), "value", Domain(task="regression"))
    with pytest.raises(NotOffered, match="regression"):
        Smoothing(sigma=1.0)(value, torch.zeros(1, 5), Rng(0, 1))
    with pytest.raises(ValueError, match="successes"):
        lower_bound(3, 2, 0.1)
