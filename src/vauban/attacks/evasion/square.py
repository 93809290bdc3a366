"""Square: random search in windows of shrinking size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from vauban.attacks.evasion.front import Front, finite_radius
from vauban.attacks.evasion.settings import above, at_least, at_most, one_of
from vauban.attacks.evasion.square_moves import MOVES, Moves
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.parts.losses import LOSSES
from vauban.parts.schedules import square_share
from vauban.parts.search import Grid
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

SHORTEST = 1e-3
"""Share of the radius below which a refining step does not shrink: from there it would hardly come back."""


@dataclass(frozen=True, kw_only=True)
class Square:
    """Changes a window at a random place to extreme values, and keeps the change if the loss grew: no gradients.

    One query a row and step. Every row has its own windows and signs, so that its result does not depend on its
    neighbours. Windows lie anywhere, the last row and column included; on a vector a window is a stretch of features.

    Source: Andriushchenko, Croce, Flammarion and Hein 2020 (arXiv:1912.00049; Linf: algorithm 2, L2: algorithm 3);
    L1: Croce and Hein 2021 (arXiv:2103.01208, section on L1-Square attack): the moves of L2 with mass counted in L1,
    followed by the projection onto ball and box together.
    Departures: where the attacker has other inputs, a share of the Linf proposals moves the window towards one of them
    instead of to one corner, for what other inputs look like is what a model has learnt to tell apart; a Linf proposal
    that would change nothing is turned round; in L2 every second proposal is a normal step inside the window (every
    eighth: of the whole input), of a length that adapts to a success rate of one in five, for the paper's moves alone
    cannot approach an optimum whose weight is spread unevenly; windows shrink in proportion to the queries that a row really has, be it fewer than
    `queries`; in a regression half the queries go to each direction.

    Args:
        queries: queries a row, at most.
        share: part of the input that the first windows cover.
        borrow: share of the Linf proposals that take their content from another input, 0 to 1; 0 is the published attack.
        loss: `margin` (difference of logits), `ce` (cross-entropy) or `dlr`.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.square",
        name="Square",
        summary="Tries random blocks of change and keeps those that help, seeing only the scores.",
        needs=Access.LABELS | Access.SCORES,
        spaces=("linf", "l2", "l1"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="Square Attack: a query-efficient black-box adversarial attack via random search",
                where="Andriushchenko et al., ECCV 2020, arXiv:1912.00049, algorithms 2 and 3",
            ),
            Source(
                title="Mind the box: l1-APGD for sparse adversarial attacks on image classifiers",
                where="Croce, Hein, ICML 2021, arXiv:2103.01208, section on L1-Square",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"queries": 200}, "deep": {"queries": 5000}}

    queries: int = 1000
    share: float = 0.8
    borrow: float = 0.5
    loss: str = "margin"

    def __post_init__(self) -> None:
        at_least("queries", self.queries, 2)
        above("share", self.share, 0)
        at_least("1 - share", 1 - self.share, 0)
        at_least("borrow", self.borrow, 0)
        at_most("borrow", self.borrow, 1)
        one_of("loss", self.loss, LOSSES)

    def price(self, classes: int | None) -> Price:
        """`queries`."""
        return Price(queries=self.queries)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        radius = finite_radius(scene, self.card.name)
        moves = MOVES[scene.space.name](Grid.of(scene.x.shape[1:]), radius, scene.donors, self.borrow)
        sides = scene.oracle.goal.objectives(self.loss)
        for number, loss in enumerate(sides):
            stream = rng.child("square", number)
            rows = scene.oracle.rows
            # the threat may allow fewer queries than these settings, and not the same for every row
            most = scene.oracle.left(rows).div(len(sides) - number, rounding_mode="floor")
            most = most.clamp_max(self.queries // len(sides))
            for steps in most.unique().tolist():
                self._run(Front(scene, rows[most == steps]), scene, moves, loss, stream, steps)
        return Perturbed(scene.oracle.best.x)

    def _run(self, front: Front, scene: EvasionScene, moves: Moves, loss: Loss, rng: Rng, steps: int) -> None:
        if not len(front) or not steps:
            return
        oracle, frame = scene.oracle, moves.frame(front.x, front.project)
        z = front.project(moves.start(front.x, rng, front.rows))
        value = oracle.values(loss, z, front.rows)
        scale = torch.full_like(value, 0.5)
        for step in range(1, steps):
            z, value, scale, *kept = front.narrow(oracle.open(front.rows), z, value, scale, *frame)
            if not len(front):
                return
            frame = tuple(kept)
            share = square_share(self.share, step, steps)
            trial = moves.step(z, front.x, frame, share, step, scale, rng, front.rows)
            trial = trial if moves.exact else front.project(trial)
            found = oracle.values(loss, trial, front.rows)
            better = found > value
            hit = better.nonzero().flatten()
            z[hit], value[hit] = trial[hit], found[hit]
            if moves.refines(step):
                scale = (scale * torch.where(better, 1.5, 1.5**-0.25)).clamp_min(SHORTEST)
