"""An attack of the momentum family on an ensemble of substitutes, whose gradients cost the target nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from vauban.attacks.evasion.mi_fgsm import MIFGSM
from vauban.attacks.evasion.momentum import Climb, Momentum
from vauban.attacks.evasion.ni_si import NISI
from vauban.attacks.evasion.settings import above, at_least
from vauban.attacks.evasion.substitutes import Ensemble
from vauban.attacks.evasion.vmi import VMI
from vauban.core.attack import EvasionScene
from vauban.core.goal import Goal
from vauban.core.oracle import Best, Look, Loss, Oracle
from vauban.core.rng import Rng
from vauban.core.target import Outputs

ROWS = 128
"""Inputs that pass through the substitutes at once."""


@dataclass(frozen=True)
class Side:
    """A goal of which one way alone is tried."""

    goal: Goal
    loss: Loss

    @property
    def targeted(self) -> bool:
        return self.goal.targeted

    @property
    def labels(self) -> Tensor:
        return self.goal.labels

    def margin(self, outputs: Outputs, rows: Tensor) -> Tensor:
        return self.goal.margin(outputs, rows)

    def surrogate(self, outputs: Outputs, rows: Tensor) -> Tensor:
        return self.loss(outputs, rows)

    def objectives(self, name: str) -> tuple[Loss, ...]:
        return (self.loss,)


class Stage:
    """Stands for the oracle where the momentum family asks: answers come from substitutes, nobody is ever decided.

    Points fool the target the more surely, the further they went beyond the substitutes' border; so every row makes all its
    steps, and `best` holds the points that were looked at last.
    """

    def __init__(self, ensemble: Ensemble, goal: Goal, x: Tensor, rows: Tensor) -> None:
        self.goal, self.rows = goal, rows
        nothing = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
        self.best = Best(x.clone(), nothing, -nothing)
        self._ensemble, self._turn = ensemble, 0

    def open(self, rows: Tensor, gradients: int = 1) -> Tensor:
        return torch.ones_like(rows, dtype=torch.bool)

    def left(self, rows: Tensor) -> Tensor:
        return torch.full_like(rows, 2**62)

    def margins(self, x: Tensor, rows: Tensor) -> None:
        """Keeps the points; the family does not read what comes back."""
        self.best.x[rows] = x

    def value_and_grad(self, loss: Loss, x: Tensor, rows: Tensor, keep: bool = True) -> Look:
        values, margins, grad = [], [], torch.empty_like(x)
        for start in range(0, len(x), ROWS):
            cut = slice(start, start + ROWS)
            leaf = x[cut].detach().requires_grad_(True)
            with torch.enable_grad():
                out = self._ensemble.outputs(leaf, self._turn)
                value = loss(out, rows[cut])
                (grad[cut],) = torch.autograd.grad(value.sum(), leaf)
            values.append(value.detach())
            margins.append(self.goal.margin(out, rows[cut]).detach())
        self._turn += 1
        return Look(torch.cat(values), grad, torch.cat(margins), self.open(rows))


@dataclass(frozen=True, kw_only=True)
class Together(NISI):
    """Looks ahead, at paler copies, each moved to a place of its own around: NI, SI and the variance tuning of VMI at once."""

    neighbours: int = 5
    reach: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("neighbours", self.neighbours, 1)
        above("reach", self.reach, 0)

    @property
    def looks(self) -> int:
        return self.copies + self.neighbours

    def slope(self, climb: Climb, z: Tensor, here: Tensor, memory: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor]:
        """The mean gradient over the copies ahead, corrected by what was seen around the last point."""
        ahead, _ = super().slope(climb, z, here, memory, tuned)
        around = torch.zeros_like(z)
        for number in range(self.neighbours):
            near = climb.scene.space.sample(z, self.reach * climb.scene.radius, climb.rng, climb.front.rows)
            pale = 0.5 ** (number % self.copies)
            around = around + climb.slope(near * pale) * pale
        return ahead + tuned, around / self.neighbours - ahead


@dataclass(frozen=True)
class Recipe:
    """A way of making examples: an attack, and what is set for it whatever the user sets for the others."""

    kind: type[Momentum]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    long: bool = False
    """Twice as many steps, twice the radius in all: for what is cheap and can turn round on its way."""

    def __call__(self, steps: int, **wanted: Any) -> Momentum:
        """The attack with those of the settings that it has."""
        pace = {"steps": 2 * steps, "step": 1 / steps} if self.long else {"steps": steps}
        known = self.kind.__dataclass_fields__
        made = {name: value for name, value in (pace | wanted | dict(self.fixed)).items() if name in known}
        return self.kind(**made)


RECIPES: Mapping[str, Recipe] = {
    "pgd": Recipe(MIFGSM, {"decay": 0.0, "diversity": 0.0, "kernel": 1}, long=True),
    "mi": Recipe(MIFGSM),
    "ni_si": Recipe(NISI),
    "vmi": Recipe(VMI),
    "together": Recipe(Together),
}


def rehearsed(attack: Momentum, scene: EvasionScene, ensemble: Ensemble, loss: Loss, rows: Tensor, rng: Rng) -> Tensor:
    """The points `[m, ...]` for `rows` at which the attack on the ensemble ends."""
    stage = Stage(ensemble, Side(scene.oracle.goal, loss), scene.x, rows)
    # the family asks no more of an oracle than this one answers
    attack(replace(scene, oracle=cast(Oracle, stage)), rng)
    return stage.best.x[rows]


def trust(ensemble: Ensemble, goal: Goal, points: Tensor, rows: Tensor) -> Tensor:
    """How many substitutes each point fools, and then by how much on average, float64 `[m]`."""
    found = []
    for start in range(0, len(points), ROWS):
        cut = slice(start, start + ROWS)
        with torch.no_grad():
            margins = torch.stack([goal.margin(one, rows[cut]) for one in ensemble.opinions(points[cut])]).double()
        found.append((margins > 0).sum(0) + margins.mean(0).sigmoid())
    return torch.cat(found)


def rivals(scene: EvasionScene, ensemble: Ensemble, points: Tensor, rows: Tensor, most: int) -> list[Loss]:
    """The leads of up to `most` classes over the true one: neither that nor what the `points` `[m, ...]` are taken for.

    Where any wrong class will do, a way to another is what a target may follow that did not follow the first.
    """
    goal, count = scene.oracle.goal, min(most, (scene.classes or 0) - 2)
    if goal.targeted or count < 1:
        return []
    true = goal.labels.to(points.device)
    with torch.no_grad():
        said = [ensemble.outputs(part, 0).values for part in points.split(ROWS)]
    left = torch.cat(said).scatter(1, true[rows][:, None], -torch.inf)
    chosen = torch.zeros(len(scene.x), count, dtype=torch.int64, device=points.device)
    chosen[rows] = left.topk(count + 1, 1).indices[:, 1:]
    return [partial(_lead, true, chosen[:, place]) for place in range(count)]


def _lead(true: Tensor, wanted: Tensor, outputs: Outputs, rows: Tensor) -> Tensor:
    both = torch.stack([wanted[rows], true[rows]], 1)
    return outputs.values.gather(1, both).diff(dim=1).neg().squeeze(1)
