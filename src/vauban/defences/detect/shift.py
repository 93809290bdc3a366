"""Shift of attributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vauban.core.data import Data
from vauban.defences.common import TorchModel
from vauban.defences.detect.view import Detector, Look, View
from vauban.defences.detect.watch import JOINT, Watch
from vauban.schema.cards import DefenceCard, Source

FLOOR = 0.1
"""Deviations are taken for at least this share of their root mean square over the features: a feature that never played a part must
not decide alone."""


@dataclass(frozen=True, kw_only=True)
class ShiftDetector(Watch):
    """Suspects inputs whose attribution map is not one of those that the class answered has on clean rows.

    The map is gradient times input of the answered class's lead (integrated gradients with `steps` above 1). The score is its mean
    squared distance from the class's mean map, in deviations of the class. It can be descended like any other: maps are
    as easy to steer as answers (Ghorbani et al. 2019, arXiv:1710.10547; Dombrowski et al. 2019, arXiv:1906.07983).

    Source: the idea that attributions of adversarial inputs differ is that of Yang et al. 2020 (arXiv:1906.03499, section 3); gradient
    times input: Shrikumar et al. 2016 (arXiv:1605.01713); integrated gradients: Sundararajan et al. 2017 (arXiv:1703.01365).
    Departures: distance to the mean map of the class in standardised units is ours, the simplest that needs no attack to learn from.

    Args:
        steps: points of the way from zero to the input at which gradients are averaged; 1 is gradient times input.
        policy: `reject` (a class more, for refusing), `flag` or `pass`.
        alarms: share of clean rows that may be refused or flagged, between 0 and 1.
        aside: share of the training rows that the threshold is set on.
        rows: training rows looked at, at most.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="detect.shift",
        name="Attribution shift",
        summary="Refuses inputs whose attribution map is unlike those of the class answered; maps can be steered, too.",
        sources=(
            Source(
                title="ML-LOO: detecting adversarial examples with feature attribution",
                where="Yang et al., AAAI 2020, arXiv:1906.03499, section 3",
            ),
            Source(
                title="Interpretation of neural networks is fragile (maps can be steered)",
                where="Ghorbani, Abid, Zou, AAAI 2019, arXiv:1710.10547",
            ),
            Source(
                title="Adversarial examples are not easily detected (how detectors are attacked)",
                where="Carlini, Wagner, AISec 2017, arXiv:1705.07263, section 3",
            ),
        ),
        **JOINT,
    )
    counts: ClassVar[tuple[str, ...]] = ("steps",)

    steps: int = 1

    def detector(self, model: TorchModel, data: Data) -> Detector:
        return Shift(self.steps)


class Shift(Detector):
    """The mean over features of the squared standardised distance from the class's mean map."""

    means: Tensor
    deviations: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.keep(means=torch.zeros(1, 1), deviations=torch.ones(1, 1))

    def learn(self, look: Look, x: Tensor, y: Tensor) -> None:
        found = [self._map(look(part)) for part in x.split(256)]
        maps, answered = torch.cat([m for m, _ in found]).detach(), torch.cat([c for _, c in found])
        classes = look(x[:1]).logits.shape[1]
        means, deviations = maps.mean(0).repeat(classes, 1), maps.std(0).repeat(classes, 1)
        for c in range(classes):
            if int((answered == c).sum()) > 1:  # of a class that is hardly answered, nothing more is known than of all
                means[c], deviations[c] = maps[answered == c].mean(0), maps[answered == c].std(0)
        floor = FLOOR * deviations.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)
        self.keep(means=means, deviations=torch.maximum(deviations, floor))

    def forward(self, view: View) -> Tensor:
        maps, answered = self._map(view)
        away = (maps - self.means[answered]) / self.deviations[answered]
        return away.square().mean(1, keepdim=True)

    def _map(self, view: View) -> tuple[Tensor, Tensor]:
        """Float64 maps `[n, features]`, and the classes answered `[n]`. Keeps a graph where the input has one."""
        kept = torch.is_grad_enabled() and view.x.requires_grad
        with torch.enable_grad():
            x = view.x if view.x.requires_grad else view.x.detach().requires_grad_(True)
            answered = view.logits.detach().argmax(1)
            total = torch.zeros_like(x)
            for step in range(1, self.steps + 1):
                logits = view.of(x * (step / self.steps)).logits
                value = (logits.gather(1, answered[:, None]).squeeze(1) - logits.mean(1)).sum()
                total = total + torch.autograd.grad(value, x, create_graph=kept)[0] * (self.steps / step)
            maps = (x * total / self.steps).flatten(1).double()
        return maps if kept else maps.detach(), answered
