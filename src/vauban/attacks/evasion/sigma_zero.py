"""sigma-zero: few features, by a smooth count of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front
from vauban.attacks.evasion.minimal import Minimal
from vauban.attacks.evasion.nearest import Nearest, box
from vauban.attacks.evasion.settings import above
from vauban.core.attack import EvasionScene
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.parts.projections import per_row
from vauban.parts.schedules import cosine
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class SigmaZero(Minimal):
    """Descends a smooth stand-in for the number of changed features, and drops the small changes at every step.

    What counts as small grows where the goal is reached and falls where it is not.

    Source: Cina, Villani, Pintor, Schonherr, Biggio and Pelillo 2024 (arXiv:2402.01879, algorithm 1).
    Departures: the run is made towards each of the nearest classes in turn, with a share of the steps for each; changes
    are measured by the width of the box, feature by feature, or by the largest magnitude of the row where the box is
    open; three quarters of the steps go into what follows the runs: features are put back, the least useful first, and
    exchanged for others where the goal is not reached without them.

    Args:
        steps: gradients in all.
        targets: nearest classes to go for, where any class will do.
        sigma: changes well above its root count as one feature, those below as less; in widths of the box, squared.
        stride: length of the first step, in widths of the box; it falls to a tenth on a cosine.
        threshold: what counts as small at first, in widths of the box, 0 to 1.
        adapt: how fast that changes, as a share of the stride (0.01 in the paper).
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.sigma_zero",
        name="sigma-zero",
        summary="Looks for the fewest features whose change fools the model.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("l0",),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        sources=(
            Source(
                title="sigma-zero: gradient-based optimization of l0-norm adversarial examples",
                where="Cina et al., ICLR 2025, arXiv:2402.01879, algorithm 1",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 100, "targets": 1},
        "deep": {"steps": 2000, "targets": 4},
    }

    shortest: ClassVar[int] = 1000

    sigma: float = 1e-3
    stride: float = 1.0
    threshold: float = 0.3
    adapt: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sigma", "stride", "threshold", "adapt"):
            above(name, getattr(self, name), 0)

    def run(self, scene: EvasionScene, front: Front, found: Nearest, loss: Loss, steps: int, rng: Rng) -> None:
        """One run; see the class."""
        z, width = front.x, widths(scene, front.x)
        mean, square = torch.zeros_like(z), torch.zeros_like(z)
        least = torch.full((len(front),), self.threshold, dtype=z.dtype, device=z.device)
        stride = self.stride
        for number in range(steps):
            look = scene.oracle.value_and_grad(loss, z, front.rows)
            found.see(z, front.rows, look.margin)
            change = (z - front.x) / width
            # downhill: the loss is to grow as long as the goal is not reached, the smooth count is to fall
            slope = torch.where(per_row(look.value, z) < 0, -look.grad * width, 0)
            squared = change.square()
            slope = slope + 2 * self.sigma * change / (squared + self.sigma).square() / z[:1].numel()
            slope = slope / per_row(slope.flatten(1).abs().amax(1).clamp_min(1e-12), z)
            mean = mean + 0.1 * (slope - mean)
            square = 0.999 * square + 0.001 * slope.square()
            step = mean / ((square / (1 - 0.999 ** (number + 1))).sqrt() + 1e-8)
            moved = front.x + (change - stride / (1 - 0.9 ** (number + 1)) * step) * width
            moved = torch.clamp(moved, *box(scene, z))
            stride = self.stride * (0.1 + 0.9 * cosine(number, steps))
            way = torch.where(look.margin > 0, self.adapt * stride, -self.adapt * stride)
            least = (least + way).clamp(0, 1)
            large = ((moved - front.x) / width).abs() >= per_row(least, z)
            z = torch.where(large, moved, front.x)
            z, width, mean, square, least = front.narrow(look.open, z, width, mean, square, least)
            if not len(front):
                return


def widths(scene: EvasionScene, x: Tensor) -> Tensor:
    """The width of the box `[m, ...]`; where it is open, the largest magnitude of the row, or 1; never zero."""
    low, high = box(scene, x)
    row = per_row(x.flatten(1).abs().amax(1).clamp_min(1), x)
    wide = (high - low).expand_as(x)
    return torch.where(wide.isfinite() & (wide > 0), wide, row)
