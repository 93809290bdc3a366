"""Which order of memory a module gets its pictures in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.target import Domain
from vauban.parts.layout import memory_format
from vauban.targets.torch import TorchTarget


class Joining(nn.Module):
    """Joins axes with `view`, which works in the usual order of memory only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(2, 3, 3), nn.Linear(3 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        return self.last(z.view(len(z), -1))


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Joining()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(F.dropout(x, 0.5, training=True).contiguous())


class Minding(nn.Module):
    """Answers differently in another order of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(2, 3, 3), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x).mean((2, 3))) + float(x.is_contiguous())


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3 * 2 * 2, 5))


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def test_a_plain_convolutional_module_gets_channels_last(x: Tensor) -> None:
    assert memory_format(convolutional(), x) == torch.channels_last


@pytest.mark.parametrize("make", [Joining, Random, Minding, lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 5))])
def test_others_get_their_pictures_as_they_are(make: type[nn.Module], x: Tensor) -> None:
    assert memory_format(make(), x) == torch.preserve_format


def test_global_randomness_is_left_as_found(x: Tensor) -> None:
    module, before = Random(), torch.get_rng_state()
    memory_format(module, x)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("make", [convolutional, Joining])
def test_answers_and_gradients_are_those_of_the_module(make: type[nn.Module], x: Tensor) -> None:
    module = make().eval()
    target = TorchTarget(module=module)
    for channels in (x, x[:, :, ::2].repeat_interleave(2, 2)):
        leaf, plain = channels.clone().requires_grad_(True), channels.clone().requires_grad_(True)
        values, truth = target.forward(leaf).values, module(plain)
        torch.testing.assert_close(values, truth)
        (slope,) = torch.autograd.grad(values.square().sum(), leaf)
        (true_slope,) = torch.autograd.grad(truth.square().sum(), plain)
        torch.testing.assert_close(slope, true_slope)
        assert slope.is_contiguous()
    assert all(p.grad is None for p in module.parameters())


def test_a_single_channel_counts_too() -> None:
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(48, 5)).eval()
    seen: list[tuple[int, ...]] = []
    module[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].stride()))
    TorchTarget(module=module).forward(torch.rand(4, 1, 6, 6))
    assert seen[-1] == (36, 1, 6, 1)


def test_the_order_of_memory_is_found_in_evaluation_mode() -> None:
    """The first answer of a module in training mode is no step of its batch norm."""
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    target = TorchTarget(module, domain=Domain(task="classification"))
    target.forward(torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module[1].training
