"""SignHunter: the signs of the gradient by halving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import finite_radius
from vauban.attacks.evasion.queried import Run, pick, runs
from vauban.attacks.evasion.settings import at_least, one_of
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.rng import Rng
from vauban.parts.losses import LOSSES
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class SignHunter:
    """Turns the signs of all features round, then of each half, of each quarter, down to one, and keeps what helps.

    After the last feature it begins anew with the signs found, or with random ones where no turn has helped.

    Source: Al-Dujaili and O'Reilly 2020 (arXiv:1902.06894, algorithm 2).
    Departures: the first sign, one for all features, is drawn for each row; once all parts were tried the input stays
    where it is, for its change is as large as the radius allows; a turn that the box makes idle is not asked about; in a
    regression half the queries go to each direction.

    Args:
        queries: queries a row, at most.
        loss: `margin` (difference of logits), `ce` (cross-entropy) or `dlr`.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.sign_hunter",
        name="SignHunter",
        summary="Finds for ever smaller parts of the input whether up or down is better, seeing only the scores.",
        needs=Access.LABELS | Access.SCORES,
        spaces=("linf",),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="Sign bits are all you need for black-box attacks",
                where="Al-Dujaili, O'Reilly, ICLR 2020, arXiv:1902.06894, algorithm 2",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"queries": 200}, "deep": {"queries": 5000}}

    queries: int = 1000
    loss: str = "margin"

    def __post_init__(self) -> None:
        at_least("queries", self.queries, 2)
        one_of("loss", self.loss, LOSSES)

    def price(self, classes: int | None) -> Price:
        """`queries`."""
        return Price(queries=self.queries)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        finite_radius(scene, self.card.name)
        for run in runs(scene, self.queries, self.loss):
            self._run(scene, run, rng.child("sign_hunter", run.number))
        return Perturbed(scene.oracle.best.x)

    def _run(self, scene: EvasionScene, run: Run, rng: Rng) -> None:
        oracle, front, left = scene.oracle, run.front, run.left
        low, high = front.project(front.x - scene.radius), front.project(front.x + scene.radius)
        # one sign for all, so that halves are parts that agree
        z = torch.where(_like(rng.signs(front.rows, (1,)) > 0, low), high, low)
        value, left = oracle.values(run.loss, z, front.rows), left - 1
        d = z[0].numel()
        asked, gained = 1, torch.zeros_like(left)
        # the parts are the same for every row, so that all rows go through them together
        while asked:
            asked = 0
            for start, stop in parts(d):
                stay = oracle.open(front.rows) & (left > 0)
                z, value, left, low, high, gained = front.narrow(stay, z, value, left, low, high, gained)
                if not len(front):
                    return
                trial = z.flatten(1).clone()
                trial[:, start:stop] = torch.where(z == high, low, high).flatten(1)[:, start:stop]
                trial = trial.view_as(z)
                some = (trial != z).flatten(1).any(1).nonzero().flatten()
                if not len(some):
                    continue
                asked += len(some)
                found = value.clone()
                found[some] = oracle.values(run.loss, trial[some], front.rows[some])
                better = found > value
                z, value, gained = pick(better, trial, z), torch.where(better, found, value), gained + better
                left = left.index_add(0, some, -torch.ones_like(some))
            stuck = (oracle.open(front.rows) & (left > 0) & (gained == 0)).nonzero().flatten()
            gained = torch.zeros_like(gained)
            if asked and len(stuck):
                signs = rng.signs(front.rows[stuck], z.shape[1:]).to(z)
                z[stuck] = torch.where(signs > 0, high[stuck], low[stuck])
                value[stuck] = oracle.values(run.loss, z[stuck], front.rows[stuck])
                left = left.index_add(0, stuck, -torch.ones_like(stuck))


def parts(count: int) -> list[tuple[int, int]]:
    """The whole of `count` features, its halves, its quarters, ..., each feature: starts and ends, without repetition."""
    found: dict[tuple[int, int], None] = {}
    size = 1
    while True:
        edges = [count * k // size for k in range(size + 1)]
        found |= {(a, b): None for a, b in pairwise(edges) if a < b}
        if size >= count:
            return list(found)
        size *= 2


def _like(signs: Tensor, x: Tensor) -> Tensor:
    return signs.to(x.device).view(-1, *(1,) * (x.dim() - 1))
