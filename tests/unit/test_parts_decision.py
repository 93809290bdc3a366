"""Searches along a path, directions made of waves, arcs, and what label-only attacks in Linf flip."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vauban.attacks.evasion.adba import _FIT, median
from vauban.attacks.evasion.signs import halves
from vauban.core.rng import Rng
from vauban.parts.decision import Waves, arc, beside, bisect, cosines, farthest
from vauban.parts.estimators import boundary_normal, lengths

SHAPES = [(12,), (3, 4), (2, 5, 4), (1,), (1, 1, 6)]


def counted(edges: Tensor) -> tuple[list[int], object]:
    calls = [0]

    def hits(at: Tensor) -> Tensor:
        calls[0] += 1
        return at <= edges

    return calls, hits


def test_bisection_closes_in_on_every_row_s_own_edge() -> None:
    edges = torch.tensor([0.1, 0.5, 0.999], dtype=torch.float64)
    calls, hits = counted(edges)
    miss, hit = bisect(hits, torch.ones(3).double(), torch.zeros(3).double(), 12)  # type: ignore[arg-type]
    assert calls == [12]
    assert bool((hit <= edges).all())
    assert bool((miss > edges).all())
    assert torch.allclose(miss - hit, torch.full((3,), 2.0**-12).double(), rtol=1e-9)


@pytest.mark.parametrize("first", [0.003, 0.3])
def test_the_farthest_hit_is_found_from_any_first_guess(first: float) -> None:
    edges = torch.tensor([0.0, 0.002, 0.3, 1.2, 9.0], dtype=torch.float64)
    calls, hits = counted(edges)
    found = farthest(hits, torch.full((5,), first).double(), math.pi / 2, 30)  # type: ignore[arg-type]
    assert calls == [30]
    assert torch.allclose(found, edges.clamp_max(math.pi / 2), atol=1e-4)
    assert bool((found <= edges).all())


@pytest.mark.parametrize("shape", SHAPES)
def test_directions_are_at_right_angles_and_of_length_one(shape: tuple[int, ...]) -> None:
    d, rows = math.prod(shape), torch.arange(3)
    waves = Waves.of(torch.zeros(3, *shape), 0.3)
    for count in {1, max(1, d // 2), d}:
        ways = waves.directions(count, Rng(1, 3), rows)
        assert ways.shape == (3, count, *shape)
        flat = ways.flatten(2).double()
        gram = flat @ flat.transpose(1, 2)
        assert torch.allclose(gram, torch.eye(count).double().expand(3, -1, -1), atol=1e-5)
    assert torch.allclose(lengths(waves.noise(1.0, Rng(1, 3), rows)), torch.ones(3), atol=1e-5)


def test_waves_are_sums_of_cosines() -> None:
    high, wide = 5, 4
    waves = Waves.of(torch.zeros(1, 2, high, wide, dtype=torch.float64), 0.3)
    weights = torch.randn(1, 1, 2 * high * wide, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made, parts = waves.compose(weights)[0, 0], weights.view(2, high, wide)
    for c, y, x in itertools.product(range(2), range(high), range(wide)):
        truth = 0.0
        for p, q in itertools.product(range(high), range(wide)):
            size = math.sqrt((1 if p == 0 else 2) / high * (1 if q == 0 else 2) / wide)
            wave = math.cos(math.pi * p * (y + 0.5) / high) * math.cos(math.pi * q * (x + 0.5) / wide)
            truth += float(parts[c, p, q]) * size * wave
        assert float(made[c, y, x]) == pytest.approx(truth, abs=1e-12)


def test_slow_waves_are_favoured_where_there_are_two_sides_and_features_are_not() -> None:
    picture, vector = Waves.of(torch.zeros(1, 1, 8, 8), 0.3), Waves.of(torch.zeros(1, 64), 0.3)
    rows = torch.arange(400)
    weights = cosines(8).float() @ picture.directions(8, Rng(0, 400), rows)[:, :, 0] @ cosines(8).float().T
    energy = weights.square().mean((0, 1))
    assert float(energy[0, 0]) > 3 * float(energy[7, 7]) > 0
    energy = vector.directions(8, Rng(0, 400), rows).square().mean((0, 1))
    assert torch.allclose(energy, torch.full((64,), 1 / 64), rtol=0.5)


def test_right_angles_make_an_estimate_of_a_normal_as_good_as_said() -> None:
    d, rows, rng = 64, torch.arange(200), Rng(3, 200)
    true = rng.normal(rows, (d,))
    cosine = []
    for ways in (Waves.of(torch.zeros(200, d), 0.3).directions(d, rng, rows), rng.normal(rows, (d, d))):
        reached = (ways * true[:, None]).sum(2) > 0
        found = boundary_normal(ways, reached, torch.ones_like(reached))
        cosine.append(float(torch.cosine_similarity(found, true).mean()))
    assert cosine[0] == pytest.approx(0.80, abs=0.03)
    assert cosine[1] == pytest.approx(0.62, abs=0.03)


def test_an_arc_lies_on_the_circle_over_the_change() -> None:
    g = torch.Generator().manual_seed(0)
    x, change, way = torch.randn(3, 4, 2, 3, dtype=torch.float64, generator=g)
    side = beside(way, change)
    assert torch.allclose((side * change).flatten(1).sum(1), torch.zeros(4).double(), atol=1e-12)
    angle = torch.tensor([0.0, 0.4, 1.0, math.pi / 2], dtype=torch.float64)
    point = arc(x, change, side, angle)
    # Thales: the diameter is seen at a right angle
    assert torch.allclose(((point - x) * (point - x - change)).flatten(1).sum(1), torch.zeros(4).double(), atol=1e-12)
    assert torch.allclose(lengths(point - x), lengths(change) * torch.cos(angle), atol=1e-12)


def test_the_median_halves_the_chance_of_a_boundary() -> None:
    a, b, c, d = _FIT
    low, high, best = torch.tensor([[0.0, 0.2, 1.9], [1.0, 0.9, 2.0], [1.0, 1.0, 2.0]], dtype=torch.float64)
    middle = median(low, high, best)
    assert bool(((low < middle) & (middle < high)).all())
    for start, at, stop, unit in zip(low, middle, high, best, strict=True):
        masses = []
        for left, right in ((start, at), (at, stop)):
            r = np.linspace(float(left), float(right), 20_001)
            masses.append(np.trapezoid(a / ((1 - r / float(unit)) + d) ** b + c, r))
        assert masses[0] == pytest.approx(masses[1], rel=1e-4)


@pytest.mark.parametrize("d", [2, 7, 16])
def test_halves_of_every_level_cover_all_features_once(d: int) -> None:
    pairs, level = halves(d), 1
    while 2**level < 2 * d:
        blocks: list[tuple[int, int]] = []
        while not blocks or blocks[-1][1] < d:
            blocks += next(pairs)
        assert [i for start, stop in blocks for i in range(start, stop)] == list(range(d))
        assert max(stop - start for start, stop in blocks) <= math.ceil(d / 2**level)
        level += 1
    assert next(pairs) == ((0, d // 2), (d // 2, d))
