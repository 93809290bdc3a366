"""What attacks of the momentum family share: how a run goes, input diversity, a kernel that blurs the gradient.

Their adversarials are meant to be carried to other models, so that a look that leaves the run less tied to one model is worth
more than a look at the point itself. Sequences `[channels, length]` have one spatial side, images `[channels, height, width]` two,
vectors none: diversity and kernel are without effect there.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front, finite_radius
from vauban.attacks.evasion.settings import above, at_least, at_most, one_of
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.parts.losses import LOSSES
from vauban.parts.projections import per_row
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

SHRINK = 0.9
"""Shortest side of a resized input, as a share."""
NEEDS = Access.LABELS | Access.SCORES | Access.GRADIENTS
BASED = (
    Source(
        title="Improving transferability of adversarial examples with input diversity",
        where="Xie et al., CVPR 2019, arXiv:1803.06978, section 3.3",
    ),
    Source(
        title="Evading defenses to transferable adversarial examples by translation-invariant attacks",
        where="Dong et al., CVPR 2019, arXiv:1904.02884, section 3.3",
    ),
)
"""Where diversity and kernel come from."""

Back = Callable[[Tensor], Tensor]
"""Gradient at the transformed point -> gradient at the point."""


def sides(x: Tensor) -> tuple[int, ...]:
    """The dimensions of `x` `[m, ...]` that are spatial: all after the channels, two at most."""
    return tuple(range(x.dim() - min(2, max(x.dim() - 2, 0)), x.dim()))


def resized(x: Tensor, chance: float, rng: Rng, rows: Tensor) -> tuple[Tensor, Back]:
    """Some rows shrunk by up to a tenth and laid on zeros at a random place, and the way back for gradients.

    Every row draws whether (`chance`), how far and where by itself.
    """
    places = sides(x)
    if not places or not chance:
        return x, lambda slope: slope
    moved = rng.uniform(rows, (1,)) < chance
    share = torch.where(moved, SHRINK + (1 - SHRINK) * rng.uniform(rows, (1,)).double(), 1.0)
    at = rng.uniform(rows, (len(places),)).double()
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        out = leaf
        for number, place in enumerate(places):
            out = _squeezed(out, place, share, at[:, number : number + 1])
    return out.detach(), lambda slope: torch.autograd.grad(out, leaf, slope)[0]


def _squeezed(x: Tensor, side: int, share: Tensor, at: Tensor) -> Tensor:
    """One side shrunk to its share `[m, 1]`, linearly interpolated; what is left goes before it by `at` `[m, 1]`, then after."""
    length = x.shape[side]
    short = (share * length).floor().clamp(1, length)
    start = (at * (length - short + 1)).floor()
    place = torch.arange(length, device=x.device, dtype=torch.float64)[None, :] - start
    inside = (place >= 0) & (place < short)
    source = ((place + 0.5) * (length / short) - 0.5).clamp(0, length - 1)
    low = source.floor()
    spread = [1] * x.dim()
    spread[0], spread[side] = x.shape[0], length
    shape = list(x.shape)
    first, weight = low.long().view(spread).expand(shape), (source - low).to(x.dtype).view(spread)
    second = (low.long() + 1).clamp_max(length - 1).view(spread).expand(shape)
    mixed = x.gather(side, first) * (1 - weight) + x.gather(side, second) * weight
    return torch.where(inside.view(spread), mixed, 0)


def blurred(slope: Tensor, kernel: int) -> Tensor:
    """`slope` `[m, ...]` under a Gaussian kernel of that many points (three standard deviations to each end) a spatial side."""
    bell = (
        torch.exp(-0.5 * torch.linspace(-3, 3, kernel, dtype=torch.float64).square()) if kernel > 1 else torch.ones(1)
    )
    weights = (bell / bell.sum()).tolist()
    for side in sides(slope):
        length = slope.shape[side]
        padded = torch.nn.functional.pad(slope.transpose(side, -1), (kernel // 2, kernel // 2))
        # shifted copies, not a convolution, whose rounding depends on the batch
        total = torch.zeros_like(slope.transpose(side, -1))
        for shift, weight in enumerate(weights):
            total = total + padded[..., shift : shift + length] * weight
        slope = total.transpose(side, -1)
    return slope.contiguous()


def levelled(slope: Tensor) -> Tensor:
    """Every row over its mean magnitude; zero where it is zero, however small or large the others."""
    size = slope.flatten(1).abs().double().mean(1).clamp_min(torch.finfo(torch.float64).tiny)
    return (slope.double() / per_row(size, slope.double())).to(slope)


@dataclass(frozen=True)
class Climb:
    """One run on one loss: its scene, the rows it still works on, where it looks from."""

    scene: EvasionScene
    front: Front
    loss: Loss
    rng: Rng
    diversity: float

    def slope(self, points: Tensor) -> Tensor:
        """The gradient at points that are not themselves on offer, `[m, ...]`, each seen through its own transformation."""
        seen, back = resized(points, self.diversity, self.rng, self.front.rows)
        return back(self.scene.oracle.value_and_grad(self.loss, seen, self.front.rows, keep=False).grad)


@dataclass(frozen=True, kw_only=True)
class Momentum:
    """Steps along a running sum of gradients, each first brought to the same size. Subclasses say where they look."""

    card: ClassVar[AttackCard]
    elsewhere: ClassVar[bool] = False
    """Gradients are not taken at the point itself, so that it takes a query of its own to know of success."""

    steps: int = 10
    step: float | None = None
    decay: float = 1.0
    diversity: float = 0.0
    kernel: int = 1
    loss: str = "margin"

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        above("step", self._share, 0)
        at_least("decay", self.decay, 0)
        at_least("diversity", self.diversity, 0)
        at_most("diversity", self.diversity, 1)
        at_least("kernel", self.kernel, 1)
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that it has a middle, got {self.kernel}")
        one_of("loss", self.loss, LOSSES)

    @property
    def looks(self) -> int:
        """Gradients of a step."""
        return 1

    @property
    def _share(self) -> float:
        return 1 / self.steps if self.step is None else self.step

    def price(self, classes: int | None) -> Price:
        """`steps` times the gradients of a step, and queries to see what came of them; twice that in a regression."""
        runs, gradients = 1 if classes else 2, self.steps * self.looks
        return Price(
            queries=runs * (gradients + (self.steps if self.elsewhere or self.diversity else 1)),
            gradients=runs * gradients,
        )

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        finite_radius(scene, self.card.name)
        for side, loss in enumerate(scene.oracle.goal.objectives(self.loss)):
            front = Front(scene)
            if len(front):
                self._run(Climb(scene, front, loss, rng.child(self.card.id, side), self.diversity))
        return Perturbed(scene.oracle.best.x)

    def _run(self, climb: Climb) -> None:
        scene, front, oracle = climb.scene, climb.front, climb.scene.oracle
        aside = self.elsewhere or (self.diversity > 0 and bool(sides(front.x)))
        z, memory, tuned = front.x, torch.zeros_like(front.x), torch.zeros_like(front.x)
        for number in range(self.steps + 1):
            # whoever can pay for no whole step more, and everyone at the end, has the last point looked at
            payable = oracle.open(front.rows, self.looks) & (oracle.left(front.rows) > self.looks + aside)
            go_on = payable & (number < self.steps)
            last = oracle.open(front.rows, 0) & ~go_on
            if number and bool(last.any()):
                oracle.margins(z[last], front.rows[last])
            z, memory, tuned = front.narrow(go_on, z, memory, tuned)
            if not len(front):
                return
            here = None if aside else oracle.value_and_grad(climb.loss, z, front.rows).grad
            if aside and number:
                oracle.margins(z, front.rows)
            # what the rest of the step costs was seen to before
            still = oracle.open(front.rows, 0)
            z, memory, tuned, here = front.narrow(still, z, memory, tuned, z if here is None else here)
            if not len(front):
                return
            here = climb.slope(z) if aside and not self.elsewhere else here
            slope, tuned = self.slope(climb, z, here, memory, tuned)
            memory = self.decay * memory + levelled(blurred(slope, self.kernel))
            z = front.project(z + scene.space.steepest(memory, z, scene.radius * self._share))

    @abstractmethod
    def slope(self, climb: Climb, z: Tensor, here: Tensor, memory: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient to go by, and what is to be remembered for the next step, both `[m, ...]`.

        `here` is the gradient at `z`; no more than a placeholder where the attack looks `elsewhere`.
        """
