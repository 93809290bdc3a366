"""What every training against attacks does alike: goes on after an interruption, in parts, in bf16."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from stages import Memory
from torch import Tensor, nn

from vauban.core.crew import ALONE
from vauban.core.data import Data
from vauban.core.defence import Hardened
from vauban.core.registry import configure
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.defences.catalog import DEFENCES
from vauban.defences.train.course import AdversarialTraining
from vauban.defences.train.inner import RECALL, Inner
from vauban.parts.augment import Moved
from vauban.parts.projections import Linf
from vauban.parts.training import Batch
from vauban.schema.errors import BadData, BadOption, NotOffered
from vauban.targets.torch import TorchTarget

QUICK: dict[str, dict[str, Any]] = {
    "distill.robust": {"steps": 2, "teaching": 1},
    "train.awp": {"steps": 2, "delay": 0.0},
    "train.fast": {"validation": 0.2},
    "train.free": {"epochs": 6, "replays": 2},
    "train.generated": {"steps": 2, "rounds": 2},
    "train.multi": {"steps": 2, "norms": "l2:0.2"},
    "train.mart": {"steps": 2, "recall": True},
    "train.noise": {"steps": 2, "copies": 2},
    "train.pgd": {"steps": 2},
    "train.trades": {"steps": 2, "recall": True},
}
IDS = [name for name in DEFENCES.ids() if issubclass(DEFENCES.load(name), AdversarialTraining)]
WHOLE = {
    "train.awp": "weights are moved by the gradient of a part",
    "train.cutout": "holes are filled with the mean of a part",
    "train.generated": "the last rows of a part give way",
    "train.mixup": "rows are mixed within a part",
}
"""Trainings that look at a batch as a whole, and how: in parts they are others."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Context:
    stop: int = 0
    store: Any = None
    radius: float = 0.1
    space: Any = field(default_factory=lambda: Linf(0.0, 1.0))
    crew: Any = ALONE
    diary: Any = None

    def attack(self, id: str, **settings: Any) -> Any:
        raise AssertionError

    def progress(self, done: int, total: int, text: str = "") -> None:
        if done == self.stop:
            raise KeyboardInterrupt


def blobs() -> Data:
    g = torch.Generator().manual_seed(3)
    y = torch.arange(70) % 3
    x = (0.2 * torch.rand(70, 1, 4, 4, generator=g) + 0.25 * y[:, None, None, None]).clamp(0, 1)
    return Data(x[:58], y[:58], x[58:], y[58:], id="blobs")


def model(noisy: bool = False, dtype: torch.dtype = torch.float32) -> TorchTarget:
    """With dropout and batch normalisation where `noisy`; in float64 equal steps stay equal through Adam."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        between: list[nn.Module] = [nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1)] if noisy else [nn.ReLU()]
        module = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *between, nn.Flatten(), nn.Linear(64, 3)).to(dtype)
    return TorchTarget(module, "m", Domain(task="classification", classes=3, low=0.0, high=1.0), "logits")


def defend(id: str, target: TorchTarget, context: Context | None = None, **more: Any) -> Hardened:
    settings = {"epochs": 3, "batch_size": 16, **QUICK.get(id, {}), **more}
    made: Hardened = configure(DEFENCES.load(id), settings)(target, blobs(), Rng(5), context or Context())
    return made


def weights(made: Hardened) -> dict[str, Tensor]:
    state: dict[str, Tensor] = made.target.module.state_dict()  # type: ignore[attr-defined]
    return state


@pytest.mark.parametrize("id", IDS)
def test_an_interrupted_training_goes_on_to_the_same_model(id: str) -> None:
    """What methods hand from batch to batch, and what the judge remembers, included."""
    how: dict[str, Any] = {"validation": 0.2, "accumulate": 2, "average": 0.9, "crop": 1, "flip": True}
    store = Memory()
    whole = defend(id, model(True), **how)
    with pytest.raises(KeyboardInterrupt):
        defend(id, model(True), Context(stop=2, store=store), **how)
    resumed = defend(id, model(True), Context(store=store), **how)
    assert resumed.target.sha256() == whole.target.sha256()
    assert resumed.facts == whole.facts


@pytest.mark.parametrize(("id", "parts"), [*((name, 3) for name in IDS if name not in WHOLE), ("train.pgd", 16)])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(id: str, parts: int) -> None:
    how: dict[str, Any] = {"crop": 1, "flip": True}
    whole, split = (weights(defend(id, model(dtype=torch.float64), accumulate=count, **how)) for count in (1, parts))
    start = model(dtype=torch.float64).module.state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, rtol=1e-6, atol=1e-8)
        assert not torch.allclose(value, start[name], rtol=1e-3), "it was trained"


@pytest.mark.parametrize("id", sorted(WHOLE))
def test_where_the_batch_matters_parts_are_another_training(id: str) -> None:
    whole, split = (weights(defend(id, model(dtype=torch.float64), accumulate=count)) for count in (1, 3))
    assert not all(torch.allclose(split[name], value, rtol=1e-6) for name, value in whole.items())


@pytest.mark.parametrize("id", ["train.awp", "train.free", "train.ibp", "train.pgd"])
def test_bf16_ends_with_weights_in_float32_that_are_about_as_good(id: str) -> None:
    exact, coarse = (defend(id, model(), epochs=8, precision=how) for how in ("float32", "bf16"))
    assert {v.dtype for v in weights(coarse).values()} == {torch.float32}
    assert coarse.facts["precision"] == "bf16"
    assert any("bf16 on a CPU" in text for text in coarse.caveats)
    assert not any("bf16" in text for text in exact.caveats)
    assert coarse.target.sha256() != exact.target.sha256()
    data = blobs()
    with torch.no_grad():
        right = [float((m.target.forward(data.x_test).labels == data.y_test).double().mean()) for m in (exact, coarse)]
    assert abs(right[0] - right[1]) <= 2 / 12


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"accumulate": 17}, "accumulate splits a batch of 16 rows into 1 to 16 parts, got 17"),
        ({"accumulate": 0}, "accumulate splits a batch of 16 rows"),
        ({"precision": "float16"}, "precision"),
        ({"crop": -1}, "crop is a number of pixels, 0 for none, got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BadOption, match=words):
        defend("train.pgd", model(), **settings)


class Seeing(nn.Module):
    """Keeps what it was shown in training mode."""

    shown: ClassVar[list[Tensor]] = []

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            Seeing.shown.append(x.detach())
        out: Tensor = self.linear(x.flatten(1))
        return out


@pytest.mark.parametrize("recall", [False, True])
def test_the_model_is_shown_pictures_mirrored_and_moved_within_the_threat(recall: bool) -> None:
    Seeing.shown.clear()
    target = TorchTarget(Seeing(), "m", Domain(task="classification", classes=3, low=0.0, high=1.0), "logits")
    data, radius = blobs(), 0.01
    how = {"steps": 2, "epochs": 6, "ramp": 0.0, "crop": 1, "flip": True, "recall": recall}
    configure(DEFENCES.load("train.pgd"), how)(target, data, Rng(5), Context(radius=radius))
    x = data.x_train
    ways = [(flip, down, right) for flip in (False, True) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    moves = [Moved(*(torch.full((len(x),), value) for value in way)).there(x) for way in ways]
    # [shown, ways, pictures]: how far each is from each
    apart = (torch.cat(Seeing.shown)[:, None, None] - torch.stack(moves)[None]).abs().flatten(3).amax(3)
    assert len(apart) == 6 * len(x)
    assert float(apart.flatten(1).amin(1).max()) <= radius + 1e-6
    nearest = apart.flatten(1).argmin(1)
    assert set((nearest // len(x)).tolist()) == set(range(len(ways))), "every way was used"


def test_a_change_that_is_recalled_moves_with_its_picture() -> None:
    target, x = model(), torch.full((2, 1, 4, 4), 0.5)
    kept = torch.zeros(2, 1, 4, 4)
    kept[0, 0, 1, 0], kept[1, 0, 2, 3] = 1.0, -0.5
    moved = Moved(torch.tensor([True, False]), torch.tensor([1, 0]), torch.tensor([0, -1]))
    memory = {RECALL: kept.clone()}
    inner = Inner(target, target.module, Linf(0.0, 1.0), 0.1, Rng(0, 2), memory, moved)
    z = inner.worst(Batch(x, torch.tensor([0, 1]), torch.arange(2), 0, 1.0), 0, recall=True)
    told = torch.zeros(2, 1, 4, 4)
    told[0, 0, 2, 3] = 0.1
    told[1, 0, 2, 2] = -0.05
    # the edge of the second one goes on to the right
    told[1, 0, 2, 3] = -0.05
    torch.testing.assert_close(z, x + told)
    assert float(memory[RECALL][0, 0, 1, 0]) == pytest.approx(1.0)
    assert float(memory[RECALL][1, 0, 2, 3]) == pytest.approx(-0.5)


@pytest.mark.parametrize("how", [{"crop": 1}, {"flip": True}])
def test_rows_of_a_table_cannot_be_moved(how: dict[str, Any]) -> None:
    data = Data(torch.rand(40, 6), torch.arange(40) % 3, torch.rand(6, 6), torch.arange(6) % 3)
    target = TorchTarget(nn.Linear(6, 3), "m", Domain(task="classification", classes=3, low=0.0, high=1.0), "logits")
    with pytest.raises(NotOffered, match="is for pictures"):
        configure(DEFENCES.load("train.pgd"), how)(target, data, Rng(5), Context())


def test_pictures_are_not_moved_out_of_sight() -> None:
    with pytest.raises(BadData, match="crop moves pictures of 4 x 4 pixels by up to 4, which leaves nothing"):
        defend("train.pgd", model(), crop=4)


def test_a_device_without_bf16_is_named() -> None:
    from vauban.parts.descent import casting

    with pytest.raises(NotOffered, match="bf16 was asked for, and meta has none here: set precision=float32"):
        casting("bf16", torch.device("meta"))
