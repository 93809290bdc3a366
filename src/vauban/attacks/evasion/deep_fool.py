"""DeepFool, and SuperDeepFool: to the nearest of the linearised borders, again and again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front
from vauban.attacks.evasion.nearest import Nearest, box
from vauban.attacks.evasion.settings import above, at_least
from vauban.attacks.evasion.settle import settle
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.rng import Rng
from vauban.parts.halfspace import cross
from vauban.parts.projections import per_row
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

COMPARED = 5
"""Classes that the first step compares at most: those of the largest scores."""
NOTHING = 1e-4
"""Share of the largest score that counts as a gap still."""
DUAL = {"linf": 1.0, "l2": 2.0}


@dataclass(frozen=True, kw_only=True)
class _Fool:
    """What both share: a step crosses the nearest of a few classes' linearised borders."""

    card: ClassVar[AttackCard]

    steps: int = 50
    classes: int = 2
    overshoot: float = 0.02
    finish: int = 10

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        at_least("classes", self.classes, 1)
        above("overshoot", self.overshoot, 0)
        at_least("finish", self.finish, 0)

    def price(self, classes: int | None) -> Price:
        """One query a step, and a gradient for each class that it compares: up to five at the first, `classes` from then on."""
        first = max(min(COMPARED, (classes or 2) - 1), self.classes)
        return Price(
            queries=self.steps + self.finish + 1, gradients=first + self.classes * (self.steps - 1) + self.finish
        )

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]`: the nearest successes, or one within the radius where it is finite."""
        found, front = Nearest(scene), Front(scene)
        true = scene.oracle.goal.labels.to(front.x.device)
        z, wanted = front.x, self._likely(scene, front, true)
        for number in range(self.steps):
            # every gap is a gradient: a row that cannot pay for all of them stops here
            z, wanted = front.narrow(scene.oracle.open(front.rows, wanted.shape[1]), z, wanted)
            if not len(front):
                break
            look = scene.oracle.class_slopes(z, front.rows, wanted, true[front.rows])
            found.see(z, front.rows, look.margin)
            gaps = look.scores.gather(1, true[front.rows, None]) - look.scores.gather(1, wanted)
            order = self._order(scene, z, look.grad, gaps)
            at, first, hit = torch.arange(len(z), device=z.device), order[:, 0], look.margin > 0
            # at least what rounding hides: a gap of nothing would never be crossed
            least = torch.where(hit, -torch.inf, NOTHING * look.scores.abs().amax(1))
            z = self.move(scene, front.x, z, look.grad[at, first], torch.maximum(gaps[at, first], least), hit)
            if number == 0:
                wanted = wanted.gather(1, order[:, : self.classes])
            stay = look.open & self.goes_on(look.margin, number)
            z, wanted = front.narrow(stay, z, wanted)
        settle(scene, found, self.finish)
        return Perturbed(scene.oracle.best.x)

    def _likely(self, scene: EvasionScene, front: Front, true: Tensor) -> Tensor:
        """int64 `[m, k]`: the wrong classes to begin with; a query where not all of them are."""
        many = min(COMPARED, (scene.classes or 2) - 1)
        own = true[front.rows, None]
        if many + 1 == scene.classes or not len(front):
            return (own + torch.arange(1, many + 1, device=own.device)) % (many + 1)
        scores = scene.oracle.scores(front.x, front.rows)
        (scores,) = front.narrow(scene.oracle.open(front.rows), scores)
        return scores.scatter(1, true[front.rows, None], -torch.inf).topk(many, 1).indices

    def _order(self, scene: EvasionScene, z: Tensor, grad: Tensor, gaps: Tensor) -> Tensor:
        """int64 `[m, k]`: nearest borders first; where one is crossed already, the one that is crossed furthest."""
        low, high = box(scene, z)
        # the dual norm over the features that the box lets move; what their walls cut off is left to the step itself
        free = torch.where(grad > 0, z[:, None] < high, z[:, None] > low)
        slope = torch.where(free, grad, 0).flatten(2).double()
        dual = torch.linalg.vector_norm(slope, ord=DUAL[scene.space.name], dim=2)
        far = gaps.double() / dual.clamp_min(torch.finfo(torch.float64).tiny)
        return torch.where(gaps > 0, far, gaps.double()).argsort(dim=1, stable=True)

    def goes_on(self, margin: Tensor, number: int) -> Tensor:
        """bool `[m]`: the rows that take another step."""
        return margin <= 0

    def move(self, scene: EvasionScene, x: Tensor, z: Tensor, slope: Tensor, gap: Tensor, hit: Tensor) -> Tensor:
        """Over the border that lies ahead."""
        there = cross(z, slope, gap, *box(scene, z), scene.space.name)
        return torch.clamp(z + (1 + self.overshoot) * (there - z), *box(scene, z))


@dataclass(frozen=True, kw_only=True)
class DeepFool(_Fool):
    """Goes to the nearest border as if the model were linear, looks again from there, until a class is crossed.

    Source: Moosavi-Dezfooli, Fawzi and Frossard 2016 (arXiv:1511.04599, algorithm 2; other norms: section 3.3).
    Departures: the five likeliest classes are compared once, and only the nearest few from then on, in one forward; steps
    keep inside the box and spend elsewhere what it denies to some features; the last ten steps cross the linearised border
    from the nearest success, where the published attack ends at the first.

    Args:
        steps: to the border, at most.
        classes: compared after the first step.
        overshoot: share by which a step goes too far.
        finish: steps onto the linearised border at the end.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.deep_fool",
        name="DeepFool",
        summary="Goes straight to the nearest border of the model, as if that were flat, in a few steps.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("linf", "l2"),
        sources=(
            Source(
                title="DeepFool: a simple and accurate method to fool deep neural networks",
                where="Moosavi-Dezfooli et al., CVPR 2016, arXiv:1511.04599, algorithm 2",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"steps": 20}, "deep": {"classes": 4}}


@dataclass(frozen=True, kw_only=True)
class SuperDeepFool(_Fool):
    """DeepFool, and where it crossed the border, its change laid onto the border's slope there, again and again.

    A nearest point has its change along the slope, which DeepFool's has not.

    Source: Abdolahpourrostam, Abroshan and Moosavi-Dezfooli 2024 (arXiv:2303.12481, algorithm 2).
    Departures: those of DeepFool; it goes on after the first success for as many steps as it is given, and the nearest
    counts; no line search, for the last steps cross the linearised border.

    Args:
        steps: to the border or along its slope.
        classes: compared after the first step.
        overshoot: share by which a step goes too far.
        finish: steps onto the linearised border at the end.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.super_deep_fool",
        name="SuperDeepFool",
        summary="Goes to the nearest border of the model, and along it to where that is nearest to the input.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("l2",),
        sources=(
            Source(
                title="SuperDeepFool: a new fast and accurate minimal adversarial attack",
                where="Abdolahpourrostam et al., NeurIPS 2024, arXiv:2303.12481, algorithm 2",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"steps": 20}, "deep": {"steps": 200}}

    def goes_on(self, margin: Tensor, number: int) -> Tensor:
        """All rows."""
        return torch.ones_like(margin, dtype=torch.bool)

    def move(self, scene: EvasionScene, x: Tensor, z: Tensor, slope: Tensor, gap: Tensor, hit: Tensor) -> Tensor:
        """Over the border that lies ahead; from beyond it, along its slope as far as the change reached that way."""
        ahead = super().move(scene, x, z, slope, gap, hit)
        flat, change = slope.flatten(1).double(), (z - x).flatten(1).double()
        length = (flat * change).sum(1) / flat.square().sum(1).clamp_min(torch.finfo(torch.float64).tiny)
        along = torch.clamp(x + slope * per_row(length, x), *box(scene, x))
        return torch.where(per_row(hit, z).bool(), along, ahead)
