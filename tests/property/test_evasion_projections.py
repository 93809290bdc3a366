"""Projections onto ball and box: admissible, idempotent, nearest; samples and steps of the promised size."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vauban.core.rng import Rng
from vauban.parts.projections import SPACES

NAMES = sorted(SPACES)
few = settings(max_examples=25, deadline=None)


def scene(seed: int, shape: tuple[int, ...] = (5, 7), spread: float = 2.0):
    """A box with an open side and a feature of width zero, points inside it, others anywhere."""
    g = np.random.default_rng(seed)
    x = torch.from_numpy(g.uniform(-1, 1, shape)).float()
    low = x.amin(0) - torch.from_numpy(g.uniform(0, 0.5, shape[1:])).float()
    high = x.amax(0) + torch.from_numpy(g.uniform(0, 0.5, shape[1:])).float()
    low.view(-1)[0], high.view(-1)[1] = -torch.inf, torch.inf
    x.flatten(1)[:, 2] = 0.25
    low.view(-1)[2] = high.view(-1)[2] = 0.25
    z = x + torch.from_numpy(g.normal(0, spread, shape)).float()
    return x, z, low, high, g


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(5, 7), (3, 2, 3, 4)])
@given(seed=st.integers(0, 2**31), radius=st.sampled_from([1e-3, 0.1, 0.7, 3.0, 20.0, float("inf")]))
@few
def test_projection_is_admissible_and_idempotent(name, shape, seed, radius) -> None:
    x, z, low, high, _ = scene(seed, shape)
    space = SPACES[name](low, high)
    w = space.project(z, x, radius)
    assert w.dtype == x.dtype
    assert bool(space.allowed(w, x).all.all())
    assert bool((space.distance(w, x) <= radius).all()), (space.distance(w, x) - radius).max()
    assert torch.allclose(space.project(w, x, radius), w, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**31), radius=st.sampled_from([0.1, 0.7, 3.0]))
@few
def test_projection_is_nearer_than_any_other_admissible_point(name, seed, radius) -> None:
    x, z, low, high, g = scene(seed)
    space = SPACES[name](low, high)
    w = space.project(z, x, radius)
    gap = (w - z).double().flatten(1).norm(dim=1)
    for _ in range(20):
        # anything admissible: random points, and points between the projection and the target pulled back inside
        other = space.project(z + torch.from_numpy(g.normal(0, 1, z.shape)).float() * 0.3, x, radius)
        assert bool(((other - z).double().flatten(1).norm(dim=1) >= gap - 1e-4).all())


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**31))
@few
def test_projection_leaves_inner_points_alone(name, seed) -> None:
    x, z, low, high, _ = scene(seed, spread=0.01)
    space = SPACES[name](low, high)
    inner = torch.clamp(z, low, high)
    assert torch.equal(space.project(inner, x, 7.0), inner)


@pytest.mark.parametrize("name", NAMES)
def test_radius_may_differ_from_row_to_row(name) -> None:
    x, z, low, high, _ = scene(3)
    space = SPACES[name](low, high)
    radii = torch.tensor([0.1, 0.5, 1.0, 2.0, 9.0])
    whole = space.project(z, x, radii)
    alone = torch.cat([space.project(z[i : i + 1], x[i : i + 1], float(radii[i])) for i in range(5)])
    assert torch.allclose(whole, alone, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-30, 1.0, 1e20]))
@few
def test_steepest_has_the_size_asked_for_and_climbs(name, seed, scale) -> None:
    x, z, _, _, _ = scene(seed)
    space, radius = SPACES[name](), 3.0 if name == "l0" else 0.3
    g = (z - x) * scale
    step = space.steepest(g, x, radius)
    nought = torch.zeros_like(step)
    assert torch.allclose(space.distance(step, nought), torch.full((5,), radius, dtype=torch.float64), rtol=1e-5)
    assert bool(((step.double() * g.double()).sum(1) > 0).all())
    assert torch.equal(space.steepest(nought, x, radius), nought)


def test_l1_step_avoids_features_that_the_box_stops() -> None:
    space = SPACES["l1"](0.0, 1.0, share=0.1)
    x = torch.tensor([[1.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]])
    g = torch.tensor([[9.0, -8.0, 3.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    step = space.steepest(g, x, 0.2)
    assert step.nonzero().tolist() == [[0, 2]]
    assert step[0, 2] == pytest.approx(0.2)


@pytest.mark.parametrize(("name", "law"), [("linf", 1 / 2), ("l2", 0.5), ("l1", 0.5)])
def test_samples_are_uniform_in_the_ball(name, law) -> None:
    """The share of a ball's volume within radius r 2^(-1/d) is one half, in every norm."""
    d, n = 3, 4000
    space = SPACES[name]()
    x = torch.zeros(n, d)
    z = space.sample(x, 2.0, Rng(0, n), torch.arange(n))
    inner = (space.distance(z, x) <= 2.0 * 2 ** (-1 / d)).double().mean()
    assert inner == pytest.approx(law, abs=4 * 0.5 / n**0.5)
    assert z.mean(0).abs().max() < 0.1
    assert bool((space.distance(z, x) <= 2.0).all())


@pytest.mark.parametrize("name", NAMES)
def test_samples_do_not_depend_on_neighbours(name) -> None:
    space = SPACES[name](-1.0, 1.0)
    x = torch.rand(6, 4)
    whole = space.sample(x, 0.5, Rng(1, 6), torch.arange(6))
    alone = space.sample(x[3:4], 0.5, Rng(1, [3]), torch.arange(1))
    assert torch.equal(whole[3:4], alone)


def test_box_upside_down_is_refused() -> None:
    with pytest.raises(ValueError, match="above the largest"):
        SPACES["linf"](1.0, 0.0)


@pytest.mark.parametrize("norm", NAMES)
def test_a_row_is_projected_to_the_same_bits_alone_and_among_others(norm: str) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(60, 12, generator=generator)
    z = x + torch.randn(60, 12, generator=generator) * torch.logspace(-3, 1, 60)[:, None]
    space = SPACES[norm](0.0, 1.0)
    radius = {"linf": 0.2, "l2": 0.6, "l1": 1.5, "l0": 4.0}[norm]
    together = space.project(z, x, radius)
    alone = torch.cat([space.project(z[i : i + 1], x[i : i + 1], radius) for i in range(60)])
    assert torch.equal(together, alone)


def test_l0_counts_elements_and_reads_a_radius_as_its_whole_part() -> None:
    space = SPACES["l0"]()
    x, z = torch.zeros(1, 2, 3), torch.tensor([[[0.0, 1e-30, -2.0], [3.0, 0.0, 4.0]]])
    assert space.distance(z, x).tolist() == [4.0]
    for radius, left in ((0.9, []), (1.0, [4.0]), (2.99, [3.0, 4.0]), (3.0, [-2.0, 3.0, 4.0]), (float("inf"), None)):
        w = space.project(z, x, radius)
        assert (w[w != 0].tolist() if left is not None else w.tolist()) == (left if left is not None else z.tolist())


def test_l0_keeps_the_first_of_equal_changes() -> None:
    space = SPACES["l0"](0.0, 1.0)
    x = torch.full((3, 400), 0.5)
    w = space.project(x + 0.25, x, torch.tensor([1.0, 2.0, 5.0]))
    assert [row.nonzero().flatten().tolist() for row in w - x] == [[0], [0, 1], [0, 1, 2, 3, 4]]


@given(seed=st.integers(0, 2**31))
@few
def test_l0_projection_against_every_choice_of_features(seed: int) -> None:
    x, z, low, high, g = scene(seed)
    count = int(g.integers(0, 8))
    found = SPACES["l0"](low, high).project(z, x, float(count))
    clipped = torch.clamp(z, low, high)
    for i in range(len(x)):
        choices = itertools.combinations(range(7), count)
        tried = [torch.where(torch.isin(torch.arange(7), torch.tensor(c)), clipped[i], x[i]) for c in choices]
        best = min(float((w - z[i]).double().square().sum()) for w in tried)
        assert float((found[i] - z[i]).double().square().sum()) == pytest.approx(best, rel=1e-6)


@given(seed=st.integers(0, 2**31))
@few
def test_l0_steps_go_to_the_wall_where_they_gain_most(seed: int) -> None:
    x, z, low, high, _ = scene(seed)
    space, g = SPACES["l0"](low, high), z - x
    step = space.steepest(g, x, 2.0)
    reach = torch.where(g > 0, high - x, x - low)
    reach = torch.where(reach.isfinite(), reach, x.abs().amax(1, keepdim=True).clamp_min(1))
    gain = (g.abs() * reach).sort(dim=1, descending=True).values[:, :2].sum(1)
    assert torch.allclose((g * step).sum(1), gain, rtol=1e-5)
    assert bool((space.distance(step, torch.zeros_like(step)) <= 2).all())
    assert bool(space.allowed(torch.clamp(x + step, low, high), x).all.all())


@pytest.mark.parametrize("sides", [(0.0, 1.0), (-torch.inf, torch.inf)])
def test_l0_samples_change_so_many_features_evenly(sides: tuple[float, float]) -> None:
    n, space = 3000, SPACES["l0"](*sides)
    x = torch.full((n, 6), 0.5)
    z = space.sample(x, 2.5, Rng(0, n), torch.arange(n))
    assert space.distance(z, x).tolist() == [2.0] * n
    assert bool(space.allowed(z, x).all.all())
    often = (z != x).double().mean(0)
    assert bool(((often - 1 / 3).abs() <= 4 * (2 / 9 / n) ** 0.5).all())
