"""Small networks that learn to answer as another model does."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.parts.training import fit, quiet_rng

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


def network(shape: tuple[int, ...], outputs: int, low: Tensor, high: Tensor, seed: int) -> nn.Module:
    """An untrained network: two convolutions for `[c, h, w]` of at least 8 x 8, two hidden layers for anything else."""
    with quiet_rng(seed):
        spatial = len(shape) == 3 and min(shape[1:]) >= SMALLEST_PICTURE
        body = _convolutional(shape, outputs) if spatial else _dense(shape, outputs)
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


def _dense(shape: tuple[int, ...], outputs: int) -> nn.Module:
    size = 1
    for side in shape:
        size *= side
    return nn.Sequential(
        nn.Flatten(), nn.Linear(size, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, outputs)
    )


def imitate(module: nn.Module, x: Tensor, answers: Tensor, *, seed: int, steps: int, batch_size: int = 64) -> nn.Module:
    """Train `module` in place to give the `answers` to `x`, for about `steps` batches.

    `answers`: class numbers `[n]` int64 (cross-entropy), probabilities `[n, k]` (cross-entropy against soft labels)
    or real values `[n]` (mean squared error).
    """
    epochs = max(1, round(steps / max(1, -(-len(x) // batch_size))))
    loss = _value_loss if answers.dim() == 1 and answers.is_floating_point() else F.cross_entropy

    def step(module: nn.Module, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        return loss(module(x), y)

    y = answers.to(torch.float32) if answers.is_floating_point() else answers
    return fit(module, x, y, seed=seed, epochs=epochs, batch_size=batch_size, rate=2e-3, schedule="cosine", step=step)


def _value_loss(outputs: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(outputs.reshape(-1), y)
