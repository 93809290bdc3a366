"""Membership scores against closed forms, scipy, scikit-learn and the obvious slow way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from vauban.core.target import Outputs
from vauban.parts import membership
from vauban.parts.roc import auc, hits_at_fpr, roc, thin

PROPERTY = settings(max_examples=25, deadline=None)


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def halves(models: int, n: int, seed: int) -> torch.Tensor:
    return membership.complementary_splits(torch.zeros(n, dtype=torch.int64), models // 2, gen(seed))


# --- signals


@PROPERTY
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 7))
def test_margin_is_the_logit_of_the_confidence(seed: int, classes: int) -> None:
    z = torch.randn(9, classes, generator=gen(seed), dtype=torch.float64) * 3
    y = torch.randint(classes, (9,), generator=gen(seed + 1))
    p = z.softmax(1)[torch.arange(9), y]
    expected = torch.log(p / (1 - p))
    assert torch.allclose(membership.margin(Outputs(z, "logits"), y), expected, atol=1e-9)
    assert torch.allclose(membership.margin(Outputs(z.softmax(1), "probabilities"), y), expected, atol=1e-9)


def test_margin_keeps_what_the_probability_loses() -> None:
    z = torch.tensor([[60.0, 0.0, 0.0], [80.0, 0.0, 0.0]], dtype=torch.float64)
    y = torch.zeros(2, dtype=torch.int64)
    assert float(z.softmax(1)[0, 0]) == 1.0
    expected = torch.tensor([60.0, 80.0]) - math.log(2)
    assert torch.allclose(membership.margin(Outputs(z, "logits"), y), expected.double())


def test_signals_of_a_regression_are_minus_the_squared_error() -> None:
    outputs, y = Outputs(torch.tensor([1.0, 4.0]), "values"), torch.tensor([2.0, 1.0], dtype=torch.float64)
    assert membership.margin(outputs, y).tolist() == [-1.0, -9.0]


def test_bare_labels_give_no_signal() -> None:
    with pytest.raises(ValueError, match="labels"):
        membership.log_probabilities(Outputs(torch.tensor([0, 1]), "labels"))


@PROPERTY
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 6))
def test_modified_entropy_is_the_papers_sum(seed: int, classes: int) -> None:
    z = torch.randn(6, classes, generator=gen(seed), dtype=torch.float64)
    y = torch.randint(classes, (6,), generator=gen(seed + 1))
    p = z.softmax(1)
    slow = []
    for row, label in zip(p.tolist(), y.tolist(), strict=True):
        total = -(1 - row[label]) * math.log(row[label])
        total -= sum(v * math.log(1 - v) for k, v in enumerate(row) if k != label)
        slow.append(total)
    fast = membership.modified_entropy(Outputs(z, "logits"), y)
    assert torch.allclose(fast, torch.tensor(slow, dtype=torch.float64), atol=1e-10)


def test_modified_entropy_of_certain_answers() -> None:
    z = torch.tensor([[90.0, 0.0], [90.0, 0.0]], dtype=torch.float64)
    right, wrong = membership.modified_entropy(Outputs(z, "logits"), torch.tensor([0, 1])).tolist()
    assert right == pytest.approx(0, abs=1e-30)
    assert wrong == pytest.approx(180, rel=1e-6)  # -log p of the true class, and p log(1 - p) of the wrong one


# --- LiRA


def test_lira_equals_the_slow_gaussian_ratio() -> None:
    models, n = 12, 7
    inside = halves(models, n, 1)
    signals = torch.randn(models, n, generator=gen(2), dtype=torch.float64)
    target = torch.randn(n, generator=gen(3), dtype=torch.float64)
    fast = membership.lira(target, signals, inside, variance="record")
    for i in range(n):
        ins, outs = signals[inside[:, i], i].numpy(), signals[~inside[:, i], i].numpy()
        slow = norm.logpdf(target[i], ins.mean(), ins.std(ddof=1)) - norm.logpdf(
            target[i], outs.mean(), outs.std(ddof=1)
        )
        assert float(fast[i]) == pytest.approx(slow, rel=1e-9)


def test_lira_offline_is_the_tail_not_the_density() -> None:
    models, n = 10, 5
    inside = halves(models, n, 4)
    signals = torch.randn(models, n, generator=gen(5), dtype=torch.float64)
    target = torch.tensor([-9.0, -1.0, 0.0, 1.0, 30.0], dtype=torch.float64)
    fast = membership.lira(target, signals, inside, online=False, variance="record")
    for i in range(n):
        outs = signals[~inside[:, i], i].numpy()
        z = (float(target[i]) - outs.mean()) / outs.std(ddof=1)
        assert float(fast[i]) == pytest.approx(norm.logcdf(z), rel=1e-9, abs=1e-300)
    assert torch.isfinite(fast).all()


def test_lira_offline_grows_with_confidence_without_end() -> None:
    """The density would fall again beyond the mean: the most confident records would look like outsiders."""
    inside = torch.zeros(8, 5, dtype=torch.bool)
    signals = torch.randn(8, 1, generator=gen(6), dtype=torch.float64).expand(8, 5).clone()
    target = torch.tensor([-3.0, 0.0, 1.0, 3.0, 7.0], dtype=torch.float64)
    scores = membership.lira(target, signals, inside, online=False, variance="record")
    assert (scores.diff() > 0).all()


def test_lira_of_two_gaussians_is_the_analytic_ratio() -> None:
    """Signals N(1, 1) inside and N(0, 1) outside: the log-likelihood ratio is s - 1/2."""
    models, n = 4000, 40
    inside = halves(models, n, 7)
    signals = torch.randn(models, n, generator=gen(8), dtype=torch.float64) + inside.double()
    target = torch.linspace(-2, 3, n, dtype=torch.float64)
    for variance in ("shrunk", "fixed", "record"):
        scores = membership.lira(target, signals, inside, variance=variance)
        assert float((scores - (target - 0.5)).abs().max()) < 0.35


@pytest.mark.parametrize("variance", ["shrunk", "fixed"])
def test_two_references_are_enough_for_pooled_variances(variance: membership.Variance) -> None:
    inside = halves(2, 30, 9)
    signals = torch.randn(2, 30, generator=gen(10), dtype=torch.float64)
    scores = membership.lira(torch.zeros(30, dtype=torch.float64), signals, inside, variance=variance)
    assert torch.isfinite(scores).all()


def test_shrinkage_lies_between_the_papers_two_variances() -> None:
    inside = halves(8, 50, 11)
    signals = torch.randn(8, 50, generator=gen(12), dtype=torch.float64)
    target = torch.randn(50, generator=gen(13), dtype=torch.float64)
    record = membership.lira(target, signals, inside, variance="record")
    fixed = membership.lira(target, signals, inside, variance="fixed")
    none = membership.lira(target, signals, inside, variance="shrunk", prior=0.0)
    all_ = membership.lira(target, signals, inside, variance="shrunk", prior=1e12)
    assert torch.allclose(none, record, rtol=1e-9)
    assert torch.allclose(all_, fixed, rtol=1e-6)


def test_lira_refuses_records_without_references() -> None:
    signals = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="not trained on it"):
        membership.lira(torch.zeros(3).double(), signals, torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="was trained on it"):
        membership.lira(torch.zeros(3).double(), signals, torch.zeros(2, 3, dtype=torch.bool))


# --- RMIA


@PROPERTY
@given(seed=st.integers(0, 10_000), n=st.integers(1, 30), z=st.integers(1, 30), gamma=st.sampled_from([1.0, 2.0, 5.0]))
def test_rmia_equals_the_pairwise_loop_exactly(seed: int, n: int, z: int, gamma: float) -> None:
    x = torch.randn(n, generator=gen(seed), dtype=torch.float64).mul(4).round() / 4  # ties are wanted
    population = torch.randn(z, generator=gen(seed + 1), dtype=torch.float64).mul(4).round() / 4
    slow = [sum(float(a) - math.log(gamma) >= float(b) for b in population) / z for a in x]
    assert membership.rmia(x, population, gamma).tolist() == slow


def test_rmia_ratios_are_the_papers() -> None:
    models, n = 6, 8
    inside = halves(models, n, 14)
    p = torch.rand(models, n, generator=gen(15), dtype=torch.float64)
    target = torch.rand(n, generator=gen(16), dtype=torch.float64)
    online = membership.rmia_log_ratio(target.log(), p.log(), inside, online=True, a=0.0)
    offline = membership.rmia_log_ratio(target.log(), p.log(), inside, online=False, a=0.3)
    for i in range(n):
        p_in, p_out = float(p[inside[:, i], i].mean()), float(p[~inside[:, i], i].mean())
        assert float(online[i].exp()) == pytest.approx(float(target[i]) / ((p_in + p_out) / 2))
        assert float(offline[i].exp()) == pytest.approx(float(target[i]) / (((1 + 0.3) * p_out + (1 - 0.3)) / 2))
    pure = membership.rmia_log_ratio(target.log(), p.log(), inside, online=False, a=1.0)
    assert torch.isfinite(pure).all()


# --- splits


@PROPERTY
@given(seed=st.integers(0, 10_000), pairs=st.integers(1, 5), n=st.integers(1, 41))
def test_splits_are_complementary_and_balanced_in_each_stratum(seed: int, pairs: int, n: int) -> None:
    strata = torch.randint(2, (n,), generator=gen(seed))
    inside = membership.complementary_splits(strata, pairs, gen(seed + 1))
    assert inside.shape == (2 * pairs, n)
    assert (inside.sum(0) == pairs).all()
    assert (inside[0::2] ^ inside[1::2]).all()
    for value in (0, 1):
        size = int((strata == value).sum())
        assert ((inside[:, strata == value].sum(1) * 2 - size).abs() <= 1).all()


# --- ROC


@PROPERTY
@given(seed=st.integers(0, 10_000), n=st.integers(2, 60))
def test_auc_equals_sklearn_and_the_pairwise_loop(seed: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 8, n).astype(float)
    positive = generator.permutation(np.arange(n) % 2 == 0)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert auc(scores, positive) == pytest.approx(np.mean(pairs))
    assert auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
    fpr, tpr, thresholds = roc(scores, positive)
    expected = roc_curve(positive, scores, drop_intermediate=False)
    for ours, theirs in zip((fpr, tpr, thresholds), expected, strict=True):
        assert np.allclose(ours, theirs)


def test_auc_of_one_side_is_nan_and_infinities_rank() -> None:
    assert math.isnan(auc(np.zeros(3), np.ones(3, dtype=bool)))
    assert auc(np.array([-np.inf, 0.0, np.inf]), np.array([False, False, True])) == 1.0


@PROPERTY
@given(seed=st.integers(0, 10_000), rate=st.sampled_from([0.0, 0.01, 0.05, 0.3]))
def test_hits_at_fpr_equals_trying_every_threshold(seed: int, rate: float) -> None:
    generator = np.random.default_rng(seed)
    scores, positive = generator.integers(0, 30, 100).astype(float), np.arange(100) % 2 == 0
    best = 0
    for threshold in [*scores, np.inf]:
        called = scores >= threshold
        if np.sum(called & ~positive) / 50 <= rate + 1e-12:
            best = max(best, int(np.sum(called & positive)))
    assert hits_at_fpr(scores, positive, rate) == best


def test_thinned_curve_keeps_points_of_the_curve() -> None:
    generator = np.random.default_rng(0)
    fpr, tpr, _ = roc(generator.normal(size=3000), generator.random(3000) < 0.5)
    x, y = thin(fpr, tpr)
    assert len(x) <= 200
    assert x[-1] == y[-1] == 1.0
    assert set(zip(x, y, strict=True)) <= set(zip(fpr.tolist(), tpr.tolist(), strict=True))
