"""Pictures that are mirrored and moved: beside loops over pixels, and there and back."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vauban.core.rng import Rng
from vauban.parts.augment import Moved, drawn

SIDES = st.integers(1, 6)


def slow(x: Tensor, mirrored: bool, down: int, right: int) -> Tensor:
    """One picture `[height, width]`, pixel by pixel."""
    height, width = x.shape
    out = torch.empty_like(x)
    for i in range(height):
        for j in range(width):
            a, b = min(max(i - down, 0), height - 1), min(max(j - right, 0), width - 1)
            out[i, j] = x[a, width - 1 - b if mirrored else b]
    return out


@given(st.integers(0, 2**32), SIDES, SIDES, st.integers(0, 5), st.booleans(), st.sampled_from([(), (1,), (3,)]))
def test_it_is_what_loops_over_pixels_say(
    seed: int, height: int, width: int, crop: int, flip: bool, front: tuple[int, ...]
) -> None:
    x = torch.rand(4, *front, height, width, generator=torch.Generator().manual_seed(seed))
    moved = drawn(Rng(seed, 4), torch.arange(4), crop, flip)
    found = moved.there(x).reshape(4, -1, height, width)
    assert found.shape[0] == 4
    assert moved.there(x).shape == x.shape
    for row, planes in enumerate(x.reshape(4, -1, height, width)):
        how = bool(moved.mirrored[row]), int(moved.down[row]), int(moved.right[row])
        assert abs(how[1]) <= crop
        assert abs(how[2]) <= crop
        assert flip or not how[0]
        for plane, got in zip(planes, found[row], strict=True):
            assert torch.equal(slow(plane, *how), got)


@given(st.integers(0, 2**32), st.integers(0, 2), st.booleans())
def test_what_stayed_in_the_picture_comes_back(seed: int, crop: int, flip: bool) -> None:
    x = torch.rand(5, 2, 7, 6, generator=torch.Generator().manual_seed(seed))
    moved = drawn(Rng(seed, 5), torch.arange(5), crop, flip)
    back = moved.back(moved.there(x))
    assert torch.equal(back[..., crop : 7 - crop, crop : 6 - crop], x[..., crop : 7 - crop, crop : 6 - crop])


def test_a_row_does_not_depend_on_its_neighbours_and_all_moves_occur() -> None:
    whole = drawn(Rng(3, 2000), torch.arange(2000), 2, True)
    part = drawn(Rng(3, 2000), torch.tensor([7, 1999]), 2, True)
    for all_rows, two in zip(vars(whole).values(), vars(part).values(), strict=True):
        assert torch.equal(all_rows[[7, 1999]], two)
    assert 900 < int(whole.mirrored.sum()) < 1100
    for moves in (whole.down, whole.right):
        assert torch.bincount(moves + 2, minlength=5).min() > 300
        assert set(moves.tolist()) == {-2, -1, 0, 1, 2}


def test_standing_still_changes_nothing() -> None:
    x = torch.rand(3, 1, 4, 4)
    still = Moved(torch.zeros(3, dtype=torch.bool), torch.zeros(3).long(), torch.zeros(3).long())
    assert torch.equal(still.there(x), x)
    assert torch.equal(still.back(x), x)
