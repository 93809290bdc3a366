"""NES: gradients from normal probes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import finite_radius
from vauban.attacks.evasion.queried import Climb, runs
from vauban.attacks.evasion.settings import above, at_least, below, one_of
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.rng import Rng
from vauban.parts.losses import LOSSES
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class NES:
    """Asks on both sides of the point in random directions, and follows the gradient that the answers speak of.

    Directions are normal. A step costs two queries a pair and one for where it leads; the probes of a step go through
    the model together.

    Source: Ilyas, Engstrom, Athalye and Lin 2018 (arXiv:1804.08598, section 2.1; momentum as in the authors' code).
    Departures: probes and steps are lengths relative to the radius; steps fall linearly over the queries that a row
    has; an estimate is brought to length 1 before it is added to those before; probes are cut by the box, and weighted
    by where they really were; the step is the space's own steepest one, so that L2 and L1 work, too; in a
    regression half the queries go to each direction.

    Args:
        queries: queries a row, at most.
        pairs: pairs of probes a step.
        probe: length of a probe as a share of the radius.
        step: mean length of a step as a share of the radius.
        memory: weight of earlier estimates, 0 to 1.
        loss: `margin` (difference of logits), `ce` (cross-entropy) or `dlr`.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.nes",
        name="NES",
        summary="Guesses the gradient from the scores at random points around, and climbs along it.",
        needs=Access.LABELS | Access.SCORES,
        spaces=("linf", "l2", "l1"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="Black-box adversarial attacks with limited queries and information",
                where="Ilyas et al., ICML 2018, arXiv:1804.08598, section 2.1",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"queries": 300}, "deep": {"queries": 10_000}}

    queries: int = 2000
    pairs: int = 10
    probe: float = 0.1
    step: float = 0.1
    memory: float = 0.9
    loss: str = "margin"

    def __post_init__(self) -> None:
        at_least("queries", self.queries, 2)
        at_least("pairs", self.pairs, 1)
        above("probe", self.probe, 0)
        above("step", self.step, 0)
        at_least("memory", self.memory, 0)
        below("memory", self.memory, 1)
        one_of("loss", self.loss, LOSSES)

    def price(self, classes: int | None) -> Price:
        """`queries`."""
        return Price(queries=self.queries)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        finite_radius(scene, self.card.name)
        climb = Climb(self.pairs, self.probe, self.step, self.memory, normal)
        for run in runs(scene, self.queries, self.loss):
            climb(scene, run, rng.child("nes", run.number))
        return Perturbed(scene.oracle.best.x)


def normal(rng: Rng, rows: Tensor, count: int, shape: torch.Size) -> Tensor:
    """Standard normal directions."""
    return rng.normal(rows, (count, *shape))
