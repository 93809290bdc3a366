"""Training with noise on a linear model, whose worst inputs under any noise are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.defences.certify.smoothing import RandomisedSmoothing
from vauban.defences.train.course import Drill
from vauban.defences.train.noise import NoiseTraining
from vauban.parts.projections import L2
from vauban.parts.training import Batch
from vauban.targets.torch import TorchTarget

N, D, RADIUS, SIGMA = 16, 6, 0.5, 0.25


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(D, 2)


def rows() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(N, D, generator=g), torch.arange(N) % 2


def descended(net: nn.Module, copies: int, steps: int, ramp: float = 0.0, share: float = 1.0) -> tuple[float, Tensor]:
    """The loss of one step, and the noise that it drew."""
    how = NoiseTraining(sigma=SIGMA, copies=copies, steps=steps, ramp=ramp)
    target = TorchTarget(net, "m", Domain(task="classification", classes=2), "logits")
    drill = Drill(how, target, L2(), RADIUS, Rng(0, N))
    batch = Batch(*rows(), torch.arange(N), 3, share)
    drawn = Rng(0, N).child("step", 3).child("noise").normal(torch.arange(N), (copies, D)).movedim(1, 0)
    return drill.step(net, batch).item(), SIGMA * drawn


@pytest.mark.parametrize("copies", [1, 3])
def test_without_steps_it_is_the_mean_loss_of_the_copies(copies: int) -> None:
    net, (x, y) = linear(), rows()
    loss, noise = descended(net, copies, steps=0)
    written = torch.stack([F.cross_entropy(net(x + part), y) for part in noise]).mean()
    assert loss == pytest.approx(written.item(), rel=1e-5)
    assert loss != pytest.approx(F.cross_entropy(net(x), y).item(), rel=1e-3)


def test_steps_move_inputs_straight_against_the_label() -> None:
    """Whatever the noise, the vote of two linear classes falls fastest along the difference of their weights."""
    net, (x, y) = linear(), rows()
    loss, noise = descended(net, 4, steps=20)
    apart = net.weight[y] - net.weight[1 - y]
    worst = x - RADIUS * apart / apart.norm(dim=1, keepdim=True)
    most, least = (torch.stack([F.cross_entropy(net(z + part), y) for part in noise]).mean().item() for z in (worst, x))
    assert 0.95 * (most - least) <= loss - least <= (most - least) * (1 + 1e-5)


def test_noise_grows_with_the_ramp() -> None:
    net, (x, y) = linear(), rows()
    loss, noise = descended(net, 2, steps=0, ramp=0.5, share=0.25)
    written = torch.stack([F.cross_entropy(net(x + part / 2), y) for part in noise]).mean()
    assert loss == pytest.approx(written.item(), rel=1e-5)


@pytest.mark.parametrize("steps", [0, 3])
def test_smoothing_trains_its_model_so(steps: int) -> None:
    g = torch.Generator().manual_seed(2)
    y = torch.arange(80) % 2
    x = (torch.rand(80, 4, generator=g) * 0.3 + 0.6 * y[:, None]).clamp(0, 1)
    torch.manual_seed(0)
    domain = Domain(task="classification", classes=2, low=0.0, high=1.0)
    target = TorchTarget(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), "m", domain, "logits")
    how = RandomisedSmoothing(epochs=15, steps=steps, reach=0.2, copies=2, draws=8, rate=1e-2)
    made = how(target, Data(x, y, x, y), Rng(0), None)  # type: ignore[arg-type]
    assert made.facts.get("steps", 0) == steps
    with torch.no_grad():
        assert float((made.target.forward(x).labels == y).float().mean()) > 0.95
