"""GenAttack: a population that breeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import finite_radius
from vauban.attacks.evasion.queried import Run, runs
from vauban.attacks.evasion.settings import above, at_least, at_most, one_of
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.rng import Rng
from vauban.parts.losses import LOSSES
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

FADING = 0.9
"""Factor on rate and range of mutations at each standstill."""
PATIENCE = 5
"""Generations without a better best that make a standstill."""


@dataclass(frozen=True, kw_only=True)
class GenAttack:
    """Breeds changed inputs: the best survives, parents are drawn by their scores, children mix them and mutate.

    A row's whole population goes through the model together, and every row has its own.

    Source: Alzantot, Sharma, Chakraborty, Zhang, Hsieh and Srivastava 2019 (arXiv:1805.11090, algorithm 1, with the
    adaptive parameters of section 4.2).
    Departures: scores are divided by their spread within the population before parents are drawn, for logits have no
    common scale; mutations reach twice the radius at first and are cut by the ball, so that most end at its surface; no
    mutation at a lower resolution; the survivor is not asked about again; in a regression half the queries go to each
    direction.

    Args:
        queries: queries a row, at most.
        population: changed inputs a row.
        rate: probability that a feature of a child mutates, at first; it falls at each standstill.
        least: below which that probability does not fall.
        reach: range of a mutation as a share of the radius, at first; it falls at each standstill, to a tenth at the least.
        loss: `margin` (difference of logits), `ce` (cross-entropy) or `dlr`.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.gen_attack",
        name="GenAttack",
        summary="Breeds changed inputs by selection, mixing and mutation, seeing only the scores.",
        needs=Access.LABELS | Access.SCORES,
        spaces=("linf",),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="GenAttack: practical black-box attacks with gradient-free optimization",
                where="Alzantot et al., GECCO 2019, arXiv:1805.11090, algorithm 1",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"queries": 300}, "deep": {"queries": 10_000}}

    queries: int = 2000
    population: int = 6
    rate: float = 0.5
    least: float = 0.02
    reach: float = 2.0
    loss: str = "margin"

    def __post_init__(self) -> None:
        at_least("queries", self.queries, 2)
        at_least("population", self.population, 2)
        for name in ("rate", "least", "reach"):
            above(name, getattr(self, name), 0)
        at_most("rate", self.rate, 1)
        at_most("least", self.least, 1)
        one_of("loss", self.loss, LOSSES)

    def price(self, classes: int | None) -> Price:
        """`queries`."""
        return Price(queries=self.queries)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        finite_radius(scene, self.card.name)
        for run in runs(scene, self.queries, self.loss):
            self._run(scene, run, rng.child("gen_attack", run.number))
        return Perturbed(scene.oracle.best.x)

    def _run(self, scene: EvasionScene, run: Run, rng: Rng) -> None:
        oracle, front = scene.oracle, run.front
        (left,) = front.narrow(run.left >= self.population, run.left)
        if not len(front):
            return
        size, shape = self.population, front.x.shape[1:]
        noise = rng.uniform(front.rows, (size, *shape), -1.0, 1.0).to(front.x)
        herd = self._inside(scene, front.x, front.x[:, None] + scene.radius * noise)
        worth = self._judge(scene, run, herd)
        left = left - size
        still, stuck = torch.zeros_like(left), torch.zeros_like(left)
        while True:
            stay = oracle.open(front.rows) & (left >= size - 1)
            herd, worth, left, still, stuck = front.narrow(stay, herd, worth, left, still, stuck)
            if not len(front):
                return
            fading = FADING ** stuck.double()
            top, best = worth.max(1)
            children = self._bred(front.x, herd, worth, fading, scene.radius, rng, front.rows)
            herd[:, 0] = herd[torch.arange(len(herd), device=herd.device), best]
            herd[:, 1:] = self._inside(scene, front.x, children)
            worth = torch.cat([top[:, None], self._judge(scene, run, herd[:, 1:])], 1)
            left = left - (size - 1)
            still = torch.where(worth[:, 1:].amax(1) > top, 0, still + 1)
            stuck = stuck + (still >= PATIENCE)
            still = torch.where(still >= PATIENCE, 0, still)

    def _judge(self, scene: EvasionScene, run: Run, herd: Tensor) -> Tensor:
        """The loss of every member, `[m, k]`."""
        found = scene.oracle.values(run.loss, herd.flatten(0, 1), run.front.rows.repeat_interleave(herd.shape[1]))
        return found.view(herd.shape[:2])

    def _inside(self, scene: EvasionScene, x: Tensor, herd: Tensor) -> Tensor:
        many = x.repeat_interleave(herd.shape[1], 0)
        return scene.space.project(herd.flatten(0, 1), many, scene.radius).view_as(herd)

    def _bred(
        self, x: Tensor, herd: Tensor, worth: Tensor, fading: Tensor, radius: float, rng: Rng, rows: Tensor
    ) -> Tensor:
        """`population - 1` children a row, not yet inside the ball."""
        size = self.population - 1
        chance = _chances(worth)
        bounds = chance.cumsum(1)
        draws = rng.uniform(rows, (2, size)).to(chance)
        parents = [(draw[:, :, None] > bounds[:, None, :-1]).sum(2) for draw in draws.unbind(1)]
        at = torch.arange(len(herd), device=herd.device)[:, None]
        first, second = (herd[at, parent] for parent in parents)
        one, other = (chance.gather(1, parent) for parent in parents)
        mix, hit, where = (rng.uniform(rows, (size, *x.shape[1:])).to(x) for _ in range(3))
        wide = (len(x), size, *(1,) * (x.dim() - 1))
        children = torch.where(mix < (one / (one + other)).view(wide), first, second)
        rate = (self.rate * fading).clamp_min(self.least).view(-1, 1, *wide[2:])
        reach = radius * self.reach * fading.clamp_min(0.1).view(-1, 1, *wide[2:])
        return torch.where(hit < rate, children + (2 * where - 1) * reach.to(x), children)


def _chances(worth: Tensor) -> Tensor:
    """Probability `[m, k]` of being a parent, float64: softmax of the scores in units of their spread."""
    value = worth.double()
    spread = (value.amax(1, keepdim=True) - value.mean(1, keepdim=True)).clamp_min(1e-12)
    return torch.softmax((value - value.amax(1, keepdim=True)) / spread, 1)
