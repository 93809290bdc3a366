"""A few rows to ask a model about, and a count of what that costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vauban.attacks.evasion.ascent import ascend
from vauban.attacks.evasion.front import Front
from vauban.core.attack import EvasionScene
from vauban.core.goal import Goal
from vauban.core.oracle import Best, Loss
from vauban.core.rng import Rng
from vauban.core.space import Continuous
from vauban.core.target import Outputs, Target, TorchBacked
from vauban.engine.batching import answers
from vauban.engine.oracle import MeteredOracle
from vauban.parts.losses import as_logits
from vauban.schema.access import Access

FEW = 24
"""Rows that are asked about."""
DEAD = 1e-12
"""A gradient whose largest entry is smaller cannot be told from none."""


def apart(values: Tensor) -> float:
    """How far answers lie apart: their standard deviation, or the size of the only one; above 0."""
    found = values.std() if values.numel() > 1 else values.abs().sum()
    return max(float(found), 1e-12)


@dataclass
class Meter:
    """Row passes spent on doubts."""

    queries: int = 0
    gradients: int = 0


@dataclass
class Probe:
    """Rows `x` `[n, ...]` that `target` gets right, their `goal`, and how far an attacker may go.

    `near` is a distance per coordinate that is small beside the radius (beside the inputs' size where there is none).
    """

    target: Target
    goal: Goal
    x: Tensor
    space: Continuous
    radius: float
    seed: int = 0
    classes: int | None = None
    unlabelled: int | None = None
    """The one class that occurs in no label, where there is one."""
    meter: Meter = field(default_factory=Meter)

    @classmethod
    def of(
        cls,
        target: Target,
        goal: Goal,
        x: Tensor,
        space: Continuous,
        radius: float,
        **more: Any,
    ) -> Probe:
        """The first FEW rows that do not reach the goal already."""
        ahead = min(len(x), 4 * FEW)
        meter = Meter(queries=ahead)
        rows = torch.arange(ahead, device=x.device)
        left = goal.margin(answers(target, x[:ahead]), rows) <= 0 if ahead else torch.zeros(0, dtype=torch.bool)
        rows = rows[left][:FEW]
        return cls(target, subset(goal, rows), x[rows], space, radius, meter=meter, **more)

    def on(self, target: Target) -> Probe:
        """The same questions to another target; the costs are added up."""
        return Probe(
            target,
            self.goal,
            self.x,
            self.space,
            self.radius,
            self.seed,
            self.classes,
            self.unlabelled,
            self.meter,
        )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def rows(self) -> Tensor:
        return torch.arange(len(self.x), device=self.x.device)

    @property
    def gradients(self) -> bool:
        return Access.GRADIENTS in self.target.offers and len(self) > 0

    @property
    def module(self) -> Any:
        """The torch module behind the target; None where there is none."""
        return self.target.module if isinstance(self.target, TorchBacked) else None

    @cached_property
    def reach(self) -> float:
        """The radius, or a twentieth of the inputs' size; for a norm over many coordinates, a coordinate's share of it."""
        if self.radius == float("inf"):
            return 0.05 * max(float(self.x.abs().amax()), 1e-6)
        like = self.x[:1]
        step = self.space.steepest(torch.ones_like(like), like, self.radius) if self.space.name == "linf" else None
        return float(step.abs().amax()) if step is not None else self.radius / like[0].numel() ** 0.5

    def rng(self, *name: object) -> Rng:
        return Rng(self.seed, len(self.x)).child(*name)

    def signs(self, *name: object) -> Tensor:
        """A random direction for each row, of size `reach` in every coordinate."""
        return self.rng(*name).signs(self.rows, self.x.shape[1:]).to(self.x) * self.reach

    def drawn(self, *name: object) -> Tensor:
        """A random admissible point for each row."""
        if self.radius == float("inf"):
            return self.x + self.signs(*name)
        return self.space.sample(self.x, self.radius, self.rng(*name), self.rows)

    def answer(self, x: Tensor) -> Outputs:
        self.meter.queries += len(x)
        return answers(self.target, x)

    def margin(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Margins of the goal at `x`, float64 `[n]`."""
        return self.goal.margin(self.answer(x), self.rows if rows is None else rows).double()

    def slope(self, loss: Loss, x: Tensor | None = None, target: Target | None = None) -> Tensor | None:
        """The input gradient of a loss, `[n, ...]`; None where no way leads from the answer to the input."""
        x = self.x if x is None else x
        self.meter.queries += len(x)
        self.meter.gradients += len(x)
        leaf = x.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            value = loss((target or self.target).forward(leaf), self.rows)
            if not value.requires_grad:
                return None
            found: Tensor | None = torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0]
        return found

    @cached_property
    def random(self) -> bool:
        """The same input gets another answer the second time."""
        first, second = (self.answer(self.x).values.double() for _ in range(2))
        return not torch.allclose(first, second, rtol=0, atol=1e-4 * apart(first), equal_nan=True)

    @cached_property
    def shaky(self) -> bool:
        """Random, or dependent on the batch: an answer is not a function of its input alone."""
        together, one = self.answer(self.x[:8]).values.double(), self.answer(self.x[:1]).values.double()
        limit = 1e-3 * apart(together)
        return self.random or not torch.allclose(together[:1], one, rtol=0, atol=limit, equal_nan=True)

    @cached_property
    def losses(self) -> dict[str, Loss]:
        """The losses that an attack may climb, by name; a regression has one, its margin."""
        if self.classes is None:
            return {"margin": self.goal.margin}
        named: dict[str, Loss] = {name: self.goal.objectives(name)[0] for name in ("ce", "margin", "dlr")}

        def probability(outputs: Outputs, rows: Tensor) -> Tensor:
            return self.goal.margin(Outputs(as_logits(outputs).softmax(1), "logits"), rows)

        return named | {"probability margin": probability}

    @cached_property
    def slopes(self) -> dict[str, Tensor | None]:
        return {name: self.slope(loss) for name, loss in self.losses.items()}

    @cached_property
    def dead(self) -> dict[str, float]:
        """Share of rows whose gradient is exactly zero, not finite or missing, a loss."""
        return {name: _share(g, lambda peak: ~(peak > 0)) for name, g in self.slopes.items()}

    @cached_property
    def faint(self) -> dict[str, float]:
        """Share of rows whose gradient is below DEAD, a loss."""
        return {name: _share(g, lambda peak: ~(peak >= DEAD)) for name, g in self.slopes.items()}

    def climb(
        self, steps: int, name: str, *, radius: float | None = None, start: Tensor | None = None, space: Any = None
    ) -> Best:
        """A short ascent of the margin: the best points found, as the target itself judges them."""
        radius = self.radius if radius is None else radius
        space = space or self.space
        oracle = MeteredOracle(self.target, self.goal, space, self.x, radius)
        oracle.begin()
        scene = EvasionScene(oracle, self.x, space, radius, self.classes)
        for number, loss in enumerate(self.goal.objectives("margin")):
            front = Front(scene)
            if len(front):
                first = (
                    space.sample(front.x, radius, self.rng(name, number), front.rows)
                    if start is None
                    else start[front.rows]
                )
                ascend(scene, front, first, loss, steps)
        self.meter.queries += int(oracle.spent.queries.sum())
        self.meter.gradients += int(oracle.spent.gradients.sum())
        return oracle.best


def subset(goal: Goal, rows: Tensor) -> Goal:
    """The goal of those rows alone."""
    part: Goal = replace(goal, labels=goal.labels[rows])  # type: ignore[type-var]
    return part


def _share(slope: Tensor | None, bad: Callable[[Tensor], Tensor]) -> float:
    if slope is None:
        return 1.0
    peak = slope.flatten(1).abs().amax(1)
    return float(bad(torch.where(peak.isfinite(), peak, 0.0)).double().mean())
