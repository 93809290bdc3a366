"""SPSA: gradients from probes of random signs."""

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
class SPSA:
    """Shifts all features at once by plus or minus the same amount, and follows what the difference of answers says.

    Directions are random signs: simultaneous perturbation stochastic approximation. A step costs two queries a pair and one for where it leads; the probes of a step go through
    the model together.

    Source: Uesato, O'Donoghue, Oord and Kohli 2018 (arXiv:1802.05666, section 3 and algorithm 1 of the appendix).
    Departures: steps follow the sum of fading estimates by the space's own steepest step instead of Adam, which knows
    one norm alone; probes and steps are lengths relative to the radius; steps fall linearly over the queries that a row
    has; probes are cut by the box, and weighted by where they really were; in a
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
        id="evasion.spsa",
        name="SPSA",
        summary="Shakes all features at random, reads from the scores which way is up, and climbs.",
        needs=Access.LABELS | Access.SCORES,
        spaces=("linf", "l2", "l1"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="Adversarial risk and the dangers of evaluating against weak attacks",
                where="Uesato et al., ICML 2018, arXiv:1802.05666, section 3",
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
        climb = Climb(self.pairs, self.probe, self.step, self.memory, signs)
        for run in runs(scene, self.queries, self.loss):
            climb(scene, run, rng.child("spsa", run.number))
        return Perturbed(scene.oracle.best.x)


def signs(rng: Rng, rows: Tensor, count: int, shape: torch.Size) -> Tensor:
    """Directions of entries -1 and +1."""
    return rng.signs(rows, (count, *shape))
