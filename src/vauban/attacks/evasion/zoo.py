"""ZOO: derivatives of a few features at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import finite_radius
from vauban.attacks.evasion.queried import Run, runs
from vauban.attacks.evasion.settings import above, at_least, one_of
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.rng import Rng
from vauban.parts.losses import LOSSES
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

FAST, SLOW, TINY = 0.9, 0.999, 1e-8
"""Adam's decay rates, and what keeps it from dividing by zero."""


@dataclass(frozen=True, kw_only=True)
class ZOO:
    """Measures the slope along a few features, moves these by Adam, and goes on with other features.

    A slope is the difference of the scores a little above and below the feature's value; those of a step go through the
    model together. Features come in an order of each row's own, all of them before any comes again.

    Source: Chen, Zhang, Sharma, Yi and Hsieh 2017 (arXiv:1708.03999, algorithms 1 and 2: ZOO-Adam).
    Departures: the room is a ball and a box, into which every step is projected, instead of a penalty on the distance
    and a change of variables, so that no constant has to be searched; in L2 and L1 all features of a row share Adam's
    second moment, for one a feature gives all of them steps of one size, which is the steepest way in Linf alone; no
    attack on a smaller picture first, and no importance sampling; in a regression half the queries go to each direction.

    Args:
        queries: queries a row, at most.
        features: features a step, each of which costs two queries; all where the input has fewer.
        probe: how far above and below a feature is probed, as a share of the radius (in L2 and L1 of the length that
            each feature has where all are changed alike).
        step: Adam's step as a share of the radius, counted likewise.
        loss: `margin` (difference of logits), `ce` (cross-entropy) or `dlr`.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.zoo",
        name="ZOO",
        summary="Measures how the scores change with a few features at a time, and moves these.",
        needs=Access.LABELS | Access.SCORES,
        spaces=("linf", "l2", "l1"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="ZOO: zeroth order optimization based black-box attacks without training substitute models",
                where="Chen et al., AISec 2017, arXiv:1708.03999, algorithms 1 and 2",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"queries": 600}, "deep": {"queries": 20_000}}

    queries: int = 4000
    features: int = 128
    probe: float = 0.1
    step: float = 0.4
    loss: str = "margin"

    def __post_init__(self) -> None:
        at_least("queries", self.queries, 2)
        at_least("features", self.features, 1)
        above("probe", self.probe, 0)
        above("step", self.step, 0)
        one_of("loss", self.loss, LOSSES)

    def price(self, classes: int | None) -> Price:
        """`queries`."""
        return Price(queries=self.queries)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        finite_radius(scene, self.card.name)
        for run in runs(scene, self.queries, self.loss):
            self._run(scene, run, rng.child("zoo", run.number))
        return Perturbed(scene.oracle.best.x)

    def _run(self, scene: EvasionScene, run: Run, rng: Rng) -> None:
        oracle, front = scene.oracle, run.front
        d = scene.x[0].numel()
        many, unit = min(self.features, d), scene.radius / _SPREAD[scene.space.name](d)
        z, left = front.x, run.left
        mean, square, seen = (torch.zeros_like(z.flatten(1), dtype=torch.float64) for _ in range(3))
        order, at = torch.zeros(len(z), 0, dtype=torch.int64, device=z.device), 0
        while True:
            stay = oracle.open(front.rows) & (left >= 2 * many + 1)
            z, left, mean, square, seen, order = front.narrow(stay, z, left, mean, square, seen, order)
            if not len(front):
                return
            if at + many > order.shape[1]:
                order, at = rng.uniform(front.rows, (d,)).argsort(dim=1, stable=True), 0
            which, at = order[:, at : at + many], at + many
            slope = self._slopes(scene, run, z, which, self.probe * unit)
            left = left - 2 * many - 1
            stay = oracle.open(front.rows)
            z, left, mean, square, seen, order, which, slope = front.narrow(
                stay, z, left, mean, square, seen, order, which, slope
            )
            if not len(front):
                return
            move = self.step * unit * _adam(mean, square, seen, which, slope, _SHARED[scene.space.name])
            z = front.project(z.flatten(1).scatter_add(1, which, move.to(z)).view_as(z))
            oracle.values(run.loss, z, front.rows)

    def _slopes(self, scene: EvasionScene, run: Run, z: Tensor, which: Tensor, away: float) -> Tensor:
        """Symmetric difference quotients of the loss along the features `which` `[m, k]`, float64 `[m, k]`."""
        m, many = which.shape
        low, high = scene.space.low.to(z), scene.space.high.to(z)
        sides, asked = [], []
        for way in (away, -away):
            points = z.flatten(1)[:, None].repeat(1, many, 1)
            points.scatter_(2, which[:, :, None], points.gather(2, which[:, :, None]) + way)
            points = torch.clamp(points.view(m, many, *z.shape[1:]), low, high)
            sides.append(points.flatten(2).gather(2, which[:, :, None])[:, :, 0].double())
            asked.append(points)
        rows = run.front.rows.repeat_interleave(2 * many)
        found = scene.oracle.values(run.loss, torch.stack(asked, 1).flatten(0, 2), rows).view(m, 2, many).double()
        gap = sides[0] - sides[1]
        return torch.where(gap > 0, (found[:, 0] - found[:, 1]) / gap.clamp_min(1e-300), 0.0)


def _adam(mean: Tensor, square: Tensor, seen: Tensor, which: Tensor, slope: Tensor, shared: bool) -> Tensor:
    """Adam's steps of the features `which`, in units of its step size; its three states `[m, d]` are brought up to date."""
    seen.scatter_add_(1, which, torch.ones_like(slope))
    times = seen.gather(1, which)
    first = FAST * mean.gather(1, which) + (1 - FAST) * slope
    second = SLOW * square.gather(1, which) + (1 - SLOW) * slope.square()
    mean.scatter_(1, which, first)
    square.scatter_(1, which, second)
    spread = second / (1 - SLOW**times)
    if shared:
        known = seen > 0
        every = torch.where(known, square / (1 - SLOW ** seen.clamp_min(1)), 0)
        spread = (every.sum(1) / known.sum(1).clamp_min(1))[:, None]
    return first / (1 - FAST**times) / (spread.sqrt() + TINY)


_SPREAD = {"linf": lambda d: 1.0, "l2": lambda d: float(d**0.5), "l1": float}
"""Norm of a vector of `d` ones."""
_SHARED: Mapping[str, bool] = {"linf": False, "l2": True, "l1": True}
"""Whether a row's features share Adam's second moment."""
