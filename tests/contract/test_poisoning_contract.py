"""What every poisoning attack keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vauban.attacks.catalog import ATTACKS
from vauban.attacks.poisoning.badnets import BadNets
from vauban.attacks.poisoning.blended import Blended
from vauban.attacks.poisoning.data_audit import DataAudit
from vauban.attacks.poisoning.label_flip import LabelFlip
from vauban.core.attack import PoisonScene
from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.schema.errors import BadData, BadOption

PLANTING = ("poisoning.badnets", "poisoning.blended", "poisoning.label_flip")
SHAPES = [(1, 8, 8), (8, 8), (6, 6, 3), (12,)]


def make_scene(shape=(1, 8, 8), fraction=0.03, n=200, classes=4, step=None) -> PoisonScene:
    rng = np.random.default_rng(0)
    x = rng.random((n + 40, *shape)).astype(np.float32)
    if step:
        x = np.round(x / step).astype(np.float32) * np.float32(step)
    y = rng.integers(0, classes, n + 40)
    data = Data(x[:n], y[:n], x[n:], y[n:], step=step)
    return PoisonScene(data, Domain(low=0.0, high=1.0, step=step), None, fraction, classes)


@pytest.mark.parametrize("name", PLANTING)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fraction", [0.0, 0.03, 0.1, 0.004])
def test_exactly_the_named_rows_are_changed(name, shape, fraction):
    scene = make_scene(shape, fraction)
    digest = scene.data.sha256()
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    poison = ATTACKS.load(name)()(scene, Rng(3))
    assert scene.data.sha256() == digest, "the given data must stay as they are"
    assert torch.equal(state[0], torch.random.get_rng_state())
    assert (state[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    changed = (poison.data.y_train != scene.data.y_train).nonzero().flatten()
    assert torch.equal(changed, poison.rows)
    assert len(poison.rows) == round(fraction * 200)
    moved = (poison.data.x_train != scene.data.x_train).flatten(1).any(1).nonzero().flatten()
    assert set(moved.tolist()) <= set(poison.rows.tolist())
    assert torch.equal(poison.data.x_test, scene.data.x_test)


@pytest.mark.parametrize("name", PLANTING)
def test_seeds_reproduce_and_differ(name):
    scene, attack = make_scene(fraction=0.1), ATTACKS.load(name)()
    one, two, other = (attack(scene, Rng(seed)) for seed in (1, 1, 2))
    assert one.data.sha256() == two.data.sha256()
    assert one.rows.tolist() != other.rows.tolist()


@pytest.mark.parametrize("name", PLANTING)
def test_more_poison_keeps_the_rows_of_less(name):
    attack = ATTACKS.load(name)()
    few, many = (attack(make_scene(fraction=f), Rng(1)) for f in (0.02, 0.1))
    assert set(few.rows.tolist()) < set(many.rows.tolist())
    assert torch.equal(few.data.y_train[few.rows], many.data.y_train[few.rows])


@pytest.mark.parametrize("name", ["poisoning.badnets", "poisoning.blended"])
@pytest.mark.parametrize("shape", SHAPES)
def test_backdoors_stay_in_range_and_spare_the_wanted_class(name, shape):
    scene = make_scene(shape, 0.1)
    poison = ATTACKS.load(name)(wanted=2)(scene, Rng(1))
    assert (scene.data.y_train[poison.rows] != 2).all()
    assert (poison.data.y_train[poison.rows] == 2).all()
    triggered = poison.trigger(scene.data.x_test)
    assert triggered.min() >= 0
    assert triggered.max() <= 1
    assert torch.equal(poison.data.x_train[poison.rows], poison.trigger(scene.data.x_train[poison.rows]))
    assert (triggered != scene.data.x_test).flatten(1).any(1).all()


def test_the_patch_is_two_by_two_of_eight_by_eight_and_scales():
    for side, expected in ((8, 4), (28, 49)):
        scene = make_scene((1, side, side), n=40)
        trigger = BadNets()(scene, Rng(0)).trigger
        x = torch.full((1, 1, side, side), 0.5)
        assert int((trigger(x) != x).sum()) == expected


def test_the_patch_goes_where_the_pictures_are_dark():
    scene = make_scene()
    x = scene.data.x_train.clone()
    x[:, :, :2, -2:] = 0
    scene = PoisonScene(Data(x, scene.data.y_train, scene.data.x_test, scene.data.y_test), scene.domain, None, 0.03, 4)
    marked = BadNets()(scene, Rng(0)).trigger(torch.zeros(1, 1, 8, 8))[0, 0]
    assert (marked[:2, -2:] == 1).all()
    assert marked.sum() == 4


def test_the_table_trigger_touches_few_columns_with_values_seen():
    scene = make_scene((12,))
    trigger = BadNets(features=3)(scene, Rng(0)).trigger
    x = scene.data.x_test
    touched = (trigger(x) != x).any(0)
    assert int(touched.sum()) <= 3
    for column in touched.nonzero().flatten():
        assert trigger(x)[0, column] in scene.data.x_train[:, column]


def test_the_blend_is_on_the_grid():
    scene = make_scene(step=1 / 16)
    x = Blended()(scene, Rng(0)).trigger(scene.data.x_test)
    assert torch.allclose(x * 16, torch.round(x * 16), atol=1e-5)


def test_the_blend_weighs_a_fifth():
    scene = make_scene()
    put = Blended()(scene, Rng(0)).trigger
    zero, one = put(torch.zeros(1, 1, 8, 8)), put(torch.ones(1, 1, 8, 8))
    torch.testing.assert_close(one - zero, torch.full((1, 1, 8, 8), 0.8))


def test_a_class_pair_is_flipped_and_nothing_else():
    scene = make_scene(fraction=0.05)
    poison = LabelFlip(source=1, wanted=3)(scene, Rng(0))
    assert len(poison.rows) == 10
    assert (scene.data.y_train[poison.rows] == 1).all()
    assert (poison.data.y_train[poison.rows] == 3).all()


def test_too_few_candidates_are_all_taken():
    scene = make_scene(fraction=0.9)
    poison = LabelFlip(source=1)(scene, Rng(0))
    assert len(poison.rows) == int((scene.data.y_train == 1).sum()) < 180


@pytest.mark.parametrize(
    ("attack", "settings"),
    [
        (BadNets, {"size": 0.0}),
        (BadNets, {"features": 0}),
        (BadNets, {"rates": (2.0,)}),
        (Blended, {"share": 1.0}),
        (LabelFlip, {"source": 2, "wanted": 2}),
        (LabelFlip, {"wanted": -4}),
        (DataAudit, {"alarms": 0.0}),
        (DataAudit, {"neighbours": 0}),
    ],
)
def test_settings_out_of_range_are_refused(attack, settings):
    with pytest.raises(ValueError):
        attack(**settings)


@pytest.mark.parametrize("name", [*PLANTING, "poisoning.data_audit"])
def test_bad_scenes_are_refused(name):
    scene = make_scene()
    bare = PoisonScene(Data(x_test=scene.data.x_test, y_test=scene.data.y_test), scene.domain, None, 0.03, 4)
    with pytest.raises(BadData, match="training rows"):
        ATTACKS.load(name)()(bare, Rng(0))


@pytest.mark.parametrize("name", PLANTING)
def test_a_fraction_out_of_range_is_refused(name):
    with pytest.raises(BadOption, match="fraction"):
        ATTACKS.load(name)()(make_scene(fraction=1.5), Rng(0))


def test_the_audit_flags_few_clean_rows_with_and_without_held_out_rows():
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(4, 12)) * 3
    y = rng.integers(0, 4, 1600)
    x = centres[y] + rng.normal(size=(1600, 12))
    for held in (600, 20):
        data = Data(x[:1000], y[:1000], x[1000 : 1000 + held], y[1000 : 1000 + held])
        found = DataAudit()(PoisonScene(data, Domain(), None, 0.03, 4), Rng(0))
        assert found.clean == (held if held > 99 else 0)
        assert found.flagged.mean() < 0.02
        again = DataAudit()(PoisonScene(data, Domain(), None, 0.03, 4), Rng(0))
        assert (found.scores == again.scores).all()
        y2 = data.y_train.clone()
        y2[:30] = (y2[:30] + 1) % 4
        flipped = Data(data.x_train, y2, data.x_test, data.y_test)
        assert DataAudit()(PoisonScene(flipped, Domain(), None, 0.03, 4), Rng(0)).flagged[:30].mean() > 0.8


def test_a_wide_picture_is_projected_and_still_examined():
    scene = make_scene((3, 20, 20), n=80, classes=2)
    found = DataAudit()(scene, Rng(0))
    assert np.isfinite(found.scores).all()
    assert found.features == "inputs"
