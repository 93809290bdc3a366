"""TorchScript: audited, copied, trained, and given back in its own format; frozen, it is attacked and not trained."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import vauban
from vauban.artifacts.loading import read_tensors
from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.defences.catalog import DEFENCES
from vauban.engine.context import HouseContext
from vauban.parts.batching import LARGEST, SMALLEST, micro_batch
from vauban.parts.projections import SPACES
from vauban.schema.access import Access
from vauban.schema.errors import NotOffered, UntrustedFile
from vauban.targets.torch import TorchTarget

# torch advises against making such files; people have them all the same
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.(script|freeze|save|load). is deprecated:DeprecationWarning")
DOMAIN = Domain(kind="image", task="classification", classes=3, low=0.0, high=1.0)


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(64, 3),
        ).eval()


def scripted(frozen: bool = False) -> nn.Module:
    module = torch.jit.script(net())
    return torch.jit.freeze(module) if frozen else module


def data() -> Data:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 3
    x = torch.rand(120, 1, 6, 6, generator=g) * 0.3
    x[torch.arange(120), 0, y] += 0.5
    return Data(x[:90], y[:90], x[90:], y[90:])


@pytest.mark.parametrize("frozen", [False, True])
def test_it_answers_and_is_attacked_like_the_module_that_it_came_from(frozen: bool) -> None:
    target, plain = (TorchTarget(m, "m", DOMAIN, "logits") for m in (scripted(frozen), net()))
    x, y = data().x_test, data().y_test
    torch.testing.assert_close(target.forward(x).values, plain.forward(x).values)
    with torch.no_grad():
        y = plain.forward(x).labels
    found = [vauban.attack("evasion.pgd", each, x, y, threat="linf:0.1").outcomes for each in (target, plain)]
    assert found[0] == found[1]
    assert (Access.WEIGHTS_WRITE in target.offers) is not frozen


def test_a_copy_can_be_trained_and_shares_nothing() -> None:
    target = TorchTarget(scripted().train(), "m", DOMAIN, "logits")
    before = target.forward(data().x_test).values
    copy = target.clone()
    assert not any(part.training for part in copy.modules())
    assert all(part.training for part in target.module.modules())
    assert all(parameter.is_leaf for parameter in copy.parameters())
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert torch.equal(target.forward(data().x_test).values, before)


def defended(id: str, module: nn.Module) -> TorchTarget:
    target = TorchTarget(module, "m", DOMAIN, "logits")
    context = HouseContext(0.1, SPACES["linf"](0.0, 1.0))
    made: TorchTarget = DEFENCES.load(id)()(target, data(), Rng(0), context).target
    return made


@pytest.mark.filterwarnings("error")
def test_copies_and_files_are_made_without_a_word_of_torch() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = TorchTarget(scripted(), "m", DOMAIN, "logits")
    target.clone()
    target.files()


def test_a_trained_one_is_written_in_its_own_format(tmp_path: Path) -> None:
    made = defended("train.pgd", scripted())
    (name, written), *others = made.files().items()
    assert name == "model.pt"
    assert not others
    x = data().x_test
    again = torch.jit.load(io.BytesIO(written))
    assert torch.equal(again(x), made.forward(x).values)
    (tmp_path / name).write_bytes(written)
    loaded = vauban.load_target(str(tmp_path / name), trust_pickle=True)
    assert torch.equal(loaded.forward(x).values, made.forward(x).values)


@pytest.mark.parametrize("id", ["train.pgd", "privacy.dp_sgd", "distill.defensive", "certify.bands"])
def test_frozen_weights_are_said_to_be_untrainable(id: str) -> None:
    with pytest.raises(NotOffered, match="trains the weights of a model, and m has none that could be"):
        defended(id, scripted(frozen=True))


def test_a_detector_needs_no_weights_of_the_model() -> None:
    made = defended("detect.energy", scripted(frozen=True))
    x = data().x_test
    assert made.forward(x).values.shape == (30, 4)
    assert made.forward(x).values.dtype == torch.float32


def test_it_is_refused_without_a_word_of_torch(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    torch.jit.save(scripted(), tmp_path / "m.pt")
    recwarn.clear()
    warnings.simplefilter("always")
    with pytest.raises(UntrustedFile, match="TorchScript archive"):
        read_tensors(tmp_path / "m.pt")
    assert not recwarn.list


def test_the_rows_of_a_batch_are_counted_without_hooks() -> None:
    """Its layers cannot be listened to: the batch is chosen from the size of the inputs."""
    small = TorchTarget(scripted(), "m", DOMAIN, "logits")
    assert micro_batch(small, data().x_test) == LARGEST
    wide = TorchTarget(torch.jit.script(nn.Flatten()), "m", DOMAIN, "logits")
    assert micro_batch(wide, torch.zeros(1, 3, 512, 512)) == SMALLEST
