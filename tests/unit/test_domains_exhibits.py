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
def test_six_small_pictures(shape: tuple[int, ...]) -> None:
    clean = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    changed = (clean + 0.1).clamp(0, 1)
    show = modality("image").exhibit(clean, changed, clean - 0.5, clean * 0, ["3 becomes 8"], UNIT)
    assert show.title == "3 becomes 8"
    assert len(show.pictures) == 6
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
    np.testing.assert_array_equal(small[1], np.round(changed[0, 0].numpy() * 255))
    assert small[2][0, 0] == 255  # the only change, scaled to full white
    assert set(small[2].ravel()[1:]) == {128}  # mid-grey is none
    assert all((picture == 255).all() for picture in small[3:])  # no attribution is white


def test_attributions_and_their_change_share_a_scale() -> None:
    clean = torch.zeros(1, 1, 8, 8)
    before, after = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    before[..., 0, 0], after[..., 0, 0], after[..., 0, 1] = 1.0, 0.5, -1.0
    show = modality("image").exhibit(clean, clean, before, after, ["c"], UNIT)
    was, now, change = (decoded(p.png)[::7, ::7] / 255 for p in show.pictures[3:])
    np.testing.assert_allclose(change[0, 0], now[0, 1] * 0 + 1 - 0.5 * (1 - np.array([0.10, 0.32, 0.75])), atol=0.01)
    np.testing.assert_array_equal(change[0, 1], now[0, 1])
    np.testing.assert_allclose(1 - now[0, 0], (1 - was[0, 0]) / 2, atol=0.01)


def test_without_attack_or_attribution_there_are_fewer_pictures() -> None:
    clean = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    image = modality("image")
    alone = image.exhibit(clean, None, clean, None, ["c"], UNIT)
    assert [p.caption for p in alone.pictures] == ["input", "attribution"]
    blind = image.exhibit(clean, 1 - clean, None, None, ["c"], UNIT)
    assert [p.caption.split()[0] for p in blind.pictures] == ["clean", "adversarial", "change"]
    assert "red" not in blind.note.lower()


def test_tables_show_the_features_that_matter_most() -> None:
    clean, attribution = torch.zeros(1, 20), torch.arange(20.0)[None] / 10
    names = tuple(f"f{i}" for i in range(20))
    domain = Domain(kind="tabular", feature_names=names)
    alone = modality("tabular").exhibit(clean, None, attribution, None, ["c"], domain)
    assert alone.columns == ["feature", "value", "attribution"]
    assert alone.rows[0] == ["f19", "0", "+1.9"]
    assert alone.bars is not None
    assert alone.bars.labels == [f"f{i}" for i in range(19, 11, -1)]
    after = -attribution.clone()
    after[0, 0] = 9.0
    both = modality("tabular").exhibit(clean, clean + 1, attribution, after, ["c"], domain)
    assert both.bars is not None
    assert both.bars.labels[:2] == ["f0", "f19"]
    assert [row[:2] for row in both.bars.values] == [[0.0, pytest.approx(1.9)], [9.0, pytest.approx(-1.9)]]
    blind = modality("tabular").exhibit(clean, clean + 1, None, None, ["c"], domain)
    assert blind.bars is None
    assert blind.columns == ["feature", "clean", "changed", "difference"]


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
