"""Carlini and Wagner's attack, and what it shares with EAD: a price on failing, found by bisection."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front
from vauban.attacks.evasion.minimal import Minimal
from vauban.attacks.evasion.nearest import Nearest, box, scale
from vauban.attacks.evasion.settings import above, at_least
from vauban.core.attack import EvasionScene
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.parts.projections import per_row
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class Priced(Minimal):
    """Minimises the squared length plus a price times how far the goal is missed; the price is searched for, row by row.

    Lengths are counted in distances to the border as it seems at the clean input and misses in gaps there, so that prices
    mean the same for every model and input: at a price of 2 a linear model is taken to its border.
    """

    shortest: ClassVar[int] = 150

    rounds: int = 5
    price_start: float = 4.0
    stride: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("rounds", self.rounds, 1)
        above("price_start", self.price_start, 0)
        above("stride", self.stride, 0)

    def run(self, scene: EvasionScene, front: Front, found: Nearest, loss: Loss, steps: int, rng: Rng) -> None:
        """Rounds at rising and falling prices."""
        price = torch.full((len(scene.x),), self.price_start, dtype=torch.float64, device=scene.x.device)
        low, high = torch.zeros_like(price), torch.full_like(price, torch.inf)
        rounds = min(self.rounds, max(1, steps // 10))
        for _ in range(rounds):
            front = Front(scene)
            if not len(front):
                return
            hit = torch.zeros(len(scene.x), dtype=torch.bool, device=scene.x.device)
            self.descend(scene, front, found, loss, steps // rounds, price, hit)
            high, low = torch.where(hit, price, high), torch.where(hit, low, price)
            price = torch.where(high.isfinite(), (low + high) / 2, price * 10)

    def descend(
        self, scene: EvasionScene, front: Front, found: Nearest, loss: Loss, steps: int, price: Tensor, hit: Tensor
    ) -> None:
        """One round; marks in `hit` the rows that reached the goal."""
        z, many = front.x, len(front)
        reach = start = torch.ones(many, dtype=torch.float64, device=z.device)
        state = (torch.zeros_like(z), torch.zeros_like(z))
        for number in range(steps):
            look = scene.oracle.value_and_grad(loss, z, front.rows)
            found.see(z, front.rows, look.margin)
            hit[front.rows] |= look.margin > 0
            if number == 0:
                reach = scale(scene, z, look)
                start = (-look.value.double()).clamp_min(torch.finfo(z.dtype).tiny)
            pull = torch.where(look.value > 0, 0.0, price[front.rows] / start)
            # of the whole, in units of the reach
            slope = 2 * (z - front.x) / per_row(reach, z) - look.grad * per_row(pull * reach, z)
            z, state = self.step(scene, z, front.x, slope, state, reach, number, steps)
            z, reach, start, *rest = front.narrow(look.open, z, reach, start, *state)
            state = (rest[0], rest[1])
            if not len(front):
                return

    @abstractmethod
    def step(
        self,
        scene: EvasionScene,
        z: Tensor,
        x: Tensor,
        slope: Tensor,
        state: tuple[Tensor, Tensor],
        reach: Tensor,
        number: int,
        steps: int,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Downhill along `slope`, inside the box; and two tensors `[m, ...]` to remember."""


@dataclass(frozen=True, kw_only=True)
class CarliniWagner(Priced):
    """Minimises length and miss together by Adam, in rounds at different prices for missing.

    Source: Carlini and Wagner 2017 (arXiv:1608.04644, section VI-A).
    Departures: the box is kept by clipping instead of a change of variables, whose slope is zero for inputs on its walls,
    so that black and white pixels could never move; prices and steps are in units of the model's and the row's own; every
    row has its own price and none ends because others stall; the run is made towards each of the nearest classes in turn;
    the last ten steps cross the linearised border.

    Args:
        steps: gradients in all, over all rounds.
        targets: nearest classes to go for, where any class will do.
        rounds: prices tried, by tenfold rises and halving.
        price_start: of missing the goal, in units that take a linear model to its border at 2.
        stride: Adam's step, in distances to the border over the root of the number of features.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.carlini_wagner",
        name="Carlini-Wagner",
        summary="Looks for the shortest change that fools the model by weighing the two at several prices.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("l2",),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="Towards evaluating the robustness of neural networks",
                where="Carlini and Wagner, IEEE S&P 2017, arXiv:1608.04644, section VI-A",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 150, "targets": 1, "rounds": 3},
        "deep": {"steps": 4000, "rounds": 9},
    }

    def step(
        self,
        scene: EvasionScene,
        z: Tensor,
        x: Tensor,
        slope: Tensor,
        state: tuple[Tensor, Tensor],
        reach: Tensor,
        number: int,
        steps: int,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Adam's, of a size that falls to a hundredth."""
        mean, square = state
        mean = mean + 0.1 * (slope - mean)
        square = 0.999 * square + 0.001 * slope.square()
        size = self.stride * reach * 0.01 ** (number / steps) / z[:1].numel() ** 0.5 / (1 - 0.9 ** (number + 1))
        by = mean / ((square / (1 - 0.999 ** (number + 1))).sqrt() + 1e-12)
        return torch.clamp(z - per_row(size, z) * by, *box(scene, z)), (mean, square)
