"""What every training against attacks does alike: goes on after an interruption, in parts, in bf16."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

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
from vauban.parts.projections import Linf
from vauban.schema.errors import BadOption, NotOffered
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
    how, store = {"validation": 0.2, "accumulate": 2, "average": 0.9}, Memory()
    whole = defend(id, model(True), **how)
    with pytest.raises(KeyboardInterrupt):
        defend(id, model(True), Context(stop=2, store=store), **how)
    resumed = defend(id, model(True), Context(store=store), **how)
    assert resumed.target.sha256() == whole.target.sha256()
    assert resumed.facts == whole.facts


@pytest.mark.parametrize(("id", "parts"), [*((name, 3) for name in IDS if name not in WHOLE), ("train.pgd", 16)])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(id: str, parts: int) -> None:
    whole, split = (weights(defend(id, model(dtype=torch.float64), accumulate=count)) for count in (1, parts))
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
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BadOption, match=words):
        defend("train.pgd", model(), **settings)


def test_a_device_without_bf16_is_named() -> None:
    from vauban.parts.descent import casting

    with pytest.raises(NotOffered, match="bf16 was asked for, and meta has none here: set precision=float32"):
        casting("bf16", torch.device("meta"))
