"""Small networks that learn to answer as another model does."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.parts.training import Batch, Step, fit, quiet_rng

SMALLEST_PICTURE = 8


class Scaled(nn.Module):
    """A network behind a fixed scaling of the box `[low, high]` to [-1, 1]."""

    low: Tensor
    high: Tensor

    def __init__(self, network: nn.Module, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("low", low)
        self.register_buffer("high", torch.where(high > low, high, low + 1))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.network(2 * (x - self.low) / (self.high - self.low) - 1)
        return scores


def network(shape: tuple[int, ...], outputs: int, low: Tensor, high: Tensor, seed: int, variant: int = 0) -> nn.Module:
    """An untrained network: two convolutions for `[c, h, w]` of at least 8 x 8, two hidden layers for anything else.

    Other `variant`s are of other architectures; there are a few, and then they come round again.
    """
    spatial = len(shape) == 3 and min(shape[1:]) >= SMALLEST_PICTURE
    makers = PICTURE_NETWORKS if spatial else NETWORKS
    with quiet_rng(seed):
        body = makers[variant % len(makers)](shape, outputs)
        return Scaled(body, low.to(torch.float32), high.to(torch.float32))


def _convolutional(shape: tuple[int, ...], outputs: int) -> nn.Module:
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 64),
        nn.ReLU(),
        nn.Linear(64, outputs),
    )


def _strided(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Larger windows and steps instead of pooling."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 24, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48 * -(-height // 4) * -(-width // 4), 64),
        nn.ReLU(),
        nn.Linear(64, outputs),
    )


def _smooth(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Mean pooling and a smooth activation."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5, padding=2),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), outputs),
    )


def _dense(shape: tuple[int, ...], outputs: int) -> nn.Module:
    size = math.prod(shape)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(size, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, outputs)
    )


def _linear(shape: tuple[int, ...], outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), outputs))


def _wide(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """One smooth hidden layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 256), nn.GELU(), nn.Linear(256, outputs))


NETWORKS: tuple[Callable[[tuple[int, ...], int], nn.Module], ...] = (_dense, _wide, _linear)
PICTURE_NETWORKS: tuple[Callable[[tuple[int, ...], int], nn.Module], ...] = (_convolutional, _strided, _smooth)


def mixtures(pool: Tensor, count: int, low: Tensor, high: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """`[count, ...]`: random mixtures of two rows of `pool`, shaken by `noise` (a share of the box), inside the box."""
    where = generator.device
    pairs = torch.randint(len(pool), (2, count), generator=generator, device=where)
    share = torch.rand(count, *[1] * (pool.dim() - 1), generator=generator, device=where)
    shake = torch.randn(count, *pool.shape[1:], generator=generator, device=where) * noise * (high - low)
    mixed = share * pool[pairs[0]] + (1 - share) * pool[pairs[1]] + shake
    return mixed.clamp(low, high)


def imitate(module: nn.Module, x: Tensor, answers: Tensor, *, seed: int, steps: int, batch_size: int = 64) -> nn.Module:
    """Train `module` in place to give the `answers` to `x`, for about `steps` batches.

    `answers`: class numbers `[n]` int64 (cross-entropy), probabilities `[n, k]` (cross-entropy against soft labels)
    or real values `[n]` (mean squared error).
    """
    epochs = max(1, round(steps / max(1, -(-len(x) // batch_size))))
    return fit(
        module,
        x,
        learnable(answers),
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        rate=2e-3,
        schedule="cosine",
        step=imitation(answers),
    )


def learnable(answers: Tensor) -> Tensor:
    return answers.to(torch.float32) if answers.is_floating_point() else answers


def imitation(answers: Tensor) -> Step:
    """The step of `fit` that learns answers of this kind."""
    loss = _value_loss if answers.dim() == 1 and answers.is_floating_point() else F.cross_entropy

    def step(module: nn.Module, batch: Batch) -> Tensor:
        return loss(module(batch.x), batch.y)

    return step


def _value_loss(outputs: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(outputs.reshape(-1), y)
