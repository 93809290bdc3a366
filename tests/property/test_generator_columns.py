"""Columns of a table, as a network sees them and back."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vauban.parts.generators.columns import Layout, Levels, Modes, columns, grid

SEEDS = st.integers(0, 2**31)


def draw(seed: int, kind: int, n: int) -> np.ndarray:
    """Real, whole, heavy-tailed, few values, or one value half of the time."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(rng.normal(0, 5, 3)[rng.integers(0, 3, n)], 1.0),
        rng.integers(-20, 60, n).astype(float),
        np.exp(3 * rng.normal(size=n)),
        rng.choice([0.5, 2.0, 7.0], n),
        np.where(np.arange(n) % 2, 0.25, rng.normal(size=n)),
    )[kind]


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(32, 80))
def test_what_is_encoded_comes_back(seed: int, kinds: list[int], n: int) -> None:
    x = np.stack([draw(seed + i, kind, n) for i, kind in enumerate(kinds)], 1)
    rng = np.random.default_rng(seed)
    layout = Layout(columns(x, rng), x.shape[1])
    codes = layout.encode(x, rng)
    assert codes.shape == (n, layout.width)
    back = layout.decode(codes.double().numpy())
    np.testing.assert_allclose(back, x, rtol=1e-5, atol=1e-5 * np.abs(x).max())
    start = 0
    for column in layout.columns:
        choice = codes[:, start + column.squashed : start + column.width]
        assert bool(((choice == 0) | (choice == 1)).all())
        assert bool((choice.sum(1) == 1).all())
        start += column.width


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(0, 4))
def test_any_codes_give_values_within_the_column_and_on_its_grid(seed: int, kind: int) -> None:
    x = draw(seed, kind, 60)[:, None]
    rng = np.random.default_rng(seed)
    layout = Layout(columns(x, rng), 1)
    made = layout.decode(rng.normal(0, 2, (200, layout.width)))[:, 0]
    assert made.min() >= x.min()
    assert made.max() <= x.max()
    if kind == 1:
        np.testing.assert_allclose(made, np.round(made), atol=1e-9)
    if kind == 3:
        assert set(made) <= set(x[:, 0])


@settings(max_examples=8, deadline=None)
@given(SEEDS, st.lists(st.integers(2, 5), min_size=1, max_size=3))
def test_columns_of_which_one_is_set_go_together(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    blocks = [np.eye(k)[np.concatenate([np.arange(k), rng.integers(0, k, 40)])[:40]] for k in sizes]
    number = rng.normal(size=(40, 1))
    x = np.concatenate([number, *blocks, number], 1)
    layout = Layout(columns(x, rng), x.shape[1])
    groups = [c.at for c in layout.columns if isinstance(c, Levels)]
    starts = np.cumsum([1, *sizes])
    assert groups == [tuple(range(a, b)) for a, b in pairwise(starts.tolist())]
    made = layout.decode(rng.normal(size=(30, layout.width)))
    for a, b in pairwise(starts.tolist()):
        assert (made[:, a:b].sum(1) == 1).all()


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.floats(0.001, 100), st.integers(2, 300))
def test_a_grid_is_found_and_holds_all_values(seed: int, step: float, count: int) -> None:
    rng = np.random.default_rng(seed)
    levels = np.unique(np.concatenate([[0, 1], rng.integers(0, count, 30)]))
    values = (5.0 + step * levels).astype(np.float32)
    found = grid(values)
    assert abs(found - step) <= 1e-3 * step
    assert grid(rng.normal(size=50)) == 0


def test_whole_numbers_with_gaps_are_on_a_grid_of_one() -> None:
    assert grid(np.array([0.0, 2, 5, 9])) == 1.0


def test_a_value_that_many_rows_share_comes_back_exactly() -> None:
    """As a mode of its own: whatever place is drawn in it, the value stays."""
    rng = np.random.default_rng(0)
    x = np.where(rng.random(400) < 0.9, 0.0, rng.exponential(size=400))[:, None]
    modes = Modes.of((0,), x, rng)
    assert modes.spikes.tolist() == [0.0]
    codes = modes.encode(x, rng)
    assert (codes[:, 1] == (x[:, 0] == 0)).all()
    codes[:, 0] = 0.7
    made = modes.decode(codes)[:, 0]
    assert ((made == 0) == (x[:, 0] == 0)).all()


def test_modes_lie_where_the_values_do() -> None:
    """Two heaps of 300 and 700 values: means, and no more weight elsewhere than rounding."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-3, 0.2, 300), rng.normal(5, 0.5, 700)])[:, None]
    modes = Modes.of((0,), x, rng)
    left = modes.means < 1
    assert abs(modes.weights[left].sum() - 0.3) < 0.02
    assert np.abs(np.where(left, modes.means + 3, modes.means - 5)).max() < 1.0
    codes = modes.encode(x, rng)
    assert np.abs(codes[:, 0]).max() < 1.2
