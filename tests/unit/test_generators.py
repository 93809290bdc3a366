"""Generators that learn small sets, and trainings with what they make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from stages import Memory
from torch import Tensor, nn

from vauban.core.crew import ALONE
from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.defences.train.generated import GeneratedData
from vauban.parts.generators import Original
from vauban.parts.generators.image import PictureGame, PictureLearner
from vauban.parts.generators.quality import copies, forest_right
from vauban.parts.generators.table import TableLearner
from vauban.parts.generators.wgan import Lessons
from vauban.parts.projections import Linf
from vauban.parts.shelves import Shelf, shelf
from vauban.schema.errors import BadData, NotOffered
from vauban.targets.torch import TorchTarget

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def blobs(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two heaps far apart, a column of three values that depends on the class, and a pair of which one is 1."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    heaps = 0.5 * torch.randn(n, 2, generator=g) + torch.stack([4.0 * y, -4.0 * y], 1)
    level = (torch.rand(n, generator=g) < 0.7).float() + y
    pair = torch.nn.functional.one_hot((torch.rand(n, generator=g) < 0.2).long(), 2).float()
    return torch.cat([heaps, level[:, None], pair], 1), y


def original(x: Tensor, y: Tensor, **more: Any) -> Original:
    return Original(x, y, x.amin(0), x.amax(0), **more)


def sides(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures 7 x 6, light on the left or on the right."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = 0.4 * torch.rand(n, 1, 7, 6, generator=g)
    x[y == 0, :, :, :3] += 0.5
    x[y == 1, :, :, 3:] += 0.5
    return (x * 15).round() / 15, y


def test_rows_of_a_table_carry_their_class_and_are_valid() -> None:
    x, y = blobs(200)
    table = TableLearner(width=32, lessons=Lessons(critics=3, batch_size=128, rate=3e-3))(original(x, y), 120, 0, CPU)
    asked = torch.arange(400) % 2
    made = table.sample(asked, Rng(1, 400))
    test = blobs(200, seed=9)
    assert forest_right(made, asked, *test, seed=0).double().mean() >= 0.95
    assert ((made[:, 0] > 2).long() == asked).double().mean() >= 0.95
    assert made.dtype == x.dtype
    assert bool((made >= x.amin(0)).all() and (made <= x.amax(0)).all())
    assert set(made[:, 2].tolist()) <= {0.0, 1.0, 2.0}
    assert bool((made[:, 3] + made[:, 4] == 1).all())
    alike = table.likeness(made, test[0])
    assert alike["column_distance_mean"] < 0.3
    assert not copies(made, x, test[0]).copied


def test_pictures_carry_their_class_and_are_valid() -> None:
    x, y = sides(120)
    source = Original(x, y, torch.tensor(0.0), torch.tensor(1.0), step=1 / 15)
    pictures = PictureLearner(width=4, lessons=Lessons(critics=3, rate=5e-3))(source, 60, 0, CPU)
    asked = torch.arange(200) % 2
    made = pictures.sample(asked, Rng(1, 200))
    assert made.shape == (200, 1, 7, 6)
    torch.testing.assert_close(made * 15, (made * 15).round(), rtol=0, atol=1e-5)
    assert 0 <= float(made.min()) < float(made.max()) <= 1
    assert forest_right(made, asked, *sides(200, seed=9), seed=0).double().mean() >= 0.9


@pytest.mark.slow
def test_a_column_with_two_heaps_is_learnt() -> None:
    rng = np.random.default_rng(0)
    draw = lambda n: np.where(rng.random(n) < 0.3, rng.normal(-2, 0.2, n), rng.normal(3, 0.5, n))[:, None]  # noqa: E731
    x = torch.from_numpy(draw(600)).float()
    y = torch.zeros(600, dtype=torch.int64)
    made = TableLearner()(original(x, y), 400, 0, CPU).sample(y, Rng(1, 600))[:, 0].numpy()
    fresh = draw(600)[:, 0]
    assert ks_2samp(made, fresh).statistic < 0.2
    assert abs((made < 0.5).mean() - 0.3) < 0.08
    # nearly nothing between the heaps
    assert ((made > -1) & (made < 1)).mean() < 0.05


LEARNERS = {
    "table": (TableLearner(width=8), lambda: original(*blobs(40))),
    "pictures": (PictureLearner(width=4), lambda: original(*sides(40))),
}


@pytest.mark.parametrize("kind", LEARNERS)
def test_one_seed_one_generator_and_a_row_is_nobody_elses_business(kind: str) -> None:
    learner, source = LEARNERS[kind]
    before = torch.get_rng_state()
    first, second, third = (learner(source(), 4, seed, CPU) for seed in (3, 3, 4))
    asked = torch.arange(30) % 2
    made = first.sample(asked, Rng(1, 30))
    assert torch.equal(made, second.sample(asked, Rng(1, 30)))
    assert not torch.equal(made, third.sample(asked, Rng(1, 30)))
    few = first.sample(asked[[4, 9]], Rng(1, np.array([4, 9])))
    torch.testing.assert_close(few, made[[4, 9]])
    assert torch.equal(torch.get_rng_state(), before)


def test_every_row_is_learnt_from_however_many_there_are() -> None:
    x = torch.arange(6000.0).reshape(-1, 1, 1, 1)
    game = PictureGame(original(x, torch.arange(6000) % 2), 2)
    dealt = (game.deal(40_000).real.flatten().double() * 5999).round().long()
    assert len(dealt.unique()) > 5900
    hand = game.deal(50)
    seen = (hand.real.flatten().double() * 5999).round().long()
    assert torch.equal(hand.condition.argmax(1), seen % 2)


def test_pictures_of_any_shape_can_be_made() -> None:
    y = torch.arange(40) % 2
    for shape in [(1, 1, 1), (3, 4, 9), (5, 5), (2, 17, 3)]:
        x = torch.rand(40, *shape)
        made = PictureLearner(width=2)(original(x, y), 1, 0, CPU).sample(y, Rng(0, 40))
        assert made.shape == x.shape
        assert bool((made >= x.amin(0)).all() and (made <= x.amax(0)).all())


def test_rows_of_any_shape_and_constant_columns_can_be_made() -> None:
    x, y = torch.rand(40, 3, 2), torch.arange(40) % 3
    x[:, 1, 1] = 7
    made = TableLearner(width=4)(original(x, y), 2, 0, CPU).sample(y, Rng(0, 40))
    assert made.shape == x.shape
    assert bool((made[:, 1, 1] == 7).all())


@pytest.mark.parametrize("counts", [(16, 15), (40, 1)])
def test_too_few_rows_are_told(counts: tuple[int, int]) -> None:
    y = torch.repeat_interleave(torch.arange(2), torch.tensor(counts))
    with pytest.raises(BadData, match=r"A generator was to be learnt.* train without generated data"):
        original(torch.rand(len(y), 3), y)


@dataclass
class Context:
    store: Any = None
    crew: Any = ALONE
    diary: Any = None
    radius: float | None = 0.1
    space: Any = field(default_factory=lambda: Linf(0.0, 1.0))
    stop: tuple[str, int] = ("", 0)
    told: list[str] = field(default_factory=list)

    def attack(self, id: str, **settings: Any) -> Any:
        raise AssertionError

    def progress(self, done: int, total: int, text: str = "") -> None:
        self.told.append(text)
        if (text, done) == self.stop:
            raise KeyboardInterrupt


def defended(context: Context, seed: int = 0, **how: Any) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(42, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    target = TorchTarget(net, "m", Domain(kind="image", task="classification", classes=2, low=0.0, high=1.0), "logits")
    settings = {"epochs": 4, "steps": 2, "rounds": 15, "batch_size": 16, **how}
    return GeneratedData(**settings)(target, Data(*sides(60), *sides(30, 5)), Rng(seed), context)


LEARNING, TRAINING = "learning to generate data", "training with generated data"


@pytest.mark.parametrize("stop", [(LEARNING, 1), (TRAINING, 2)])
def test_an_interrupted_training_goes_on_to_the_same_weights(stop: tuple[str, int]) -> None:
    whole, store = defended(Context()), Memory()
    with pytest.raises(KeyboardInterrupt):
        defended(Context(store=store, stop=stop))
    after = Context(store=store)
    resumed = defended(after)
    assert resumed.target.sha256() == whole.target.sha256()
    assert resumed.facts == whole.facts
    # nothing is made twice
    assert (LEARNING in after.told) == (stop[0] == LEARNING)
    assert after.told.count(TRAINING) == (4 if stop[0] == LEARNING else 2)


@pytest.mark.parametrize("labels", ["condition", "model", "agreed"])
def test_labels_are_those_that_were_said(labels: str) -> None:
    made = defended(Context(), labels=labels, adversarial=False)
    assert 0 <= made.facts["agreed"] <= 1
    expected = round(120 * made.facts["agreed"]) if labels == "agreed" else 120
    assert made.facts["pool"] == expected
    assert made.facts["measured_on"] == 30
    assert "forest that learns from generated rows alone" in " ".join(made.caveats)


def test_other_kinds_of_data_are_refused() -> None:
    x, y = sides(60)
    domain = Domain(kind="audio", task="classification", classes=2)
    target = TorchTarget(nn.Sequential(nn.Flatten(), nn.Linear(42, 2)), "m", domain, "logits")
    with pytest.raises(NotOffered, match="makes rows of image or tabular data, and this is audio"):
        GeneratedData()(target, Data(x, y, x, y), Rng(0), Context())


def test_shelves_of_one_store_do_not_disturb_each_other() -> None:
    store = Memory()
    one, two = Shelf(store, "one"), Shelf(store, "two")
    assert one.load() is None
    one.save({"a": torch.ones(2), "b": torch.ones(1)}, {"epoch": 1})
    two.save({"a": torch.zeros(3)}, {"epoch": 7})
    one.save({"a": torch.full((2,), 5.0)}, {"epoch": 2})
    (first, facts), (second, others) = one.load() or ({}, {}), two.load() or ({}, {})
    assert (list(first), facts, first["a"].tolist()) == (["a"], {"epoch": 2}, [5.0, 5.0])
    assert (list(second), others, second["a"].tolist()) == (["a"], {"epoch": 7}, [0.0, 0.0, 0.0])
    assert shelf(None, "one") is None
