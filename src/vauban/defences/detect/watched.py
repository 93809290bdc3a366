"""A model with a detector beside it, which refuses inputs, marks them, or lets them pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from vauban.core.target import Outputs
from vauban.defences.common import Reader, around, only_inputs, placement
from vauban.defences.detect.view import Detector, Learnt, View
from vauban.defences.refusal import RefusingTarget, refusing

POLICIES = ("reject", "flag", "pass")


class Watched(Learnt):
    """A model and its detector. Under the policy `reject` it has one class more, the last.

    `weights` put the detector's scores together after each was standardised by `centre` and `spread`; `slope` says how many
    logits a unit of the score is worth.
    """

    centre: Tensor
    spread: Tensor
    weights: Tensor
    threshold: Tensor
    slope: Tensor

    def __init__(self, model: nn.Module, detector: Detector, read: Reader, policy: str) -> None:
        super().__init__()
        self.model, self.detector, self.read, self.policy = model, detector, read, policy
        zero, one = torch.zeros(1, dtype=torch.float64), torch.ones((), dtype=torch.float32)
        self.keep(centre=zero, spread=zero + 1, weights=zero + 1, threshold=one, slope=one)
        self.to(placement(model)[0])

    @property
    def refusal(self) -> int | None:
        """Number of the class by which it refuses; None where it does not."""
        return self.read.classes if self.policy == "reject" else None

    def view(self, x: Tensor) -> View:
        # a model without weights takes what it is given, whatever the detector keeps
        return View(self.model, self.read, x.to(placement(self.model)[1]), self.detector.layers)

    def suspicion(self, view: View) -> Tensor:
        """Float32 `[n]`: what the detector's scores come to."""
        scores: Tensor = self.detector(view)
        standard = (scores - self.centre) / self.spread
        # rounded, so that it does not depend on a row's place in the batch
        return (standard * self.weights).sum(1).to(torch.float32)

    def forward(self, x: Tensor) -> Any:
        if self.refusal is None:
            return self.model(x.clone())
        view = self.view(x)
        return refusing(view.logits, self.suspicion(view), self.threshold, self.slope)


@dataclass(frozen=True, eq=False)
class WatchedTarget(RefusingTarget):
    """A target with a detector: `suspicion` gives scores, `flagged` says which inputs are above the threshold."""

    @property
    def _watched(self) -> Watched:
        return cast(Watched, self.module)

    @property
    def refusal(self) -> int | None:
        return self._watched.refusal

    @property
    def threshold(self) -> float:
        """The score above which an input is refused, or flagged."""
        return float(self._watched.threshold)

    def forward_features(self, x: Tensor) -> tuple[Outputs, Tensor]:
        """The answer, and the features of the model itself, without its detector."""
        plain: Any = around(self.inner, self._watched.model, "")
        return self.forward(x), cast(Tensor, plain.forward_features(x)[1])

    def seen(self, x: Tensor) -> tuple[Outputs, Tensor]:
        """The model's own answer to inputs `[n, ...]`, as logits, and how suspicious they are, float32 `[n]`, whatever the
        policy. Differentiable."""
        device, dtype = placement(self.module)
        with only_inputs(self.module):
            view = self._watched.view(x.to(device, dtype))
            return Outputs(view.logits.to(x.device), "logits"), self._watched.suspicion(view).to(x.device)

    def suspicion(self, x: Tensor) -> Tensor:
        """Float32 `[n]`: how suspicious inputs `[n, ...]` are, whatever the policy. Differentiable."""
        return self.seen(x)[1]

    @torch.no_grad()
    def flagged(self, x: Tensor) -> Tensor:
        """Bool `[n]`: which inputs are above the threshold; none under the policy `pass`."""
        over = self.suspicion(x) > self.threshold
        return over & (self._watched.policy != "pass")
