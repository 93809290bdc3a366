"""A generator of pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.defence import Store
from vauban.core.rng import Rng
from vauban.parts.generators import Original, Progress
from vauban.parts.generators.wgan import Game, Hand, Lessons, learn, unlikely
from vauban.parts.training import quiet_rng

NOISE = 32
"""Numbers that a picture is made from."""
SMALLEST = 8
"""Pixels of the longer side, at most, from which pictures are built up by doubling."""
TOGETHER = 256
"""Pictures that are made at once."""


@dataclass(frozen=True, kw_only=True)
class PictureLearner:
    """A small conditional WGAN-GP for pictures `[c, h, w]` or `[h, w]` of any size.

    The generator doubles a small picture up to size by transposed convolutions; the critic halves it by convolutions, and
    tells the class, too. What is made lies between `low` and `high` by a sigmoid, and is rounded to the grid.

    Source: Gulrajani et al. 2017 (arXiv:1704.00028, algorithm 1); Odena, Olah and Shlens 2017 (arXiv:1610.09585, section 3) for
    the critic that tells classes; Miyato and Koyama 2018 (arXiv:1802.05637, section 3) for how it is told them.
    Departures: those of `wgan.learn`; nets of a tenth of the size, without residual blocks.

    Args:
        width: channels of the outermost layers; each halving of the picture doubles them.
        lessons: by which steps it learns.
    """

    width: int = 16
    lessons: Lessons = field(default_factory=Lessons)

    def __call__(
        self,
        original: Original,
        rounds: int,
        seed: int,
        device: torch.device,
        store: Store | None = None,
        progress: Progress | None = None,
    ) -> Pictures:
        with quiet_rng(seed):
            game = PictureGame(original, self.width).to(device)
        # convolutions are faster in this order, and the weights are the same
        _laid(game, torch.channels_last)
        made = learn(game, self.lessons, rounds, seed, store=store, progress=progress)
        return Pictures(game.eval(), original, made.ended)


class PictureGame(Game):
    """The two networks, and the pictures `[n, c, h, w]`, 0 at `low` and 1 at `high`."""

    critic: Critic

    def __init__(self, original: Original, width: int) -> None:
        super().__init__()
        self.real, self.y, self.classes = unit(original), original.y, original.classes
        shape = (int(self.real.shape[1]), int(self.real.shape[2]), int(self.real.shape[3]))
        self.generator = Painter(shape, self.classes, width)
        self.critic = Critic(shape, self.classes, width)

    @property
    def device(self) -> torch.device:
        return self.critic.last.weight.device

    def deal(self, count: int) -> Hand:
        rows, device = torch.randint(len(self.y), (count,)), self.device
        return Hand(self.real[rows].to(device), F.one_hot(self.y[rows], self.classes).to(device, torch.float32))

    def make(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.randn(len(condition), NOISE, device=condition.device)
        return self.generator(noise, condition), condition.new_zeros(())

    def score(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        told, classes = self.critic(x, condition)
        return told, unlikely(classes, condition)


class Painter(nn.Module):
    """Noise `[m, 32]` and classes `[m, k]` -> pictures `[m, c, h, w]` in [0, 1]."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int) -> None:
        super().__init__()
        channels, height, breadth = shape
        stages = doublings(height, breadth)
        self.sizes = [(-(-height // 2**k), -(-breadth // 2**k)) for k in range(stages, -1, -1)]
        wide = [width * 2**k for k in range(stages, 0, -1)]
        self.first = nn.Linear(NOISE + classes, wide[0] * math.prod(self.sizes[0]))
        self.norms = nn.ModuleList(nn.BatchNorm2d(w) for w in wide)
        # each pixel becomes four; kernels of twice the stride overlap evenly
        self.layers = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in zip(wide, [*wide[1:], channels], strict=True)
        )

    def forward(self, noise: Tensor, condition: Tensor) -> Tensor:
        x = self.first(torch.cat([noise, condition], 1))
        x = x.view(len(x), -1, *self.sizes[0])
        for norm, layer, (height, breadth) in zip(self.norms, self.layers, self.sizes[1:], strict=True):
            x = layer(norm(x).relu())[:, :, :height, :breadth]
        return torch.sigmoid(x)


class Critic(nn.Module):
    """Pictures `[m, c, h, w]` and classes `[m, k]` -> how real they are `[m]`, and logits of their class `[m, k]`."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int) -> None:
        super().__init__()
        channels, height, breadth = shape
        stages = doublings(height, breadth)
        wide = [channels, *(width * 2**k for k in range(stages))]
        self.layers = nn.Sequential(
            *(layer for a, b in pairwise(wide) for layer in (nn.Conv2d(a, b, 3, 2, 1), nn.LeakyReLU(0.2))),
            nn.Flatten(),
            nn.Linear(wide[-1] * -(-height // 2**stages) * -(-breadth // 2**stages), 4 * width),
            nn.LeakyReLU(0.2),
        )
        self.last = nn.Linear(4 * width, 1)
        self.of_class = nn.Linear(classes, 4 * width, bias=False)
        self.classes = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.layers(x - 0.5)
        told = self.last(seen)[:, 0] + (seen * self.of_class(condition)).sum(1)
        return told, self.classes(seen)


def doublings(height: int, breadth: int) -> int:
    """From the small picture to the whole one, at least 1."""
    return max(1, math.ceil(math.log2(max(height, breadth) / SMALLEST)))


def _laid(module: Any, order: torch.memory_format) -> None:
    module.to(memory_format=order)


def unit(original: Original) -> Tensor:
    """The pictures as float32 `[n, c, h, w]`, 0 at `low` and 1 at `high`."""
    width = (original.high - original.low).clamp_min(torch.finfo(torch.float32).tiny)
    x = ((original.x - original.low) / width).float()
    return x.reshape(len(x), -1, *x.shape[-2:])


@dataclass(frozen=True, eq=False)
class Pictures:
    """A generator of pictures that has learnt."""

    game: PictureGame
    original: Original
    ended: str = ""
    """Why learning ended before its time; empty where it did not."""

    @torch.no_grad()
    def sample(self, y: Tensor, rng: Rng) -> Tensor:
        """New pictures `[m, ...]` of classes `y` `[m]`."""
        device = self.game.device
        made = []
        for rows in torch.arange(len(y)).split(TOGETHER):
            condition = F.one_hot(y[rows], self.game.classes).to(device, torch.float32)
            made.append(self.game.generator(rng.normal(rows, (NOISE,)).to(device), condition).cpu())
        o = self.original
        x = o.low + torch.cat(made).reshape(-1, *o.x.shape[1:]) * (o.high - o.low)
        x = x if o.step is None else torch.round(x / o.step) * o.step
        return torch.minimum(torch.maximum(x, o.low), o.high).to(o.x.dtype)

    def likeness(self, made: Tensor, real: Tensor) -> dict[str, float]:
        """Nothing: single pixels tell little."""
        return {}
