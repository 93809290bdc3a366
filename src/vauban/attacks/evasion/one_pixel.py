"""One-pixel: a few positions by differential evolution."""

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
from vauban.parts.search import Grid
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class OnePixel:
    """Looks for the few positions, and the values there, that change the answer: differential evolution.

    A position is a place of the input with all its channels (on a vector, a feature); each candidate says which
    positions change and to what. A candidate gives way to the sum of another and half the difference of two more where
    that does better. A row's whole generation goes through the model together.

    Source: Su, Vargas and Sakurai 2019 (arXiv:1710.08864, section 3.2): differential evolution without crossover.
    Departures: the number of positions follows from the radius, which counts features; 40 candidates instead of 400,
    for budgets here are smaller than the paper's 40,000; every second generation tries the best candidate with one of
    its positions drawn anew, for places that are neighbours need not be alike, so that differences of places mean
    little, least of all on a vector; values are drawn uniformly, and half of those drawn anew are ends of the range;
    where there is no box, values reach as far as the row's largest; in a regression half the queries go to each
    direction.

    Args:
        queries: queries a row, at most.
        population: candidates a row, at least 4.
        pixels: positions that may change, 0 for as many as the radius allows.
        factor: weight of the difference of two candidates.
        loss: `margin` (difference of logits), `ce` (cross-entropy) or `dlr`.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.one_pixel",
        name="One-pixel attack",
        summary="Breeds small sets of changed positions until the answer changes, seeing only the scores.",
        needs=Access.LABELS | Access.SCORES,
        spaces=("l0",),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="One pixel attack for fooling deep neural networks",
                where="Su, Vargas, Sakurai, IEEE TEVC 2019, arXiv:1710.08864, section 3.2",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"queries": 400}, "deep": {"queries": 10_000}}

    queries: int = 2000
    population: int = 40
    pixels: int = 0
    factor: float = 0.5
    loss: str = "margin"

    def __post_init__(self) -> None:
        at_least("queries", self.queries, 2)
        at_least("population", self.population, 4)
        at_least("pixels", self.pixels, 0)
        above("factor", self.factor, 0)
        one_of("loss", self.loss, LOSSES)

    def price(self, classes: int | None) -> Price:
        """`queries`."""
        return Price(queries=self.queries)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` with as few features changed as the radius says. Raises BadThreat for an infinite radius."""
        if finite_radius(scene, self.card.name) < 1:
            return Perturbed(scene.oracle.best.x)
        grid = Grid.of(scene.x.shape[1:])
        most = max(1, min(int(scene.radius) // grid.channels, grid.height * grid.width))
        pixels = min(self.pixels or most, most)
        for run in runs(scene, self.queries, self.loss):
            self._run(scene, run, grid, pixels, rng.child("one_pixel", run.number))
        return Perturbed(scene.oracle.best.x)

    def _run(self, scene: EvasionScene, run: Run, grid: Grid, pixels: int, rng: Rng) -> None:
        oracle, front = scene.oracle, run.front
        # a row that cannot pay for a whole population gets a smaller one
        size = self.population
        herd = rng.uniform(front.rows, (size, pixels, 2 + grid.channels)).to(front.x)
        worth = self._judge(scene, run, grid, herd, run.left)
        left, number = run.left - size, 0
        while True:
            herd, worth, left = front.narrow(oracle.open(front.rows) & (left > 0), herd, worth, left)
            if not len(front):
                return
            number += 1
            breed = self._differences if number % 2 else _renewed
            children = breed(herd, worth, rng, front.rows).clamp(0, 1)
            found = self._judge(scene, run, grid, children, left)
            better = found > worth
            herd = torch.where(better[:, :, None, None], children, herd)
            worth, left = torch.where(better, found, worth), left - size

    def _judge(self, scene: EvasionScene, run: Run, grid: Grid, herd: Tensor, left: Tensor) -> Tensor:
        """The loss of every candidate, `[m, size]`; minus infinity for those that a row cannot pay for."""
        x, rows = run.front.x, run.front.rows
        asked = torch.arange(herd.shape[1], device=x.device)[None, :] < left[:, None]
        which = asked.nonzero()[:, 0]
        points = _painted(scene, grid, x, herd)[asked]
        points = scene.space.project(points, x[which], scene.radius)
        values = scene.oracle.values(run.loss, points, rows[which])
        worth = torch.full(herd.shape[:2], -torch.inf, dtype=values.dtype, device=x.device)
        worth[asked] = values
        return worth

    def _differences(self, herd: Tensor, worth: Tensor, rng: Rng, rows: Tensor) -> Tensor:
        """For each candidate another one, and a share of the way between two more."""
        m, size = worth.shape
        # three different others: each as many places on from the candidate
        hops = 1 + rng.uniform(rows, (size, size - 1)).argsort(dim=2, stable=True)[:, :, :3].to(herd.device)
        who = (torch.arange(size, device=herd.device)[None, :, None] + hops) % size
        one, two, three = (herd[torch.arange(m, device=herd.device)[:, None], who[:, :, k]] for k in range(3))
        return one + self.factor * (two - three)


def _renewed(herd: Tensor, worth: Tensor, rng: Rng, rows: Tensor) -> Tensor:
    """The best candidate, with one position and what is written there drawn anew, as often as there are candidates."""
    m, size, pixels, genes = herd.shape
    draws = rng.uniform(rows, (size, 2 + genes)).to(herd)
    fresh = draws[:, :, 2:].clone()
    ends = draws[:, :, :1] < 0.5
    fresh[:, :, 2:] = torch.where(ends, (fresh[:, :, 2:] < 0.5).to(herd), fresh[:, :, 2:])
    best = herd[torch.arange(m, device=herd.device), worth.argmax(1)]
    which = (draws[:, :, 1] * pixels).long().clamp_max(pixels - 1)
    spot = torch.arange(pixels, device=herd.device)[None, None, :] == which[:, :, None]
    return torch.where(spot[..., None], fresh[:, :, None], best[:, None])


def _painted(scene: EvasionScene, grid: Grid, x: Tensor, herd: Tensor) -> Tensor:
    """The inputs `[m, size, ...]` that the candidates `[m, size, pixels, 2 + channels]` in [0, 1] stand for."""
    m, size, pixels, _ = herd.shape
    far = x.flatten(1).abs().amax(1).clamp_min(1).view(-1, *(1,) * (x.dim() - 1))
    sides = (scene.space.low.to(x), scene.space.high.to(x))
    low, high = (torch.where(side.isfinite(), side, x + far * way) for side, way in zip(sides, (-1, 1), strict=True))
    down = (herd[..., 0] * grid.height).long().clamp_max(grid.height - 1)
    across = (herd[..., 1] * grid.width).long().clamp_max(grid.width - 1)
    place = (down * grid.width + across)[:, :, None, :].expand(-1, -1, grid.channels, -1)
    bottom, top = (side.reshape(m, 1, grid.channels, -1).expand(-1, size, -1, -1) for side in (low, high))
    value = torch.lerp(bottom.gather(3, place), top.gather(3, place), herd[..., 2:].transpose(2, 3))
    painted = x.reshape(m, 1, grid.channels, -1).repeat(1, size, 1, 1)
    for pixel in range(pixels):  # one after the other, for two may share a place
        painted.scatter_(3, place[..., pixel : pixel + 1], value[..., pixel : pixel + 1])
    return painted.view(m, size, *x.shape[1:])
