"""One perturbation for all inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front, finite_radius
from vauban.attacks.evasion.rivals import compared, lead
from vauban.attacks.evasion.settings import above, at_least, one_of
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.oracle import Loss, Oracle
from vauban.core.rng import Rng
from vauban.parts.losses import LOSSES
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source
from vauban.schema.errors import Limit

RIVALS = 9
"""Classes compared for each input, at most."""


@dataclass(frozen=True, kw_only=True)
class Universal:
    """A single change that is added to every input, and the share of inputs that it breaks.

    Ascends the loss summed over the inputs that the change does not break yet; inputs are clipped into the box after it
    is added. The change that broke most inputs is kept: `facts` holds it (`perturbation`, nested lists of one row's
    shape) and its share (`fooled`). The inputs given back all carry that one change; a point found on the way, with
    another change, is not counted among them.

    Source: Moosavi-Dezfooli et al. 2017 (arXiv:1610.08401) for the aim; Shafahi et al. 2020 (arXiv:1811.11304, algorithm 2)
    for the ascent by gradients. Departures: full batches instead of mini-batches; a broken input's loss is left out
    instead of clipped at a constant; falling step size; a second ascent takes every input towards its own nearest class;
    in a regression both directions are tried.

    Args:
        steps: gradients for each input.
        step: mean size of a step as a share of the radius; 4 / steps where None.
        loss: `ce`, `margin` or `dlr`.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.universal",
        name="Universal perturbation",
        summary="Looks for one change that fools the model on as many inputs as possible at once.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        joint=True,
        sources=(
            Source(
                title="Universal adversarial perturbations",
                where="Moosavi-Dezfooli et al., CVPR 2017, arXiv:1610.08401",
            ),
            Source(
                title="Universal adversarial training",
                where="Shafahi et al., AAAI 2020, arXiv:1811.11304, algorithm 2",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"steps": 10}, "deep": {"steps": 100}}

    steps: int = 30
    step: float | None = None
    loss: str = "ce"

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        above("step", self._mean, 0)
        one_of("loss", self.loss, LOSSES)

    @property
    def _mean(self) -> float:
        return 4 / self.steps if self.step is None else self.step

    def price(self, classes: int | None) -> Price:
        """Two runs of `steps` gradients and one query more for each input, and the comparison of classes between them."""
        ranking = min(RIVALS, (classes or 1) - 1)
        return Price(queries=2 * (self.steps + 1) + 2 + ranking, gradients=2 * self.steps + ranking)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        radius = finite_radius(scene, self.card.name)
        rows = scene.oracle.rows
        found = [(0, torch.zeros_like(scene.x[:1]))]
        if len(rows):
            found += [self._ascend(scene, radius, rows, loss) for loss in self._objectives(scene, rows)]
        count, change = max(found, key=lambda one: one[0])
        everything = scene.space.project(scene.x + change, scene.x, radius)
        return Perturbed(
            torch.index_copy(scene.x, 0, rows, everything[rows]),
            facts={"perturbation": change[0].tolist(), "fooled": count / len(rows) if len(rows) else None},
        )

    def _objectives(self, scene: EvasionScene, rows: Tensor) -> Iterator[Loss]:
        """One run each: the loss that was asked for, and then every row towards its own nearest class."""
        yield from scene.oracle.goal.objectives(self.loss)
        rivals = compared(scene, RIVALS)
        if rivals:
            # one change for all: what the first run found must not be lost to a budget that ends here
            with suppress(Limit):
                yield lead(scene, Front(scene, rows), rivals)[0]

    def _ascend(self, scene: EvasionScene, radius: float, rows: Tensor, loss: Loss) -> tuple[int, Tensor]:
        """The change that reached the goal on most rows, and on how many."""
        free: Any = replace(scene.space, low=-torch.inf, high=torch.inf)  # type: ignore[type-var]
        x, nought = scene.x[rows], torch.zeros_like(scene.x[:1])
        project, ball = scene.space.within(x, radius), free.within(nought, radius)
        change, best, most = nought, nought, -1
        for number in range(self.steps + 1):
            if not affordable(scene.oracle, rows):
                break
            z = project(x + change)
            last = number == self.steps
            look = None if last else scene.oracle.value_and_grad(loss, z, rows)
            margin = scene.oracle.margins(z, rows) if look is None else look.margin
            fooled = int((margin > 0).sum())
            if fooled > most:
                most, best = fooled, change
            if look is None or fooled == len(rows):
                break
            slope = look.grad[margin <= 0].sum(0, keepdim=True)
            size = self._mean * 2 * (self.steps - number) / (self.steps + 1)
            change = ball(change + free.steepest(slope, nought, radius * size))
        return most, best


def affordable(oracle: Oracle, rows: Tensor) -> bool:
    """Whether every row may be asked about once more; those decided already are asked as well."""
    spent = ~oracle.open(rows) & ~oracle.best.reached[rows]
    return bool((oracle.left(rows) >= 1).all()) and not bool(spent.any())
