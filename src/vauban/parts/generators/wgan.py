"""Two networks that learn from each other: a generator, and a critic that tells how far its rows are from the real ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vauban.core.defence import Store
from vauban.parts.modes import still
from vauban.parts.training import Batch, Course, Trained, train

LAP = 60
"""Steps, about, between two notes of progress (and of what a resumed run goes on from)."""


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """By which steps both learn.

    `critics`: steps of the critic before each of the generator's (5 in the paper). `penalty`: weight of the gradient penalty (10
    in the paper). `average`: decay, a step, of the weights that are kept.
    """

    critics: int = 5
    batch_size: int = 64
    rate: float = 2e-3
    penalty: float = 10.0
    average: float = 0.998


@dataclass(frozen=True, eq=False)
class Hand:
    """Real rows `[m, ...]` and the condition `[m, k]` that each was drawn for."""

    real: Tensor
    condition: Tensor


class Game(nn.Module, ABC):
    """A generator and a critic; subclasses say what rows and conditions are."""

    critic: nn.Module

    @abstractmethod
    def deal(self, count: int) -> Hand:
        """About so many real rows for a step, drawn from torch's global numbers."""

    @abstractmethod
    def make(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """New rows for these conditions, and how far each is from keeping its condition `[m]`; draws from torch's global numbers."""

    @abstractmethod
    def score(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """What the critic says of rows, real ones or others: one number a row (or pack of rows), and how little each row
        looks to it like its class `[m]`."""


def gradient_penalty(
    score: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor, pack: int = 1
) -> Tensor:
    """Mean of (|slope| - 1)^2 at points between `real` and `fake` `[m, ...]`, of which `mix` `[m]` in [0, 1] says where.

    Where the critic judges `pack` rows at once, the slope is that with respect to them together. Differentiable.

    Source: Gulrajani et al. 2017 (arXiv:1704.00028, equation 3).
    """
    share = mix.view(-1, *[1] * (real.dim() - 1))
    z = (share * real + (1 - share) * fake).detach().requires_grad_()
    (slope,) = torch.autograd.grad(score(z).sum(), z, create_graph=True)
    return (slope.reshape(len(slope) // pack, -1).norm(dim=1) - 1).square().mean()


def unlikely(logits: Tensor, condition: Tensor) -> Tensor:
    """Cross-entropy `[m]` of logits `[m, k]` and classes `[m, k]`, one of which is 1."""
    return -(condition * logits.log_softmax(1)).sum(1)


def learn(
    game: Game,
    lessons: Lessons,
    rounds: int,
    seed: int,
    *,
    pack: int = 1,
    store: Store | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train `game` in place for as many steps of the generator as `rounds` says (rounded up to whole laps); the averaged weights
    are the result.

    Source: Gulrajani et al. 2017 (arXiv:1704.00028, algorithm 1).
    Departures: a higher rate that falls along a cosine, for minutes on a CPU instead of hours (tables: 3 critic steps); Adam with betas
    0.5 and 0.9 instead of 0 and 0.9; weights are averaged (Yazici et al. 2019, arXiv:1806.04498). Both networks are moved by one
    optimiser, which leaves alone whoever's turn it is not.
    """
    turn = lessons.critics + 1
    steps = min(-(-LAP // turn), rounds) * turn
    # the game deals the rows: a lap has so many steps, however many rows there are
    blank = torch.zeros(steps * lessons.batch_size)
    course = Course(
        epochs=-(-rounds * turn // steps), batch_size=lessons.batch_size, rate=lessons.rate, schedule="cosine",
        optimiser="adam_short", average=lessons.average,
    )  # fmt: skip

    def step(module: nn.Module, batch: Batch) -> Tensor:
        hand = game.deal(len(batch.x))
        if batch.number % turn == lessons.critics:
            return _made(game, hand)
        return _judged(game, hand, lessons.penalty, pack)

    return train(game, blank, blank, step, course, seed, store=store, progress=progress)


def _judged(game: Game, hand: Hand, penalty: float, pack: int) -> Tensor:
    """The critic's loss."""
    real, condition = hand.real, hand.condition
    with torch.no_grad():
        fake, _ = game.make(condition)
    told, unlike = game.score(torch.cat([real, fake]), torch.cat([condition, condition]))
    better, worse = told.chunk(2)
    mix = torch.rand(len(real) // pack, device=real.device).repeat_interleave(pack)
    rough = gradient_penalty(lambda z: game.score(z, condition)[0], real, fake, mix, pack)
    # classes are learnt from real rows alone
    return worse.mean() - better.mean() + penalty * rough + unlike[: len(real)].mean()


def _made(game: Game, hand: Hand) -> Tensor:
    """The generator's loss."""
    fake, away = game.make(hand.condition)
    with still(game.critic):
        told, unlike = game.score(fake, hand.condition)
    return away.mean() - told.mean() + unlike.mean()
