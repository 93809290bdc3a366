"""NI-SI: momentum that looks ahead, at paler copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.momentum import BASED, NEEDS, Climb, Momentum
from vauban.attacks.evasion.settings import at_least
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class NISI(Momentum):
    """Momentum whose gradients are taken one step ahead, at the input and at copies of half, a quarter, ... its values.

    A classifier mostly gives paler copies the same class, so that they stand in for other models.

    Source: Lin et al. 2020 (arXiv:1908.06281, algorithm 1). Settings `diversity`: Xie et al. 2019 (arXiv:1803.06978); `kernel`: Dong
    et al. 2019 (arXiv:1904.02884).
    Departures: the look ahead is as long as the step that momentum alone would take, in the space's own norm; copies are
    paler towards zero whatever the box is; the rest as in MI-FGSM.

    Args:
        steps: gradient steps.
        step: size of a step as a share of the radius; 1 / steps where None.
        decay: weight of the sum of earlier gradients, and of the look ahead, 0 or more.
        copies: gradients of a step, the input's own among them.
        diversity: chance, 0 to 1, that an input is shrunk by up to a tenth and laid at a random place before its
            gradient is taken. Without effect for vectors, which have no spatial sides.
        kernel: side of the Gaussian that blurs gradients along spatial sides, odd; 1 for none. Without effect for vectors.
        loss: `margin` (difference of logits), `ce` (cross-entropy) or `dlr`.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.ni_si",
        name="NI-SI",
        summary="Follows gradients taken one step ahead and at paler copies of the input.",
        needs=NEEDS,
        spaces=("linf", "l2"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="Nesterov accelerated gradient and scale invariance for adversarial attacks",
                where="Lin et al., ICLR 2020, arXiv:1908.06281, algorithm 1",
            ),
            *BASED,
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"steps": 5, "copies": 3}, "deep": {"steps": 40}}
    elsewhere: ClassVar[bool] = True

    copies: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("copies", self.copies, 1)

    @property
    def looks(self) -> int:
        """One a copy."""
        return self.copies

    def slope(self, climb: Climb, z: Tensor, here: Tensor, memory: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor]:
        """The mean gradient over the copies of the point ahead."""
        space, length = climb.scene.space, climb.scene.radius * self.decay * self._share
        ahead = z + space.steepest(memory, z, length)
        total = torch.zeros_like(z)
        for number in range(self.copies):
            total = total + climb.slope(ahead * 0.5**number) * 0.5**number
        return total / self.copies, tuned
