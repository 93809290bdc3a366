"""Fifteen models that fool evaluations and seven honest ones, all small, all from two nets trained on the embedded digits.

A trap comes with what it hides: the same net without the trap, whose robust accuracy is the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.data import Data
from vauban.parts.samples import breast_cancer, digits

RADIUS = 0.1


@cache
def pictures() -> Data:
    return digits()


@cache
def cells() -> Data:
    """Features on [0, 1], each by its own range over the training rows."""
    raw = breast_cancer()
    low, high = raw.x_train.amin(0), raw.x_train.amax(0)
    rows = [((x - low) / (high - low)).clamp(0, 1) for x in (raw.x_train, raw.x_test)]
    return Data(rows[0], raw.y_train, rows[1], raw.y_test, id=raw.id, kind="tabular")


def trained(net: nn.Module, data: Data, epochs: int = 12, radius: float = 0.0, steps: int = 3) -> nn.Module:
    """Adam with a falling rate; on inputs attacked by a few gradient steps where there is a radius."""
    x, y = data.x_train, data.y_train
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(100):
            z = x[part]
            if radius:
                z = (z + radius * (2 * torch.rand_like(z) - 1)).clamp(0, 1)
                for _ in range(steps):
                    z.requires_grad_(True)
                    (slope,) = torch.autograd.grad(F.cross_entropy(net(z), y[part]), z)
                    z = z.detach() + 1.2 * radius / steps * slope.sign()
                    z = torch.minimum(torch.maximum(z, x[part] - radius), x[part] + radius).clamp(0, 1)
            optimiser.zero_grad()
            F.cross_entropy(net(z), y[part]).backward()
            optimiser.step()
        falling.step()
    for parameter in net.parameters():
        parameter.grad = None
    return net.eval()


def convolutional(act: Callable[[], nn.Module] = nn.ReLU, norm: bool = False) -> nn.Sequential:
    def block(i: int, o: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, stride, 1), *([nn.BatchNorm2d(o)] if norm else []), act()]

    head = [nn.Flatten(), nn.Linear(24 * 16, 48), act(), nn.Linear(48, 10)]
    return nn.Sequential(*block(1, 12, 1), *block(12, 24, 2), *head)


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make()


@cache
def natural() -> nn.Sequential:
    return _seeded(lambda: trained(convolutional(), pictures(), 15))  # type: ignore[return-value]


@cache
def hardened() -> nn.Sequential:
    return _seeded(lambda: trained(convolutional(), pictures(), 15, RADIUS))  # type: ignore[return-value]


@cache
def normalised() -> nn.Sequential:
    """Hardened, with batch normalisation."""
    return _seeded(lambda: trained(convolutional(norm=True), pictures(), 12, RADIUS))  # type: ignore[return-value]


class Before(nn.Module):
    """Something done to the input."""

    def __init__(self, change: Callable[[Tensor], Tensor], net: nn.Module) -> None:
        super().__init__()
        self.change, self.net = change, net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.change(x))


class After(nn.Module):
    """Something done to the logits."""

    def __init__(self, net: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.net(x))


class _NoSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        return torch.zeros_like(slopes[0])


class ZeroSlope(nn.Module):
    """The identity, with a gradient of zero."""

    def forward(self, x: Tensor) -> Tensor:
        return _NoSlope.apply(x)


class Frequencies(nn.Module):
    """As JPEG: cosine transform of the 8 x 8 block, coefficients rounded to a table that grows with frequency."""

    def __init__(self) -> None:
        super().__init__()
        k = torch.arange(8.0)
        basis = torch.cos(torch.pi * (2 * k[None] + 1) * k[:, None] / 16) * 0.5
        basis[0] /= 2**0.5
        self.register_buffer("basis", basis)
        self.register_buffer("table", 0.06 + 0.02 * (k[:, None] + k[None]))

    def forward(self, x: Tensor) -> Tensor:
        rounded = torch.round(self.basis @ x @ self.basis.T / self.table) * self.table
        return self.basis.T @ rounded @ self.basis


class Winners(nn.Module):
    """k-WTA: of all units of a row, only the largest share stays (Xiao et al. 2020)."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(max(1, int(self.share * flat.shape[1])), 1).values[:, -1:]
        return ((flat >= least).to(x) * flat).view_as(x)


class Sparse(nn.Module):
    """MeanSparse: what is near its channel's mean becomes the mean (Amini et al. 2024)."""

    def __init__(self, mean: Tensor, width: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("width", width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where((x - self.mean).abs() <= self.width, self.mean.expand_as(x), x)


def replaced(net: nn.Sequential, make: Callable[[int], nn.Module]) -> nn.Sequential:
    """Every ReLU goes through another layer, too."""
    parts: list[nn.Module] = []
    for number, part in enumerate(net):
        parts += [part, make(number)] if isinstance(part, nn.ReLU) else [part]
    return nn.Sequential(*parts).eval()


def sparse(net: nn.Sequential, share: float) -> nn.Sequential:
    """MeanSparse in front of every ReLU, with means and widths of the training data."""
    parts: list[nn.Module] = []
    with torch.no_grad():
        z = pictures().x_train
        for part in net:
            if isinstance(part, nn.ReLU):
                axes = (0, *range(2, z.dim()))
                parts.append(Sparse(z.mean(axes, keepdim=True)[0], share * z.std(axes, keepdim=True)[0]))
            parts.append(part)
            z = part(z)
    return nn.Sequential(*parts).eval()


class BatchOnly(nn.Module):
    """Batch normalisation by the statistics of the batch at hand, whatever the mode."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True)


class Purifier(nn.Module):
    """Moves its input a few steps towards what it takes it for, and answers there (an anti-adversary)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        z = x
        for _ in range(2):
            z = z.detach().requires_grad_(True)
            with torch.enable_grad():
                logits = self.net(z)
                (slope,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1), reduction="sum"), z)
            z = z - 0.02 * slope.sign()
        return self.net(z)


def noisy(x: Tensor) -> Tensor:
    return x + 0.1 * torch.randn_like(x)


def resized(x: Tensor) -> Tensor:
    """Another shift and scale for every row."""
    n = len(x)
    scale, shift = 1 + 0.1 * (2 * torch.rand(n) - 1), 0.2 * (2 * torch.rand(n, 2) - 1)
    turn = torch.zeros(n, 2, 3)
    turn[:, 0, 0] = turn[:, 1, 1] = scale
    turn[:, :, 2] = shift
    return F.grid_sample(x, F.affine_grid(turn, list(x.shape), align_corners=False).to(x), align_corners=False)


def abstaining(z: Tensor) -> Tensor:
    """An eleventh class that wins where the first two of the others are close."""
    return torch.cat([z, z.topk(2, 1).values[:, 1:] + 0.25], 1)


def fragile(x: Tensor) -> Tensor:
    """NaN where a pixel leaves the range that it has in the data."""
    data = pictures()
    seen = torch.cat([data.x_train, data.x_test])
    return torch.where((x < seen.amin(0)) | (x > seen.amax(0)), torch.nan, x)


def standardised(x: Tensor) -> Tensor:
    return (x - 0.3) / 0.38


@dataclass(frozen=True)
class Model:
    module: Callable[[], nn.Module]
    honest: Callable[[], nn.Module] | None = None
    """The same without the trap; None where the model is honest itself."""
    doubts: frozenset[str] = frozenset()
    """Any of these names the trap."""
    data: Callable[[], Data] = pictures
    random: bool = False
    lead: float = 0.0
    """By how much a wrong answer must lead for the model to stand by it."""


def twice() -> Data:
    data = pictures()
    return Data(standardised(data.x_train), data.y_train, standardised(data.x_test), data.y_test, id="standardised")


def _trap(module: Callable[[], nn.Module], *doubts: str, **more: Any) -> Model:
    return Model(module, more.pop("honest", hardened), frozenset(doubts), **more)


def batchwise() -> nn.Module:
    parts = [BatchOnly(part) if isinstance(part, nn.BatchNorm2d) else part for part in normalised()]
    return nn.Sequential(*parts).eval()


def dropping() -> nn.Module:
    return replaced(hardened(), lambda _: _Dropping())


class _Dropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.2, training=True)


@cache
def _inner() -> nn.Module:
    """Trained on standardised inputs: what a model that standardises by itself has inside."""
    return _seeded(lambda: trained(convolutional(), twice(), 8))


TRAPS: dict[str, Model] = {
    "zero-gradient layer": _trap(lambda: nn.Sequential(ZeroSlope(), *hardened()).eval(), "zero_gradient"),
    "detached graph": _trap(lambda: Before(Tensor.detach, hardened()), "no_graph"),
    "rounded input": _trap(lambda: nn.Sequential(Frequencies(), hardened()).eval(), "zero_gradient"),
    "logits x 10,000": _trap(lambda: After(hardened(), lambda z: 1e4 * z), "logit_scale"),
    "softmax output": _trap(lambda: After(hardened(), lambda z: (30 * z).softmax(1)), "softmax_output"),
    "abstain class": _trap(lambda: After(hardened(), abstaining), "abstain_class", lead=0.25),
    "input noise": _trap(lambda: Before(noisy, hardened()), "randomness", random=True),
    "random resize": _trap(lambda: Before(resized, hardened()), "randomness", random=True),
    "dropout left on": _trap(dropping, "randomness", random=True),
    "batch statistics": _trap(batchwise, "batch_dependence", honest=normalised),
    "k-WTA": _trap(lambda: replaced(hardened(), lambda _: Winners(0.25)), "jumps"),
    "MeanSparse": _trap(lambda: sparse(hardened(), 0.4), "jumps"),
    "NaN outside the data": _trap(lambda: Before(fragile, hardened()), "nonfinite"),
    "normalised twice": _trap(lambda: Before(standardised, _inner()), "units", data=twice, honest=_inner),
    "test-time optimisation": _trap(lambda: Purifier(hardened()), "test_time_optimisation"),
}


def _linear() -> nn.Module:
    return trained(nn.Sequential(nn.Linear(30, 2)), cells(), 30)


def _tabular() -> nn.Module:
    return trained(nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2)), cells(), 30)


def _perceptron() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return trained(net, pictures(), 10)


HONEST: dict[str, Model] = {
    "natural CNN": Model(natural),
    "hardened CNN": Model(hardened),
    "linear, two classes": Model(lambda: _seeded(_linear), data=cells),
    "log-softmax": Model(lambda: After(hardened(), lambda z: z.log_softmax(1))),
    "perceptron": Model(lambda: _seeded(_perceptron)),
    "tabular net": Model(lambda: _seeded(_tabular), data=cells),
    "smooth activations": Model(lambda: _seeded(lambda: trained(convolutional(nn.GELU), pictures(), 12))),
}
