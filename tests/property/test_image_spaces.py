"""Spaces of pictures: knobs at zero change nothing, distances and boxes hold, rows do not see their neighbours."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from vauban.core.rng import Rng
from vauban.domains.image.spaces import PICTURES, TURNED
from vauban.parts import windows
from vauban.schema.errors import BadThreat

LOW, HIGH = torch.tensor(0.0), torch.tensor(1.0)
ROOM = {
    "rotation": 40.0,
    "translation": 2.5,
    "rigid": 25.0,
    "flow": 0.8,
    "brightness": 0.3,
    "contrast": 0.6,
    "gamma": 1.0,
    "saturation": 0.8,
    "hue": 60.0,
    "blur": 1.5,
    "corruption": 3.0,
    "patch": 0.1,
}
NAMES = sorted(ROOM)
KNOBS = [name for name in NAMES if name != "patch"]
SHAPES = {"colour": (3, 7, 9), "last": (7, 9, 3)}


def pictures(shape: tuple[int, ...], rows: int = 6, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    x = torch.rand(rows, *shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    # some pixels lie on the walls, as in drawings
    return torch.where(x < 0.2, 0.0, torch.where(x > 0.9, 1.0, x))


def test_every_space_has_a_row_here() -> None:
    assert sorted(PICTURES) == NAMES
    assert [space.name for space in TURNED] == [name for name in PICTURES if name != "patch"]


@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_the_start_is_the_picture_itself_and_draws_keep_radius_and_box(
    name: str, dtype: torch.dtype, shape: str
) -> None:
    x, rows = pictures(SHAPES[shape], dtype=dtype), torch.arange(6)
    space = PICTURES[name](LOW, HIGH)
    frame = space.frame(x, range(6))
    assert torch.equal(frame.render(frame.start, rows), x)
    z = space.sample(frame.start, ROOM[name], Rng(0, 6), rows)
    assert z.dtype == dtype
    assert bool((space.distance(z, frame.start) <= ROOM[name]).all())
    assert bool(space.allowed(z, frame.start).all.all())
    changed = frame.render(z, rows)
    assert changed.shape == x.shape
    assert changed.dtype == dtype
    assert bool(((changed >= 0) & (changed <= 1)).all())
    # a blur drawn too small to reach the next pixel changes nothing
    assert int((changed != x).flatten(1).any(1).sum()) >= 5


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("saturation", "hue")])
def test_grey_pictures_without_a_channel_axis_are_those_with_one(name: str) -> None:
    x, rows = pictures((1, 8, 6)), torch.arange(6)
    space = PICTURES[name](LOW, HIGH)
    one, two = space.frame(x), space.frame(x[:, 0])
    z = space.sample(one.start, ROOM[name], Rng(0, 6), rows)
    flat = z[:, 0] if name == "patch" else z
    assert torch.equal(one.render(z, rows)[:, 0], two.render(flat, rows))
    assert space.distance(flat, two.start).tolist() == space.distance(z, one.start).tolist()


@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize("name", NAMES)
def test_every_pixel_may_have_a_range_of_its_own(name: str, shape: str) -> None:
    x, rows = pictures(SHAPES[shape]), torch.arange(6)
    low, high = x.amin(0) - 0.1, x.amax(0) + 0.1
    space = PICTURES[name](low, high)
    frame = space.frame(x)
    assert torch.equal(frame.render(frame.start, rows), x)
    changed = frame.render(space.sample(frame.start, ROOM[name], Rng(0, 6), rows), rows)
    assert bool(((changed >= low) & (changed <= high)).all())
    assert not torch.equal(changed, x)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("gamma", "corruption")])
def test_no_range_need_be_known(name: str) -> None:
    x, rows = 5 * pictures((3, 7, 9)) - 2, torch.arange(6)
    space = PICTURES[name](torch.tensor(-torch.inf), torch.tensor(torch.inf))
    frame = space.frame(x)
    assert torch.equal(frame.render(frame.start, rows), x)
    changed = frame.render(space.sample(frame.start, ROOM[name], Rng(0, 6), rows), rows)
    assert bool(changed.isfinite().all())
    assert not torch.equal(changed, x)


@pytest.mark.parametrize("name", KNOBS)
def test_a_picture_is_rendered_alike_in_any_batch_with_the_same_slope(name: str) -> None:
    x, rows = pictures((3, 9, 11), rows=11), torch.arange(11)
    space = PICTURES[name](LOW, HIGH)
    frame = space.frame(x, range(100, 111))
    z = space.sample(frame.start, ROOM[name], Rng(0, 11), rows)

    def shown(part: Tensor) -> tuple[Tensor, Tensor]:
        leaf = z[part].clone().requires_grad_(True)
        out = frame.render(leaf, part)
        slope = torch.autograd.grad((out**2).sum(), leaf)[0] if out.requires_grad else torch.zeros_like(leaf)
        return out.detach(), slope

    whole, slopes = shown(rows)
    for start in range(0, 11, 3):
        part = rows[start : start + 3]
        out, slope = shown(part)
        assert torch.equal(out, whole[part])
        assert torch.equal(slope, slopes[part])


@pytest.mark.parametrize("name", [n for n in KNOBS if n != "corruption"])
def test_slopes_are_those_of_small_differences(name: str) -> None:
    x, rows = pictures((3, 8, 8), rows=3, dtype=torch.float64), torch.arange(3)
    # away from the walls, where clipping has no slope
    space = PICTURES[name](torch.tensor(-9.0), torch.tensor(9.0))
    frame = space.frame(x)
    weight = torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    at = space.sample(frame.start, ROOM[name] / 2, Rng(3, 3), rows)
    at = torch.where(at.abs() < 0.05 * ROOM[name], 0.31 * ROOM[name], at)

    def score(z: Tensor) -> Tensor:
        return (frame.render(z, rows) * weight).flatten(1).sum(1)

    leaf = at.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(score(leaf).sum(), leaf)
    way = torch.randn(at.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        found = (score(at + step * way) - score(at - step * way)) / (2 * step)
    assert torch.allclose((slope * way).flatten(1).sum(1), found, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", KNOBS)
@given(seed=st.integers(0, 999), stretch=st.floats(0.1, 30))
@settings(max_examples=20, deadline=None)
def test_projections_are_inside_and_leave_alone_what_is(name: str, seed: int, stretch: float) -> None:
    space = PICTURES[name](LOW, HIGH)
    start = space.frame(pictures((3, 6, 6), rows=4)).start
    z = torch.randn(start.shape, generator=torch.Generator().manual_seed(seed)) * ROOM[name] * stretch
    near = space.project(z, start, ROOM[name])
    assert bool((space.distance(near, start) <= ROOM[name]).all())
    assert bool(space.allowed(near, start).all.all())
    assert torch.equal(space.project(near, start, ROOM[name]), near)


@pytest.mark.parametrize("name", KNOBS)
def test_a_lattice_stays_inside_and_reaches_the_edge(name: str) -> None:
    space = PICTURES[name](LOW, HIGH)
    start = space.frame(pictures((3, 6, 6), rows=1)).start
    if name == "flow":
        return  # far too many knobs: nobody asks for one
    points = space.lattice(start, ROOM[name], 300)
    zero = start.expand_as(points)
    far = space.distance(points, zero)
    assert 2 < len(points) <= 300
    assert len(points.unique(dim=0)) == len(points)
    assert float(far.max()) == pytest.approx(ROOM[name])
    assert bool((far > 0).all())
    assert bool(space.allowed(points, zero).all.all())
    assert all(space.told(points))


@given(seed=st.integers(0, 9999), share=st.floats(0.02, 1.0))
@example(seed=0, share=math.nextafter(1.0, 0.0))
@settings(max_examples=40, deadline=None)
def test_a_patch_is_the_best_rectangle_of_all(seed: int, share: float) -> None:
    """Against every rectangle, one by one; a share that falls short of whole pixels by rounding alone means them."""
    h, w = 5, 6
    most = share * (1 + windows.ROUNDING)
    g = torch.Generator().manual_seed(seed)
    x, z = torch.rand(1, 2, h, w, generator=g), torch.rand(1, 2, h, w, generator=g) * 2 - 0.5
    space = PICTURES["patch"](LOW, HIGH)
    near = space.project(z, x, share)
    assert float(space.distance(near, x)) <= most
    nearest = math.inf
    for top in range(h):
        for left in range(w):
            for a in range(h - top + 1):
                for b in range(w - left + 1):
                    if a * b <= most * h * w:
                        other = x.clone()
                        cut = (..., slice(top, top + a), slice(left, left + b))
                        other[cut] = z[cut].clamp(0, 1)
                        nearest = min(nearest, float((other.double() - z.double()).norm()))
    assert float((near.double() - z.double()).norm()) == pytest.approx(nearest, rel=1e-6)


@given(seed=st.integers(0, 9999))
@settings(max_examples=40, deadline=None)
def test_a_patch_is_measured_by_its_bounding_rectangle(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    changed = torch.rand(3, 6, 7, generator=g) < 0.1
    for row, size in zip(changed, windows.bounding(changed).tolist(), strict=True):
        at = row.nonzero()
        sides = (at.amax(0) - at.amin(0) + 1).tolist() if len(at) else [0, 0]
        assert size == sides[0] * sides[1]


def test_shapes_of_rectangles_are_all_that_none_contains() -> None:
    brute = {(a, b) for a in range(1, 7) for b in range(1, 10) if a * b <= 0.3 * 54}
    best = {(a, b) for a, b in brute if not any((c, d) != (a, b) and c >= a and d >= b for c, d in brute)}
    assert set(windows.shapes(6, 9, 0.3)) == best
    assert windows.shapes(6, 9, 0.01) == []
    assert all(a * b <= 0.05 * 224 * 224 for a, b in windows.shapes(224, 224, 0.05))


@pytest.mark.parametrize("kind", PICTURES["corruption"](LOW, HIGH).knobs)
def test_the_worst_corruption_changes_more_than_the_least_and_all_belong_to_the_picture(kind: str) -> None:
    space = PICTURES["corruption"](LOW, HIGH)
    x = torch.nn.functional.interpolate(pictures((3, 8, 8), rows=12), size=(32, 32), mode="bilinear")
    frame, rows = space.frame(x, range(12)), torch.arange(12)
    sizes = []
    for severity in range(1, 6):
        z = torch.zeros_like(frame.start)
        z[:, space.knobs.index(kind)] = severity
        out = frame.render(z, rows)
        again = space.frame(x[3:5], [3, 4]).render(z[3:5], torch.arange(2))
        assert torch.equal(again, out[3:5])
        sizes.append(float((out - x).double().square().mean()))
    assert 1e-5 < sizes[0] < sizes[4]


def test_what_a_picture_lacks_is_said_in_one_sentence() -> None:
    for name in NAMES:
        with pytest.raises(BadThreat, match="the rows here have shape"):
            PICTURES[name](LOW, HIGH).frame(torch.rand(2, 5))
    for name in ("saturation", "hue"):
        with pytest.raises(BadThreat, match="three channels, and these have 1"):
            PICTURES[name](LOW, HIGH).frame(torch.rand(2, 1, 5, 5))
    for name in ("gamma", "corruption"):
        with pytest.raises(BadThreat, match="--bounds 0,1"):
            PICTURES[name](torch.tensor(-torch.inf), torch.tensor(torch.inf)).frame(torch.rand(2, 1, 5, 5))


def test_a_turn_by_ninety_degrees_and_a_whole_shift_are_exact() -> None:
    x, rows = pictures((1, 8, 8)), torch.arange(6)
    turned = PICTURES["rotation"](LOW, HIGH).frame(x).render(torch.full((6, 1), 90.0), rows)
    assert torch.allclose(turned, x.rot90(1, (2, 3)), atol=1e-5) or torch.allclose(
        turned, x.rot90(-1, (2, 3)), atol=1e-5
    )
    shifted = PICTURES["translation"](LOW, HIGH).frame(x).render(torch.tensor([[2.0, -3.0]]).expand(6, 2), rows)
    assert torch.allclose(shifted[..., 2:, :5], x[..., :6, 3:], atol=1e-5)
    assert bool((shifted[..., :2, :] == 0).all() and (shifted[..., 5:] == 0).all())
