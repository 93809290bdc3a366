"""A row keeps its own stream, whoever stands beside it."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from vauban.core.rng import Rng


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**62), ids=st.lists(st.integers(0, 10**9), min_size=1, max_size=8, unique=True))
def test_a_row_draws_the_same_alone_and_among_others(seed: int, ids: list[int]) -> None:
    together = Rng(seed, ids)
    rows = torch.arange(len(ids))
    first, second = together.normal(rows, (3,)), together.uniform(rows, (2,))
    for i, name in enumerate(ids):
        alone, row = Rng(seed, [name]), torch.zeros(1, dtype=torch.int64)
        assert torch.equal(alone.normal(row, (3,))[0], first[i])
        assert torch.equal(alone.uniform(row, (2,))[0], second[i])


def test_only_the_rows_that_draw_advance() -> None:
    one, two = Rng(7, 3), Rng(7, 3)
    one.uniform(torch.tensor([0, 2]), (5,))
    assert torch.equal(one.uniform(torch.tensor([1]), (4,)), two.uniform(torch.tensor([1]), (4,)))


def test_distributions() -> None:
    rng, rows = Rng(1, 20), torch.arange(20)
    assert kstest(rng.uniform(rows, (1000,)).numpy().ravel(), "uniform").pvalue > 1e-3
    assert kstest(rng.normal(rows, (1000,)).numpy().ravel(), "norm").pvalue > 1e-3
    assert abs(float(rng.signs(rows, (1000,)).mean())) < 0.03
    counts = np.bincount(rng.integers(rows, 7, 1000).numpy().ravel(), minlength=7)
    assert counts.min() > 0.9 * 20_000 / 7
    assert int(rng.integers(rows, torch.arange(1, 21), 100).amax()) <= 19


def test_streams_of_neighbouring_ids_and_seeds_are_unrelated() -> None:
    rows = torch.arange(50)
    a, b = Rng(0, 50).uniform(rows, (200,)), Rng(1, 50).uniform(rows, (200,))
    near = np.corrcoef(a.numpy())
    np.fill_diagonal(near, 0)
    assert abs(near).max() < 0.35
    assert abs(np.corrcoef(a.numpy().ravel(), b.numpy().ravel())[0, 1]) < 0.04
    assert not torch.equal(Rng(0, 50).child("x").uniform(rows, (3,)), Rng(0, 50).child("y").uniform(rows, (3,)))
