"""Intervals cover what they claim to cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from vauban.engine.measure import bootstrap, clopper_pearson, median, rate


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 60), p=st.floats(0.01, 0.99))
def test_clopper_pearson_covers_at_least_95_percent(n: int, p: float) -> None:
    covered = sum(binom.pmf(k, n, p) for k in range(n + 1) if clopper_pearson(k, n)[0] <= p <= clopper_pearson(k, n)[1])
    assert covered >= 0.95 - 1e-9


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 500), data=st.data())
def test_interval_holds_the_rate_and_is_a_rate(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = clopper_pearson(k, n)
    assert 0 <= low <= k / n <= high <= 1


def test_a_rate_over_nothing_is_none() -> None:
    measured = rate("evasion.robust_accuracy", 0, 0)
    assert (measured.value, measured.low, measured.high, measured.n) == (None, None, None, 0)


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_nonsense_is_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        clopper_pearson(k, n)


def test_bootstrap_of_a_mean_covers() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for trial in range(120):
        values = generator.normal(size=60)
        low, high = bootstrap(lambda rows, v=values: float(v[rows].mean()), 60, trial, draws=300)
        inside += low <= 0 <= high
    assert inside >= 105


def test_median_counts_failures_as_infinite() -> None:
    assert median("d", np.array([1.0, 2.0, np.inf, np.inf, np.inf]), "l2").value is None
    assert median("d", np.array([1.0, 2.0, 3.0, 4.0, np.inf]), "l2").value == 3.0
    assert median("d", np.array([]), "l2").value is None
