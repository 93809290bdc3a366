"""MI-FGSM: iterated gradient signs with momentum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vauban.attacks.evasion.momentum import BASED, NEEDS, Climb, Momentum
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class MIFGSM(Momentum):
    """Steps along a running sum of gradients, for adversarials that fool other models, too.

    Every gradient is brought to the same mean magnitude before it is added, so that the direction is one that many points
    of the way agree on. To make points that are to be carried to another model, ask for a lead (`goals.Firmly`): otherwise a row
    ends as soon as the model at hand is fooled. The gain over PGD was published for deep nets on photographs; between small
    nets on digits PGD's points carry over as well.

    Source: Dong et al. 2018 (arXiv:1710.06081, algorithms 1 and 2). Settings `diversity`: Xie et al. 2019 (arXiv:1803.06978);
    `kernel`: Dong et al. 2019 (arXiv:1904.02884).
    Departures: a row whose gradient is zero stays where it is; the loss is the margin unless told otherwise; resized inputs
    are smaller than the model's, never larger, so that any model takes them; the iterate itself is looked at as well where
    the gradient was taken at a resized one; in a regression there are two runs, upwards and downwards.

    Args:
        steps: gradient steps.
        step: size of a step as a share of the radius; 1 / steps where None.
        decay: weight of the sum of earlier gradients, 0 or more; 0 is BIM.
        diversity: chance, 0 to 1, that an input is shrunk by up to a tenth and laid at a random place before its
            gradient is taken. Without effect for vectors, which have no spatial sides.
        kernel: side of the Gaussian that blurs gradients along spatial sides, odd; 1 for none. Without effect for vectors.
        loss: `margin` (difference of logits), `ce` (cross-entropy) or `dlr`.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.mi_fgsm",
        name="MI-FGSM",
        summary="Follows a running sum of gradients, which leads to points that fool other models, too.",
        needs=NEEDS,
        spaces=("linf", "l2"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="Boosting adversarial attacks with momentum",
                where="Dong et al., CVPR 2018, arXiv:1710.06081, algorithm 1",
            ),
            *BASED,
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"steps": 5}, "deep": {"steps": 40}}

    def slope(self, climb: Climb, z: Tensor, here: Tensor, memory: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient at the point."""
        return here, tuned
