"""Each detector against the obvious slow computation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf

from vauban.parts import poison_scores as detect
from vauban.parts.roc import auc


def _slow_neighbours(x, y, q, t, k, own):
    out = []
    for i in range(len(q)):
        pairs = sorted((np.linalg.norm(x[j] - q[i]), j) for j in range(len(x)) if not (own and i == j))[:k]
        mean = np.mean([d for d, _ in pairs])
        weights = [1 / (d + 1e-3 * mean + 1e-12) for d, _ in pairs]
        wrong = [w for w, (_, j) in zip(weights, pairs, strict=True) if y[j] != t[i]]
        out.append(sum(wrong) / sum(weights))
    return np.array(out)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.booleans())
def test_neighbour_disagreement_is_that_of_brute_force(seed, k, own):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    q, t = (x, y) if own else (rng.normal(size=(7, 4)), rng.integers(0, 3, 7))
    fast = detect.neighbour_disagreement(x, y, k=k) if own else detect.neighbour_disagreement(x, y, q, t, k=k)
    np.testing.assert_allclose(fast, _slow_neighbours(x, y, q, t, k, own), atol=1e-9)


def test_neighbours_are_taken_from_the_reference_alone_and_across_blocks():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(detect.BLOCK + 50, 3)), rng.integers(0, 2, detect.BLOCK + 50)
    among = np.arange(0, len(x), 7)
    fast = detect.neighbour_disagreement(x, y, k=3, among=among)
    for i in (0, 1, detect.BLOCK, detect.BLOCK + 49):
        others = among[among != i]
        slow = _slow_neighbours(x[others], y[others], x[i : i + 1], y[i : i + 1], 3, False)
        assert fast[i] == pytest.approx(slow[0], abs=1e-9)


def test_ledoit_wolf_is_that_of_scikit_learn():
    z = np.random.default_rng(1).normal(size=(40, 9)) @ np.diag(np.arange(1, 10))
    mean, covariance = detect.ledoit_wolf(z)
    np.testing.assert_allclose(mean, z.mean(0))
    np.testing.assert_allclose(covariance, LedoitWolf().fit(z).covariance_, rtol=1e-10)


def test_class_distance_finds_a_planted_outlier_that_hides_among_others():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 5))
    x[:, 1] = x[:, 0] + 0.01 * rng.normal(size=200)
    x[13] = [1.0, -1.0, 0, 0, 0]  # ordinary in each column, impossible together
    scores = detect.class_distance(x, np.zeros(200, int))
    assert scores.argmax() == 13
    columns = np.abs((x - x.mean(0)) / x.std(0)).max(1)
    assert (columns > columns[13]).sum() > 20, "no single column gives it away"


def test_class_distance_of_training_rows_compares_with_that_of_fresh_rows():
    rng = np.random.default_rng(3)
    x, q = rng.normal(size=(2000, 8)), rng.normal(size=(2000, 8))
    y = np.zeros(2000, int)
    own, fresh = detect.class_distance(x, y), detect.class_distance(x, y, q, y)
    assert np.quantile(own, 0.99) == pytest.approx(np.quantile(fresh, 0.99), rel=0.05)


def test_a_tiny_class_scores_nothing():
    x, y = np.random.default_rng(4).normal(size=(23, 3)), np.array([0] * 20 + [1] * 3)
    assert (detect.class_distance(x, y)[20:] == 0).all()
    assert np.isfinite(detect.spectral(x, y)).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 40), st.integers(1, 20))
def test_the_top_direction_is_that_of_the_full_decomposition(seed, n, d):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, d)) + 3 * rng.normal(size=(n, 1)) * rng.normal(size=d)
    z -= z.mean(0)
    values, vectors = np.linalg.svd(z, full_matrices=False)[1:]
    found = detect.top_direction(z)
    assert np.linalg.norm(found) == pytest.approx(1)
    # as much variance as the best direction has; the direction itself where it is alone
    assert np.linalg.norm(z @ found) >= values[0] * (1 - 1e-6)
    if len(values) < 2 or values[1] < 0.8 * values[0]:
        assert abs(found @ vectors[0]) == pytest.approx(1, abs=1e-6)


def test_spectral_separates_a_planted_rank_one_mixture():
    """Tran et al., lemma 3.1: with a mean shift of at least 6 sigma / sqrt(share) the top direction separates them."""
    rng = np.random.default_rng(5)
    share, n, d = 0.05, 1000, 20
    planted = np.arange(n) < share * n
    direction = np.eye(d)[3]
    x = rng.normal(size=(n, d)) + planted[:, None] * direction * 6 / np.sqrt(share)
    assert auc(detect.spectral(x, np.zeros(n, int)), planted) == 1.0


def test_p_values_count():
    null = np.array([1.0, 2.0, 2.0, 3.0])
    np.testing.assert_allclose(detect.p_values(np.array([0.0, 2.0, 2.5, 9.0]), null), np.array([5, 4, 2, 1]) / 5)
    np.testing.assert_allclose(detect.own_p_values(null), np.array([4, 3, 3, 1]) / 4)


@pytest.mark.parametrize("rate", [0.005, 0.01, 0.05])
def test_the_conformal_threshold_keeps_its_rate(rate):
    rng = np.random.default_rng(6)
    alarms = [
        (rng.normal(size=1000) > detect.conformal_threshold(rng.normal(size=399), rate)).mean() for _ in range(300)
    ]
    assert np.mean(alarms) <= rate * 1.1
    assert np.mean(alarms) >= rate * 0.5


def test_the_conformal_threshold_refuses_what_it_cannot_promise():
    assert detect.conformal_threshold(np.arange(50.0), 0.01) == np.inf


def test_the_tail_threshold_is_exact_for_an_exponential_law_and_does_not_follow_poison():
    scores = -np.log(1 - (np.arange(10_000) + 0.5) / 10_000)
    threshold = detect.tail_threshold(scores, 0.005)
    assert (scores > threshold).mean() == pytest.approx(0.005, abs=5e-4)
    assert detect.tail_threshold(np.concatenate([scores, np.full(300, 50.0)]), 0.005) < 1.5 * threshold
