"""What a reader of the report gets to see."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from vauban.core.target import Domain
from vauban.domains.catalog import modality
from vauban.domains.image.modality import png, signed

UNIT = Domain(kind="image", low=0.0, high=1.0)


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (5, 8, 8), (8, 8), (8, 8, 3), (1, 300, 200)])
def test_five_small_pictures(shape: tuple[int, ...]) -> None:
    clean = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    changed = (clean + 0.1).clamp(0, 1)
    show = modality("image").exhibit(clean, changed, clean - 0.5, clean * 0, ["3 becomes 8"], UNIT)
    assert show.title == "3 becomes 8"
    assert len(show.pictures) == 5
    for picture in show.pictures:
        sides = decoded(picture.png).shape[:2]
        assert min(sides) >= 56
        assert max(sides) <= 160
        assert len(picture.png) < 60_000


def test_the_pictures_are_the_inputs() -> None:
    clean = torch.arange(64).reshape(1, 1, 8, 8) / 63
    changed = clean.clone()
    changed[0, 0, 0, 0] = 0.25
    show = modality("image").exhibit(clean, changed, clean * 0, clean * 0, ["c"], UNIT)
    small = [decoded(picture.png)[::7, ::7] for picture in show.pictures]
    np.testing.assert_array_equal(small[0], np.round(clean[0, 0].numpy() * 255))
    np.testing.assert_array_equal(small[2], np.round(changed[0, 0].numpy() * 255))
    assert small[1][0, 0] == 255  # the only change, scaled to full white
    assert set(small[1].ravel()[1:]) == {128}  # mid-grey is none
    assert (small[3] == 255).all()  # no attribution is white


def test_other_units_are_mapped_to_the_box() -> None:
    clean = torch.full((1, 1, 8, 8), -1.0)
    changed = torch.full((1, 1, 8, 8), 3.0)
    domain = Domain(kind="image", low=-1.0, high=torch.full((1, 1, 1), 3.0))
    show = modality("image").exhibit(clean, changed, clean * 0, clean * 0, ["c"], domain)
    assert decoded(show.pictures[0].png).max() == 0
    assert decoded(show.pictures[2].png).min() == 255


def test_signs_of_attributions_are_colours() -> None:
    colours = signed(torch.tensor([[[1.0, -1.0, 0.0]]]), 1.0)[:, 0]
    assert colours[0, 0] > 0.7 > 0.3 > colours[2, 0]
    assert colours[2, 1] > 0.7 > 0.3 > colours[0, 1]
    assert (colours[:, 2] == 1).all()


def test_png_keeps_colours() -> None:
    picture = np.zeros((3, 4, 4))
    picture[1] = 1
    np.testing.assert_array_equal(decoded(png(picture))[0, 0], [0, 255, 0])


def test_tables_show_the_largest_changes_first() -> None:
    clean = torch.arange(30.0).reshape(1, 30)
    changed = clean.clone()
    changed[0, 4], changed[0, 20] = 10.0, 19.5
    names = tuple(f"f{i}" for i in range(30))
    show = modality("tabular").exhibit(
        clean, changed, clean, -clean, ["x"], Domain(kind="tabular", feature_names=names)
    )
    assert len(show.rows) == 12
    assert show.rows[0] == ["f4", "4", "10", "+6", "+4", "-4"]
    assert show.rows[1][:4] == ["f20", "20", "19.5", "-0.5"]
    assert "2 of 30 features changed" in show.note
    assert all(len(row) == len(show.columns) for row in show.rows)
    unnamed = modality("tabular").exhibit(clean.reshape(1, 5, 6), changed.reshape(1, 5, 6), clean, clean, [], Domain())
    assert unnamed.rows[0][0] == "4"
