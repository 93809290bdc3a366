"""VMI-FGSM: momentum with variance tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.momentum import BASED, NEEDS, Climb, Momentum
from vauban.attacks.evasion.settings import above, at_least
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class VMI(Momentum):
    """Momentum whose gradients are corrected by how those around the last point differed from the one at it.

    Source: Wang and He 2021 (arXiv:2103.15571, algorithm 1). Settings `diversity`: Xie et al. 2019 (arXiv:1803.06978); `kernel`: Dong
    et al. 2019 (arXiv:1904.02884).
    Departures: neighbours are drawn from the ball of the space around the point and put inside the box; the rest as in MI-FGSM.

    Args:
        steps: gradient steps.
        step: size of a step as a share of the radius; 1 / steps where None.
        decay: weight of the sum of earlier gradients, 0 or more.
        neighbours: gradients around each point.
        reach: how far around, in radii.
        diversity: chance, 0 to 1, that an input is shrunk by up to a tenth and laid at a random place before its
            gradient is taken. Without effect for vectors, which have no spatial sides.
        kernel: side of the Gaussian that blurs gradients along spatial sides, odd; 1 for none. Without effect for vectors.
        loss: `margin` (difference of logits), `ce` (cross-entropy) or `dlr`.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.vmi",
        name="VMI-FGSM",
        summary="Follows gradients that are corrected by those of points around.",
        needs=NEEDS,
        spaces=("linf", "l2"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="Enhancing the transferability of adversarial attacks through variance tuning",
                where="Wang and He, CVPR 2021, arXiv:2103.15571, algorithm 1",
            ),
            *BASED,
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 5, "neighbours": 3},
        "deep": {"steps": 20, "neighbours": 20},
    }

    neighbours: int = 10
    reach: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("neighbours", self.neighbours, 1)
        above("reach", self.reach, 0)

    @property
    def looks(self) -> int:
        """One at the point, one at each neighbour."""
        return 1 + self.neighbours

    def slope(self, climb: Climb, z: Tensor, here: Tensor, memory: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient at the point, corrected by what was seen around the last one."""
        around = torch.zeros_like(z)
        for _ in range(self.neighbours):
            near = climb.scene.space.sample(z, self.reach * climb.scene.radius, climb.rng, climb.front.rows)
            around = around + climb.slope(near)
        return here + tuned, around / self.neighbours - here
