"""JSMA: pairs of features from a saliency map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front, finite_radius
from vauban.attacks.evasion.nearest import COMPARED, Nearest, box, ranked
from vauban.attacks.evasion.rivals import compared
from vauban.attacks.evasion.settings import at_least, one_of
from vauban.attacks.evasion.sigma_zero import widths
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.core.target import Outputs
from vauban.parts import losses
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

AT_ONCE = 256
"""Rows whose pairs are compared at once, for memory not to grow with the number of rows."""
SECOND_RATE = -10.0
"""Added to the worth of pairs that do not both raise the wanted class and lower the others: below that of any that do."""


@dataclass(frozen=True, kw_only=True)
class JSMA:
    """Changes two features at a time, up to a wall of the box: those that raise the wanted class and lower the others most.

    A pair's worth is the gain of the wanted class's logit times the loss of the other logits taken together, by the gradients
    at the point. A feature that was changed is not touched again.

    Source: Papernot et al. 2016 (arXiv:1511.07528, algorithms 2 and 3); features go up or down, whichever helps, as in
    Wiyatno and Xu 2018 (arXiv:1808.07945).
    Departures: the other logits count by their log-sum-exp instead of their sum, for it is the largest that stands in the
    way (fewer features in our runs); features are compared in pairs among the best by each gain and by their sum only, so
    that memory does not grow with the square of the input, nor with the number of rows; two gradients a step, whatever the
    number of classes; where no pair does both, the one with the largest sum of gains is taken instead of giving up; gains
    are slopes times the way to the wall; where the box is open, a wall is as far as the largest magnitude of the row's
    features; where any class will do, the nearest ones are gone for, by where a linear model would give in, which is
    looked at first; where the radius allows more features than steps would use, more pairs are changed at a step.

    Args:
        steps: pairs of gradients of a run.
        targets: nearest classes to go for in turn, where any class will do.
        candidates: features that are compared in pairs, 6 or more.
        others: what the other logits are taken together as: `soft` (their log-sum-exp) or `sum` (as published).
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.jsma",
        name="JSMA",
        summary="Changes the two features at a time that bring the wanted class nearest.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("l0",),
        tasks=("classification",),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="The limitations of deep learning in adversarial settings",
                where="Papernot et al., EuroS&P 2016, arXiv:1511.07528, algorithms 2 and 3",
            ),
            Source(
                title="Maximal Jacobian-based saliency map attack",
                where="Wiyatno and Xu 2018, arXiv:1808.07945, section 3",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"steps": 20}, "deep": {"steps": 100, "targets": 5}}

    steps: int = 50
    targets: int = 1
    candidates: int = 24
    others: str = "soft"

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        at_least("targets", self.targets, 1)
        at_least("candidates", self.candidates, 6)
        one_of("others", self.others, OTHERS)

    def price(self, classes: int | None) -> Price:
        """Two gradients a step, those of the classes compared, and four queries or less."""
        each = 2 * self.steps
        return Price(queries=self.targets * (each + 1) + 3, gradients=self.targets * each + COMPARED)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        count = min(int(finite_radius(scene, self.card.name)), scene.x.shape[1:].numel())
        if count:
            for wanted in self._wanted(scene):
                front = Front(scene)
                if len(front):
                    self._run(scene, front, wanted, count)
        return Perturbed(scene.oracle.best.x)

    def _wanted(self, scene: EvasionScene) -> list[Tensor]:
        """Classes to go for, one a row of the scene, `[n]` each."""
        oracle, front = scene.oracle, Front(scene)
        if oracle.goal.targeted:
            return [oracle.goal.labels.to(scene.x.device)]
        front.narrow(oracle.left(front.rows) >= 3)
        if not len(front):
            return []
        most = max(compared(scene, COMPARED), 1)
        # where a budget cannot pay for the comparison, the likeliest wrong class will do
        most = most if bool(oracle.open(front.rows, most).all()) else 1
        rows, order = front.rows, ranked(scene, front, most, Nearest(scene))
        found = []
        for column in range(min(self.targets, most)):
            wanted = torch.zeros(len(scene.x), dtype=torch.int64, device=rows.device)
            wanted[rows] = order[:, column]
            found.append(wanted)
        return found

    def _run(self, scene: EvasionScene, front: Front, wanted: Tensor, count: int) -> None:
        raising, lowering = _logit(wanted), _without(wanted, self.others)
        z, free = front.x, torch.ones_like(front.x, dtype=torch.bool).flatten(1)
        each = 2 * -(-count // (2 * self.steps))
        for start in range(0, count, each):
            look = scene.oracle.value_and_grad(raising, z, front.rows)
            z, free, rise = front.narrow(look.open, z, free, look.grad)
            if not len(front):
                return
            look = scene.oracle.value_and_grad(lowering, z, front.rows)
            gains, wall = _ways(scene, front, z, rise, look.grad)
            for left in range(min(each, count - start), 0, -2):
                parts = zip(*(part.split(AT_ONCE) for part in (*gains, free)), strict=True)
                found = [best_pair(more, less, fit, self.candidates, alone=left == 1) for more, less, fit in parts]
                chosen = torch.cat(found)
                free = free.scatter(1, chosen, False)
                z = z.flatten(1).scatter(1, chosen, wall.gather(1, chosen)).view_as(z)
            z, free = front.narrow(scene.oracle.open(front.rows, 0), z, free)
            if not len(front):
                return
        scene.oracle.margins(front.project(z), front.rows)


def _logit(wanted: Tensor) -> Loss:
    def loss(outputs: Outputs, rows: Tensor) -> Tensor:
        return losses.as_logits(outputs).gather(1, wanted[rows][:, None]).squeeze(1)

    return loss


def _soft(others: Tensor) -> Tensor:
    # in float64: float32 kernels round the left-over elements of a batch differently from the rest
    return others.double().logsumexp(1).to(others.dtype)


def _sum(others: Tensor) -> Tensor:
    return torch.where(others.isfinite(), others, 0).sum(1)


OTHERS: Mapping[str, Callable[[Tensor], Tensor]] = {"soft": _soft, "sum": _sum}
"""What the other logits `[m, classes]`, the wanted one at minus infinity, are taken together as, `[m]`."""


def _without(wanted: Tensor, others: str) -> Loss:
    """Minus the other logits, taken together."""

    def loss(outputs: Outputs, rows: Tensor) -> Tensor:
        z = losses.as_logits(outputs)
        return -OTHERS[others](z.scatter(1, wanted[rows][:, None], -torch.inf))

    return loss


def _ways(
    scene: EvasionScene, front: Front, z: Tensor, rise: Tensor, fall: Tensor
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """What each feature gains of either loss on the better way to a wall (as shares of the largest), and that wall, `[m, d]`."""
    low, high = box(scene, z)
    width = widths(scene, front.x)
    up = torch.where(high.isfinite(), high, z + width).flatten(1)
    down = torch.where(low.isfinite(), low, z - width).flatten(1)
    ends = torch.stack([up, down], 1)
    way = ends.double() - z.flatten(1).double()[:, None]
    tiny = torch.finfo(torch.float64).tiny
    both = []
    for slope in (rise, fall):
        gain = slope.flatten(1).double()[:, None] * way
        both.append(gain / gain.abs().amax((1, 2), keepdim=True).clamp_min(tiny))
    better = (both[0] + both[1]).argmax(1, keepdim=True)
    return (
        (both[0].gather(1, better)[:, 0], both[1].gather(1, better)[:, 0]),
        ends.gather(1, better)[:, 0],
    )


def best_pair(rise: Tensor, fall: Tensor, free: Tensor, candidates: int, alone: bool = False) -> Tensor:
    """int64 `[m, 2]`: the two `free` features (`[m, d]`, at least two, or one where `alone`) of the largest worth together.

    A pair's worth is the product of its sums of the gains `rise` and `fall` `[m, d]`, each 1 at most, where both sums are
    above zero. `alone` asks for a single feature, given twice.
    """
    many = min(-(-candidates // 3), rise.shape[1])
    orders = [torch.where(free, gain, -torch.inf).topk(many, 1).indices for gain in (rise, fall, rise + fall)]
    at = torch.cat(orders, 1)
    usable = free.gather(1, at)
    sums = []
    for gain in (rise, fall):
        picked = gain.gather(1, at)
        sums.append(picked[:, :, None] + (0 if alone else picked[:, None, :]))
    worth = torch.where((sums[0] > 0) & (sums[1] > 0), sums[0] * sums[1], sums[0] + sums[1] + SECOND_RATE)
    fit = usable[:, :, None] & (alone | (usable[:, None, :] & (at[:, :, None] != at[:, None, :])))
    worth = torch.where(fit, worth, -torch.inf)
    first = worth.flatten(1).argmax(1, keepdim=True)
    wide = worth.shape[2]
    return torch.cat([at.gather(1, first // wide), at.gather(1, first // wide if alone else first % wide)], 1)
