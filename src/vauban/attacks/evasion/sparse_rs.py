"""Sparse-RS: random search over which features to change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front, finite_radius
from vauban.attacks.evasion.nearest import box
from vauban.attacks.evasion.settings import above, at_least, at_most, one_of
from vauban.attacks.evasion.sigma_zero import widths
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.parts.losses import LOSSES
from vauban.parts.projections import largest, per_row
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

_SHRINK = ((50, 2.0), (200, 4.0), (500, 5.0), (1000, 6.0), (2000, 8.0), (4000, 10.0), (6000, 12.0), (8000, 15.0))


def swap_share(start: float, step: int, steps: int) -> float:
    """Share of the changed features that are exchanged at a step: smaller after 50, 200, ... of 10,000 (or in proportion).

    Croce et al. 2022 (arXiv:2006.12834, section 4.2 and its appendix on schedules).
    """
    at = step / steps * 10_000
    return start / next((by for mark, by in _SHRINK if at <= mark), 20.0)


@dataclass(frozen=True, kw_only=True)
class SparseRS:
    """Changes a few features to a wall of the box, exchanges some of them for others, keeps what helps: no gradients.

    One query a row and step. Every row draws its own features.

    Source: Croce, Andriushchenko, Singh, Flammarion and Hein 2022 (arXiv:2006.12834, algorithm 2, L0).
    Departures: features are counted, not pixels; where the box is open, a wall is as far as the largest magnitude of the
    row's features; in a regression half the queries go to each direction.

    Args:
        queries: queries a row, at most.
        share: of the changed features, how many are exchanged at first, 0 to 1.
        loss: `margin` (difference of logits), `ce` (cross-entropy) or `dlr`.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.sparse_rs",
        name="Sparse-RS",
        summary="Tries changes of a few random features and keeps those that help, seeing only the scores.",
        needs=Access.LABELS | Access.SCORES,
        spaces=("l0",),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="Sparse-RS: a versatile framework for query-efficient sparse black-box adversarial attacks",
                where="Croce et al., AAAI 2022, arXiv:2006.12834, algorithm 2",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"queries": 200}, "deep": {"queries": 5000}}

    queries: int = 1000
    share: float = 0.3
    loss: str = "margin"

    def __post_init__(self) -> None:
        at_least("queries", self.queries, 2)
        above("share", self.share, 0)
        at_most("share", self.share, 1)
        one_of("loss", self.loss, LOSSES)

    def price(self, classes: int | None) -> Price:
        """`queries`."""
        return Price(queries=self.queries)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        count = min(int(finite_radius(scene, self.card.name)), scene.x.shape[1:].numel())
        sides = scene.oracle.goal.objectives(self.loss)
        for number, loss in enumerate(sides):
            front = Front(scene)
            if len(front) and count:
                self._run(scene, front, count, loss, rng.child("sparse_rs", number), self.queries // len(sides))
        return Perturbed(scene.oracle.best.x)

    def _run(self, scene: EvasionScene, front: Front, count: int, loss: Loss, rng: Rng, steps: int) -> None:
        size = front.x.shape[1:].numel()
        chosen = _some(rng, front, torch.ones(len(front), size, dtype=torch.bool, device=front.x.device), count)
        z = front.project(torch.where(chosen.view_as(front.x), _walls(scene, front, rng), front.x))
        value = scene.oracle.values(loss, z, front.rows)
        for step in range(1, steps):
            z, value, chosen = front.narrow(scene.oracle.open(front.rows), z, value, chosen)
            if not len(front):
                return
            many = max(int(swap_share(self.share, step, steps) * count), 1)
            # where everything is changed already there is nothing to exchange, only other walls to try
            into = _some(rng, front, ~chosen, many)
            out = _some(rng, front, chosen, many) & (into.sum(1, keepdim=True) >= many)
            fresh = into if count < size else _some(rng, front, chosen, many)
            mask = (chosen & ~out) | into
            trial = torch.where(fresh.view_as(z), _walls(scene, front, rng), torch.where(mask.view_as(z), z, front.x))
            trial = front.project(trial)
            found = scene.oracle.values(loss, trial, front.rows)
            better = found > value
            z = torch.where(per_row(better, z).bool(), trial, z)
            chosen = torch.where(better[:, None], mask, chosen)
            value = torch.where(better, found, value)


def _some(rng: Rng, front: Front, among: Tensor, many: int) -> Tensor:
    """bool `[m, d]`: `many` of those `among`, at random; all where there are no more."""
    key = rng.uniform(front.rows, (among.shape[1],)).to(among.device)
    count = torch.full((len(among),), many, dtype=torch.int64, device=among.device)
    return largest(torch.where(among, key, -1.0), count) & among


def _walls(scene: EvasionScene, front: Front, rng: Rng) -> Tensor:
    """A wall of the box for every feature, drawn for each."""
    low, high = box(scene, front.x)
    width = widths(scene, front.x)
    signs = rng.signs(front.rows, front.x.shape[1:])
    up = torch.where(high.isfinite(), high, front.x + width)
    return torch.where(signs > 0, up, torch.where(low.isfinite(), low, front.x - width))
