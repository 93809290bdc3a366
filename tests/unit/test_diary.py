"""What a training writes down for TensorBoard, read back with TensorBoard's own reader."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vauban.core.crew import ALONE
from vauban.core.data import Data
from vauban.core.defence import Hardened
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.defences.train.pgd import PGDTraining
from vauban.integrations.tensorboard import diary
from vauban.parts.projections import Linf
from vauban.schema.errors import MissingExtra, RunFolder
from vauban.targets.torch import TorchTarget

EPOCHS = 3


@dataclass
class Context:
    diary: Any = None
    radius: float = 0.1
    space: Any = field(default_factory=lambda: Linf(0.0, 1.0))
    store: Any = None
    crew: Any = ALONE

    def attack(self, id: str, **settings: Any) -> Any:
        raise AssertionError

    def progress(self, done: int, total: int, text: str = "") -> None: ...


@dataclass
class Pages:
    """A diary that keeps its pages."""

    kept: list[tuple[int, dict[str, float], dict[str, Tensor]]] = field(default_factory=list)

    def write(self, epoch: int, figures: Mapping[str, float], pictures: Mapping[str, Tensor]) -> None:
        self.kept.append((epoch, dict(figures), dict(pictures)))


def rows() -> Data:
    g = torch.Generator().manual_seed(3)
    y = torch.arange(60) % 3
    x = (0.2 * torch.rand(60, 1, 4, 4, generator=g) + 0.25 * y[:, None, None, None]).clamp(0, 1)
    return Data(x[:48], y[:48], x[48:], y[48:])


def model(task: str = "classification") -> TorchTarget:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3 if task == "classification" else 1)
        )
    kind = "logits" if task == "classification" else None
    domain = Domain(kind="image", task=task, classes=3 if kind else None, low=0.0, high=1.0)  # type: ignore[arg-type]
    return TorchTarget(module, "m", domain, kind)


def train(book: Any, target: TorchTarget | None = None, data: Data | None = None, **how: Any) -> Hardened:
    method = PGDTraining(**{"epochs": EPOCHS, "batch_size": 16, "steps": 3, "validation": 0.2, **how})
    return method(target or model(), data or rows(), Rng(1), Context(book))


def test_the_event_file_holds_figures_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with diary(tmp_path / "board") as book:
        assert not (tmp_path / "board").exists(), "nothing is written before the first page"
        made = train(book)
    read = EventAccumulator(str(tmp_path / "board"), size_guidance={"images": 0}).Reload()
    tags = read.Tags()
    assert set(tags["scalars"]) == {"loss", "rate", "seconds", "accuracy/clean", "accuracy/robust"}
    for name in tags["scalars"]:
        assert [event.step for event in read.Scalars(name)] == [1, 2, 3]
    assert max(e.value for e in read.Scalars("accuracy/robust")) == pytest.approx(made.facts["validated"])
    assert read.Scalars("rate")[0].value == pytest.approx(2e-3)
    assert set(tags["images"]) == {"examples/clean", "examples/adversarial", "examples/difference"}
    page = Pages()
    train(page)
    for name, shown in page.kept[-1][2].items():
        with Image.open(BytesIO(read.Images(name)[-1].encoded_image_string)) as image:
            pixels = np.asarray(image.convert("L"), dtype=float)
        # eight pictures in a row, rounded to 8 bits
        assert np.abs(pixels - 255 * np.hstack(list(shown[:, 0].numpy()))).max() <= 1


def test_pages_tell_the_truth_and_change_nothing() -> None:
    book = Pages()
    watched, plain = train(book), train(None)
    assert watched.target.sha256() == plain.target.sha256()
    assert [epoch for epoch, _, _ in book.kept] == [1, 2, 3]
    _, figures, shown = book.kept[-1]
    assert figures["seconds"] > 0
    assert figures["accuracy/robust"] <= figures["accuracy/clean"]
    clean, adversarial, apart = (shown[f"examples/{name}"] for name in ("clean", "adversarial", "difference"))
    assert clean.shape == (8, 1, 4, 4)
    known = {row.numpy().tobytes() for row in rows().x_train}
    assert all(row.numpy().tobytes() in known for row in clean)
    moved = adversarial - clean
    assert 0.05 < float(moved.abs().max()) <= 0.1 + 1e-6
    torch.testing.assert_close(apart, 0.5 + 0.5 * moved / moved.abs().max())
    assert all(float(p.min()) >= 0 and float(p.max()) <= 1 for p in shown.values())


def test_without_rows_kept_aside_there_is_no_accuracy() -> None:
    book = Pages()
    train(book, validation=0.0)
    assert set(book.kept[0][1]) == {"loss", "rate", "seconds"}
    assert book.kept[0][2]["examples/clean"].shape[0] == 8


def test_a_regression_tells_errors_and_rows_are_no_pictures() -> None:
    g = torch.Generator().manual_seed(4)
    x = torch.rand(60, 16, generator=g)
    book = Pages()
    train(book, model("regression"), Data(x[:48], x[:48].sum(1).double(), x[48:], x[48:].sum(1).double()))
    _, figures, shown = book.kept[-1]
    assert set(figures) == {"loss", "rate", "seconds", "error/clean", "error/robust"}
    assert 0 < figures["error/clean"] < figures["error/robust"]
    assert shown == {}


def test_without_a_folder_there_is_no_diary() -> None:
    with diary(None) as book:
        assert book is None


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtra, match=r"pip install 'vauban\[tensorboard\]'"), diary(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("taken")
    with diary(tmp_path / "file") as book:
        assert book is not None
        with pytest.raises(RunFolder, match="file cannot be written"):
            book.write(1, {"loss": 0.5}, {})
