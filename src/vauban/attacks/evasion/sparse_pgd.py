"""Sparse PGD: ascent on what to change and on how much, apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front, finite_radius
from vauban.attacks.evasion.nearest import box
from vauban.attacks.evasion.settings import above, at_least, one_of
from vauban.attacks.evasion.sigma_zero import widths
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.parts.losses import LOSSES
from vauban.parts.projections import largest, per_row
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class SparsePGD:
    """Keeps a change for every feature and a score of each feature's worth; only the best few by score are changed.

    Changes climb the loss by signs, scores by how much the loss would gain from their feature. Where the chosen features
    stay the same for long, scores are drawn anew.

    Source: Zhong, Huang and Liu 2024 (arXiv:2405.05760, algorithm 1, with unprojected and sparse gradients in turn).
    Departures: features are counted, not pixels; each restart takes the other kind of gradient; scores are drawn anew row by
    row; the last step moves the chosen features to the wall that the slope points to.

    Args:
        steps: gradients of a run.
        restarts: runs from other random starts, by turns with the slopes of unchosen features and without.
        stride: step of every change, in widths of the box.
        choice: step of the scores, in roots of the number of features.
        patience: steps with the same features before scores are drawn anew.
        loss: `ce`, `margin` or `dlr`.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.sparse_pgd",
        name="Sparse PGD",
        summary="Follows the gradient to change a few features as much as may be.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("l0",),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        curve=True,
        sources=(
            Source(
                title="Towards efficient training and evaluation of robust models against l0 bounded adversarial perturbations",
                where="Zhong et al., ICML 2024, arXiv:2405.05760, algorithm 1",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 40, "restarts": 1},
        "deep": {"steps": 300, "restarts": 4},
    }

    steps: int = 100
    restarts: int = 2
    stride: float = 0.25
    choice: float = 0.25
    patience: int = 3
    loss: str = "margin"

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 2)
        at_least("restarts", self.restarts, 1)
        above("stride", self.stride, 0)
        above("choice", self.choice, 0)
        at_least("patience", self.patience, 1)
        one_of("loss", self.loss, LOSSES)

    def price(self, classes: int | None) -> Price:
        """`steps` gradients a run; twice that in a regression."""
        each = self.restarts * self.steps * (1 if classes else 2)
        return Price(queries=each, gradients=each)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        count = int(finite_radius(scene, self.card.name))
        for restart in range(self.restarts):
            for side, loss in enumerate(scene.oracle.goal.objectives(self.loss)):
                front = Front(scene)
                if len(front) and count:
                    self._run(scene, front, count, loss, restart % 2 == 1, rng.child("sparse_pgd", restart, side))
        return Perturbed(scene.oracle.best.x)

    def _run(self, scene: EvasionScene, front: Front, count: int, loss: Loss, sparse: bool, rng: Rng) -> None:
        width, size = widths(scene, front.x), front.x.shape[1:]
        noise = 2 * rng.uniform(front.rows, size).to(front.x) - 1
        change = torch.clamp(front.x + width * noise, *box(scene, front.x)) - front.x
        score = rng.normal(front.rows, size).double()
        chosen = _best(score, count)
        same = torch.zeros(len(front), dtype=torch.int64, device=front.x.device)
        for number in range(self.steps):
            z = front.project(torch.where(chosen, front.x + change, front.x))
            look = scene.oracle.value_and_grad(loss, z, front.rows)
            slope = torch.where(chosen, look.grad, 0) if sparse else look.grad
            stride = 2.0 if number == self.steps - 2 else self.stride
            moved = torch.clamp(front.x + change + stride * width * slope.sign(), *box(scene, z))
            worth = score.sigmoid()
            gain = look.grad.double() * change.double() * worth * (1 - worth)
            length = torch.linalg.vector_norm(gain.flatten(1), dim=1).clamp_min(torch.finfo(torch.float64).tiny)
            score = score + gain * (self.choice * z[:1].numel() ** 0.5 / length).view(-1, *[1] * (z.dim() - 1))
            change = moved - front.x
            before, chosen = chosen, _best(score, count)
            kept = (before == chosen).flatten(1).all(1)
            same = torch.where(kept, same + 1, 0)
            # every row draws at every step, so that its numbers do not depend on when others are stuck
            fresh = rng.normal(front.rows, size).double()
            stuck = (same >= self.patience) & (number < self.steps - 2)
            score = torch.where(per_row(stuck, z).bool(), fresh, score)
            chosen = torch.where(per_row(stuck, z).bool(), _best(fresh, count), chosen)
            same = torch.where(stuck, 0, same)
            change, width, score, chosen, same = front.narrow(look.open, change, width, score, chosen, same)
            if not len(front):
                return


def _best(score: Tensor, count: int) -> Tensor:
    """bool: the `count` features of the largest score."""
    many = torch.full((len(score),), count, dtype=torch.int64, device=score.device)
    return largest(score.flatten(1), many).view_as(score)
