"""EAD: elastic-net attacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.carlini_wagner import Priced
from vauban.attacks.evasion.nearest import box
from vauban.attacks.evasion.settings import above
from vauban.core.attack import EvasionScene
from vauban.parts.projections import per_row
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class EAD(Priced):
    """As Carlini-Wagner with a share of the sum of changes in what is minimised, which sets most of them to zero.

    Source: Chen, Sharma, Zhang, Yi and Hsieh 2018 (arXiv:1709.04114, algorithm 1, decision rule L1).
    Departures: those of Carlini-Wagner; step sizes follow the slope's length, as the price would make a constant one
    overshoot.

    Args:
        steps: gradients in all, over all rounds.
        targets: nearest classes to go for, where any class will do.
        rounds: prices tried, by tenfold rises and halving.
        price_start: of missing the goal, in units that take a linear model to its border at 2.
        stride: length of the first step, in distances to the border; it falls with the root of the steps left.
        beta: share of the step by which every change is made shorter, relative to the longest change.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.ead",
        name="Elastic-net attack",
        summary="Looks for a change of few and small features that fools the model, at several prices for failing.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("l1",),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="EAD: elastic-net attacks to deep neural networks via adversarial examples",
                where="Chen et al., AAAI 2018, arXiv:1709.04114, algorithm 1",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 150, "targets": 1, "rounds": 3},
        "deep": {"steps": 4000, "rounds": 9},
    }

    beta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        above("beta", self.beta, 0)

    def step(
        self,
        scene: EvasionScene,
        z: Tensor,
        x: Tensor,
        slope: Tensor,
        state: tuple[Tensor, Tensor],
        reach: Tensor,
        number: int,
        steps: int,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """FISTA: shrunk after a step from a point drawn on by what the step before changed."""
        before = x + state[0]
        flat = slope.flatten(1).double()
        length = torch.linalg.vector_norm(flat, dim=1).clamp_min(torch.finfo(torch.float64).tiny)
        size = self.stride * reach * (1 - number / steps) ** 0.5
        moved = z - slope * per_row(size / length, z) - x
        cut = self.beta * size / length * flat.abs().amax(1)
        kept = moved.sign() * (moved.abs() - per_row(cut, z)).clamp_min(0)
        now = torch.clamp(x + kept, *box(scene, z))
        drawn = torch.clamp(now + number / (number + 3) * (now - before), *box(scene, z))
        # the sparse point itself is what counts: look at it every other time
        return (now if number % 2 else drawn), (now - x, state[1])
