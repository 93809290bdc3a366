"""A denoising autoencoder in front of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.data import Data
from vauban.core.defence import Context
from vauban.core.rng import Rng
from vauban.defences.common import TorchModel, placement, training_rows
from vauban.defences.preprocess.front import Preprocessing, sides
from vauban.parts.training import Batch, Course, quiet_rng, train
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source


@dataclass(frozen=True, kw_only=True)
class Denoising(Preprocessing):
    """Puts in front of the model a small network that was trained to take noise off the training inputs.

    It draws inputs towards those it was trained on. Pictures go through three convolutions, other rows through two
    hidden layers, both around a way past them, so that an untrained network would change nothing. Gradients pass through: an
    attack on both together needs no trick, and finds its way (Carlini and Wagner 2017).

    Source: Meng and Chen 2017 (arXiv:1705.09064, MagNet, section 4.3: the reformer).
    Departures: the network learns what to take off instead of what to keep; its detector is a defence of its own.

    Args:
        noise: standard deviation of the noise that it learns to take off, in widths of the valid range, above 0.
        epochs: passes over the training rows.
        width: channels, or hidden units.
        batch_size: rows a step.
        rate: learning rate of Adam, which falls along a cosine.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="preprocess.denoise",
        name="Denoising autoencoder",
        summary="Takes noise off inputs with a small network before the model sees them; falls to attacks on both together.",
        needs=Access.WEIGHTS_READ | Access.DATA_READ,
        tasks=("classification", "regression"),
        adaptive=("evasion.apgd", "evasion.apgd_targeted", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="MagNet: a two-pronged defense against adversarial examples",
                where="Meng, Chen, CCS 2017, arXiv:1705.09064, section 4.3",
            ),
            Source(
                title="MagNet and 'Efficient defenses against adversarial attacks' are not robust (breaks it)",
                where="Carlini, Wagner, 2017, arXiv:1711.08478",
            ),
        ),
    )
    smooth: ClassVar[bool] = True

    noise: float = 0.1
    epochs: int = 10
    width: int = 16
    batch_size: int = 64
    rate: float = 3e-3

    def __post_init__(self) -> None:
        for name in ("epochs", "width", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("noise", "rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    def cleanser(self, model: TorchModel, data: Data, rng: Rng, context: Context) -> nn.Module:
        """Trained on the training inputs."""
        x, y = training_rows(model, data, self.card)
        seed = int(rng.child("denoise").seed)
        with quiet_rng(seed):
            module = self.blank(model, data)
        device, _ = placement(model.module)
        span = (module.high - module.low).clamp_min(0)

        def step(net: nn.Module, batch: Batch) -> Tensor:
            clean = batch.x.to(device)
            noisy = torch.clamp(clean + self.noise * span * torch.randn_like(clean), module.low, module.high)
            return F.mse_loss(net(noisy), clean)

        course = Course(epochs=self.epochs, batch_size=self.batch_size, rate=self.rate, schedule="cosine")
        tell = lambda done, total: context.progress(done, total, "learning to take noise off")  # noqa: E731
        return train(module, x, y, step, course, seed, store=context.store, progress=tell).module

    def blank(self, model: TorchModel, data: Data) -> Denoiser:
        return Denoiser(*sides(model, data), tuple(data.shape), self.width).to(*placement(model.module))

    def facts(self) -> dict[str, Any]:
        return {"noise": self.noise, "epochs": self.epochs, "width": self.width}


class Denoiser(nn.Module):
    """Inputs `[n, *shape]` less what the network takes for noise, within `low` and `high`."""

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.register_buffer("low", low.clone())
        self.register_buffer("high", high.clone())
        self.noise = _pictures(shape[0], width) if len(shape) == 3 else _rows(int(torch.Size(shape).numel()), 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(x - self.noise(x).view_as(x), self.low, self.high)


def _pictures(channels: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.Conv2d(width, channels, 3, padding=1),
    )  # fmt: skip


def _rows(features: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(features, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, features),
    )
