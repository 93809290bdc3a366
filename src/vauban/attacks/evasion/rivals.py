"""Which wrong class is nearest, and the way to it.

The class with the second largest logit need not be the nearest: distance is the gap of the logits over how fast it can
be closed. Climbing the margin follows the largest logit, and on a linear model ends at a class that is not the nearest
one time in ten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front
from vauban.core.attack import EvasionScene
from vauban.core.goal import Goal
from vauban.core.oracle import Loss
from vauban.core.target import Outputs
from vauban.parts import losses
from vauban.parts.goals import MisclassifyOutright, shunned

OVERSHOOT = 100
"""Steps go that many times too far and are projected back, so that what the box denies to some features goes to others."""

PairLoss = Callable[[Outputs, Tensor, Tensor], Tensor]
"""(answers of m rows, true classes [m], wanted classes [m]) -> [m]."""


def _difference(outputs: Outputs, true: Tensor, wanted: Tensor) -> Tensor:
    z = losses.as_logits(outputs)
    return (z.gather(1, wanted[:, None]) - z.gather(1, true[:, None])).squeeze(1)


def _log_likelihood(outputs: Outputs, true: Tensor, wanted: Tensor) -> Tensor:
    return losses.log_likelihood(outputs, wanted)


PAIR_LOSSES: Mapping[str, PairLoss] = {"dlr": losses.dlr_between, "margin": _difference, "ce": _log_likelihood}


def compared(scene: EvasionScene, most: int) -> int:
    """How many classes an attack that compares `most` at most has to rank; 0 where there is nothing to choose."""
    wrong = 0 if scene.classes is None or scene.oracle.goal.targeted else scene.classes - 1
    return min(most, wrong) if wrong > 1 and most > 1 else 0


def towards(goal: Goal, wanted: Tensor, name: str = "margin") -> Loss:
    """The pair loss of that name between the true class and `wanted` `[n]`, a class for every row of the scene."""
    pair, gone = PAIR_LOSSES[name], shunned(goal)

    def loss(outputs: Outputs, rows: Tensor) -> Tensor:
        if gone is None:
            return pair(outputs, goal.labels.to(rows.device)[rows], wanted[rows])
        # a refusal stands in the way like the true class; who wants it has no way to go
        outputs, true = MisclassifyOutright(goal.labels, shunned=gone).folded(outputs, rows)
        return pair(outputs, true, (wanted[rows] - (wanted[rows] > gone).long()).clamp_max(outputs.values.shape[1] - 1))

    return loss


@dataclass(frozen=True)
class Rivals:
    """Of the rows of a front: classes, nearest first, and where one step of the whole radius ends."""

    wanted: Tensor
    """int64 `[m, k]`."""
    start: Tensor
    """The point within the radius that a linear model would be pushed to for the nearest class, `[m, ...]`."""


def _likeliest(scene: EvasionScene, front: Front, true: Tensor, most: int) -> Tensor:
    """`[m, most]` wrong classes; not a query is spent where all of them are wanted."""
    if most + 1 == scene.classes:
        return (true[:, None] + torch.arange(1, most + 1, device=true.device)) % (most + 1)
    scores = scene.oracle.scores(front.x, front.rows)
    return scores.scatter(1, true[:, None], -torch.inf).topk(most, 1).indices


def rank(scene: EvasionScene, front: Front, most: int) -> Rivals:
    """The `most` wrong classes of the largest scores, by the share of the radius at which a linear model gives in.

    Costs `most` gradients and up to two queries a row, at the clean input. As in MALT (Melamed et al. 2024, arXiv:2407.02240,
    section 4), but with what ball and box allow together in the place of the dual norm.
    """
    true = scene.oracle.goal.labels.to(front.x.device)[front.rows]
    near = _likeliest(scene, front, true, most)
    slopes = scene.oracle.class_slopes(front.x, front.rows, near, true)
    z = slopes.scores
    gaps = z.gather(1, true[:, None]) - z.gather(1, near)
    step = [scene.space.steepest(grad, front.x, OVERSHOOT * scene.radius) for grad in slopes.grad.unbind(1)]
    ends = torch.stack([front.project(front.x + change) for change in step], 1)
    # row by row in float64, so that no row's rounding depends on its neighbours
    gains = (slopes.grad.double() * (ends - front.x[:, None]).double()).flatten(2).sum(2)
    shares = gaps.double() / gains.clamp_min(torch.finfo(torch.float64).tiny)
    if (gone := shunned(scene.oracle.goal)) is not None:
        shares = shares.masked_fill(near == gone, torch.inf)
    order = shares.argsort(dim=1, stable=True)
    return Rivals(near.gather(1, order), ends[torch.arange(len(ends), device=ends.device), order[:, 0]])


def lead(scene: EvasionScene, front: Front, most: int) -> tuple[Loss, Tensor]:
    """The margin to the nearest of `most` classes, and the point `[m, ...]` to start from."""
    found = rank(scene, front, most)
    wanted = torch.zeros(len(scene.x), dtype=torch.int64, device=front.x.device)
    wanted[front.rows] = found.wanted[:, 0]
    return towards(scene.oracle.goal, wanted), found.start
