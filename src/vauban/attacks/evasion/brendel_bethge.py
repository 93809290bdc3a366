"""Brendel and Bethge's attack: along the border, from a point beyond it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.fab import onto
from vauban.attacks.evasion.front import Front
from vauban.attacks.evasion.nearest import COMPARED, Nearest, box, ranked
from vauban.attacks.evasion.rivals import compared
from vauban.attacks.evasion.settings import above, at_least
from vauban.attacks.evasion.settle import settle
from vauban.attacks.evasion.sigma_zero import widths
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.rng import Rng
from vauban.parts.projections import per_row
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

HALVINGS = 10
"""From a start to the border."""
IDLE = 5
"""Steps without a nearer point after which steps become shorter."""


@dataclass(frozen=True, kw_only=True)
class BrendelBethge:
    """Starts at an input of another class and walks along the border to where it is nearest, led by the slope across it.

    A step goes towards the point of the linearised border nearest to the input, no further than a trust radius, which
    halves where steps lead nowhere. It comes from the other side than most attacks, so that it sees other borders.

    Source: Brendel, Rauber, Kuemmerer, Ustyuzhaninov and Bethge 2019 (arXiv:1907.01003, section 3).
    Departures: the step is the way to the exact optimum without trust region, cut to its length, instead of the
    exact optimum within it; starts are other inputs of the same kind, noise, and where a linear model would give in to its
    nearest class: the nearest of all, after bisection; not in L0; the last ten steps cross the linearised border without a trust region.

    Args:
        steps: gradients in all.
        starts: points tried as a start, a query each.
        trust: longest first step, as a share of the way from the input to the start at the border (in L2).
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.brendel_bethge",
        name="Brendel-Bethge",
        summary="Walks along the model's border from an input of another class to the point nearest to the original.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="Accurate, reliable and fast robustness evaluation",
                where="Brendel et al., NeurIPS 2019, arXiv:1907.01003, section 3",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"steps": 80}, "deep": {"steps": 1000}}

    steps: int = 300
    starts: int = 20
    trust: float = 0.3

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 2)
        at_least("starts", self.starts, 1)
        above("trust", self.trust, 0)

    def price(self, classes: int | None) -> Price:
        """`steps` gradients, a query for each start, three to rank classes and ten for the way to the border."""
        return Price(queries=self.steps + self.starts + HALVINGS + 3, gradients=self.steps)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]`: the nearest successes, or one within the radius where it is finite."""
        found, front = Nearest(scene), Front(scene)
        rng = rng.child("brendel_bethge")
        led = compared(scene, min(COMPARED, self.steps // 20))
        if led and len(front) and bool(scene.oracle.open(front.rows, led).all()):
            ranked(scene, front, led, found)
        for number in range(self.starts):
            front.narrow(scene.oracle.open(front.rows))
            if len(front):
                start = self._start(scene, front, rng, number)
                found.see(start, front.rows, scene.oracle.margins(start, front.rows))
        self._descend(scene, found)
        last = min(10, self.steps // 5)
        self._walk(scene, found, self.steps - led - last)
        settle(scene, found, last)
        return Perturbed(scene.oracle.best.x)

    def _start(self, scene: EvasionScene, front: Front, rng: Rng, number: int) -> Tensor:
        """Another input and noise by turns, the noise stronger every time."""
        pool = scene.donors
        pick = rng.integers(front.rows, max(len(pool), 1) if pool is not None else 1)[:, 0]
        noise = 2 * rng.uniform(front.rows, front.x.shape[1:]).to(front.x) - 1
        if number % 2 == 0 and pool is not None and len(pool):
            return torch.clamp(pool.to(front.x)[pick.to(pool.device)], *box(scene, front.x))
        strength = 2.0 ** (number / 3 - 2)
        return torch.clamp(front.x + strength * widths(scene, front.x) * noise, *box(scene, front.x))

    def _descend(self, scene: EvasionScene, found: Nearest) -> None:
        """Bisection on the straight way from each start to the input."""
        front = Front(scene)
        front.narrow(found.distance[front.rows].isfinite())
        far = found.x[front.rows]
        low = torch.zeros(len(front), dtype=front.x.dtype, device=front.x.device)
        high = torch.ones_like(low)
        for _ in range(HALVINGS):
            far, low, high = front.narrow(scene.oracle.open(front.rows), far, low, high)
            if not len(front):
                return
            middle = (low + high) / 2
            z = torch.clamp(front.x + per_row(middle, far) * (far - front.x), *box(scene, far))
            margin = scene.oracle.margins(z, front.rows)
            found.see(z, front.rows, margin)
            high, low = torch.where(margin > 0, middle, high), torch.where(margin > 0, low, middle)

    def _walk(self, scene: EvasionScene, found: Nearest, steps: int) -> None:
        front = Front(scene)
        front.narrow(found.distance[front.rows].isfinite())
        z = found.x[front.rows]
        trust = self.trust * torch.linalg.vector_norm((z - front.x).flatten(1).double(), dim=1)
        idle = torch.zeros(len(front), dtype=torch.int64, device=z.device)
        for _ in range(steps):
            if not len(front):
                return
            look = scene.oracle.value_and_grad(scene.oracle.goal.margin, z, front.rows)
            nearer = found.see(z, front.rows, look.margin)
            idle = torch.where(nearer, 0, idle + 1)
            tired = idle >= IDLE
            trust, idle = torch.where(tired, trust / 2, trust), torch.where(tired, 0, idle)
            z = torch.where(per_row(tired, z).bool(), found.x[front.rows], z)
            # a little beyond the border, where the goal is
            gap = -look.margin.double() + 1e-3 * look.margin.abs().double()
            along = (look.grad.double() * (front.x - z).double()).flatten(1).sum(1)
            here = onto(z, look.grad, gap, scene)
            there = onto(front.x, look.grad, gap - along, scene)
            length = torch.linalg.vector_norm((there - here).flatten(1).double(), dim=1).clamp_min(1e-30)
            share = (trust / length).clamp_max(1.0)
            ahead = torch.clamp(here + per_row(share, z) * (there - here), *box(scene, z))
            # the look was taken where the row was before it went back
            z = torch.where(per_row(tired, z).bool(), z, ahead)
            z, trust, idle = front.narrow(look.open, z, trust, idle)
