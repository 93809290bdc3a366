"""Crossing a plane inside a box: admissible, across, and no other way is shorter."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch import Tensor

from vauban.parts.halfspace import GROWTHS, cross, size

NORMS = sorted(GROWTHS)
ORDER = {"linf": torch.inf, "l2": 2.0, "l1": 1.0, "l0": 0.0}
few = settings(max_examples=40, deadline=None)


def scene(seed: int, d: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows, slopes (some features without one), gaps within reach of the box, and the box: features on walls, an open side."""
    g = np.random.default_rng(seed)
    low, high = torch.zeros(d), torch.ones(d)
    x = torch.from_numpy(g.uniform(0, 1, (4, d))).float()
    x[:, 0], x[:, 1] = 0.0, 1.0
    slope = torch.from_numpy(g.normal(0, 1, (4, d))).float()
    slope[:, 2] = 0.0
    room = torch.where(slope > 0, high - x, x - low)
    gap = (slope.abs() * room).sum(1) * torch.from_numpy(g.uniform(0.05, 0.9, 4)).float()
    return x, slope, gap, low, high


@pytest.mark.parametrize("norm", NORMS)
@given(seed=st.integers(0, 2**31))
@few
def test_the_gap_is_gained_inside_the_box_at_the_distance_that_is_told(norm: str, seed: int) -> None:
    x, slope, gap, low, high = scene(seed)
    z = cross(x, slope, gap, low, high, norm)
    assert bool(((z >= low) & (z <= high)).all())
    gained = (slope.double() * (z - x).double()).sum(1)
    assert bool((gained >= gap * (1 - 1e-5) - 1e-6).all())
    far = torch.linalg.vector_norm((z - x).double(), ord=ORDER[norm], dim=1)
    assert torch.allclose(far, size(x, slope, gap, low, high, norm), rtol=1e-5, atol=1e-7)


@given(seed=st.integers(0, 2**31))
@few
def test_against_general_solvers(seed: int) -> None:
    x, slope, gap, low, high = scene(seed)
    for i in range(len(x)):
        w, c, d = slope[i].double().numpy(), float(gap[i]), x.shape[1]
        down, up = (low - x[i]).double().numpy(), (high - x[i]).double().numpy()
        row = (x[i : i + 1], slope[i : i + 1], gap[i : i + 1], low, high)
        # L1: change = plus - minus, both >= 0
        l1 = linprog(
            np.ones(2 * d), A_ub=[np.r_[-w, w]], b_ub=[-c], bounds=[(0, u) for u in up] + [(0, -e) for e in down]
        )
        assert float(size(*row, "l1")) == pytest.approx(l1.fun, rel=1e-6)
        # Linf: minimise t with |change| <= t
        eye, one = np.eye(d), np.ones((d, 1))
        within = np.r_[np.c_[eye, -one], np.c_[-eye, -one], np.r_[-w, 0.0][None]]
        linf = linprog(
            np.r_[np.zeros(d), 1.0],
            A_ub=within,
            b_ub=np.r_[np.zeros(2 * d), -c],
            bounds=[*zip(down, up, strict=True), (0, None)],
        )
        assert float(size(*row, "linf")) == pytest.approx(linf.fun, rel=1e-6)
        subsets = (s for k in range(1, d + 1) for s in itertools.combinations(range(d), k))
        reach = np.abs(w) * np.where(w > 0, up, -down)
        fewest = next(len(s) for s in subsets if reach[list(s)].sum() >= c)
        assert float(size(*row, "l0")) == fewest


@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_l2_against_a_general_solver(seed: int) -> None:
    x, slope, gap, low, high = scene(seed)
    w, c = slope[0].double().numpy(), float(gap[0])
    bounds = [(float(a), float(b)) for a, b in zip(low - x[0], high - x[0], strict=True)]
    start = np.array([b if s > 0 else a for (a, b), s in zip(bounds, w, strict=True)])
    found = minimize(
        lambda v: v @ v,
        start,
        jac=lambda v: 2 * v,
        bounds=bounds,
        constraints=[{"type": "ineq", "fun": lambda v: w @ v - c, "jac": lambda v: w}],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 300},
    )
    mine = float(size(x[:1], slope[:1], gap[:1], low, high, "l2"))
    assert mine <= found.fun**0.5 * (1 + 1e-5)
    assert mine >= found.fun**0.5 * (1 - 1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_an_open_box_gives_the_dual_norm(norm: str) -> None:
    x, slope, gap, _, _ = scene(5)
    low, high = torch.tensor(-torch.inf), torch.tensor(torch.inf)
    dual = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}
    far = size(x, slope, gap, low, high, norm)
    wanted = gap / torch.linalg.vector_norm(slope, ord=dual[norm], dim=1) if norm in dual else torch.ones(4)
    assert torch.allclose(far, wanted.double(), rtol=1e-5)
    assert bool(cross(x, slope, gap, low, high, norm).isfinite().all())


@pytest.mark.parametrize("norm", NORMS)
def test_what_is_out_of_reach_takes_all_the_room_and_no_gap_takes_none(norm: str) -> None:
    x, slope, gap, low, high = scene(6)
    corner = torch.where(slope > 0, high, torch.where(slope < 0, low, x))
    assert torch.equal(cross(x, slope, gap * 100, low, high, norm), corner)
    assert bool(size(x, slope, gap * 100, low, high, norm).isinf().all())
    assert torch.equal(cross(x, slope, -gap, low, high, norm), x)
    assert torch.equal(cross(x, torch.zeros_like(x), gap, low, high, norm), x)


@pytest.mark.parametrize("norm", NORMS)
def test_a_row_is_rounded_alike_alone_and_among_others(norm: str) -> None:
    g = torch.Generator().manual_seed(1)
    x, slope = torch.rand(64, 30, generator=g), torch.randn(64, 30, generator=g)
    gap = torch.rand(64, generator=g) * 5
    low, high = torch.zeros(()), torch.ones(())
    whole = cross(x, slope, gap, low, high, norm)
    alone = [cross(x[i : i + 1], slope[i : i + 1], gap[i : i + 1], low, high, norm) for i in range(64)]
    assert torch.equal(whole, torch.cat(alone))
