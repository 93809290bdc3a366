"""Targets that may refuse to answer: one class more, which counts as no mistake and as no answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self, cast

import torch
from torch import Tensor

from vauban.core.target import Domain, Outputs
from vauban.defences.common import Defended, TorchModel
from vauban.schema.access import Access

REFUSED = "refused"
"""Name of the class by which a model refuses."""


def refusing(logits: Tensor, score: Tensor, threshold: Tensor, slope: Tensor) -> Tensor:
    """`[n, k + 1]`: the logits and one more, which is the largest exactly where `score` `[n]` is above `threshold`.

    Carlini and Wagner 2017 (arXiv:1705.07263, section 3.2) multiply the largest logit with the excess of the score; added to
    it, it does not matter whether logits are positive.
    """
    top = logits.amax(1)
    last = top + (slope * (score - threshold)).to(top)
    least = torch.nextafter(top.detach(), torch.full_like(top, torch.inf))  # of equals the first would win
    last = torch.where(score > threshold, torch.maximum(last, least), torch.minimum(last, top))
    return torch.cat([logits, last[:, None]], 1)


def with_refusal(domain: Domain, classes: int) -> Domain:
    """The facts with a refusal behind `classes` others; they may speak of the model alone, or have it already."""
    names = domain.label_names[:classes]
    return replace(
        domain,
        classes=classes + 1,
        refusal=classes,
        label_names=(*names, REFUSED) if len(names) == classes else names,
    )


@dataclass(frozen=True, eq=False)
class RefusingTarget(Defended):
    """A defended target whose answers are logits with a refusal, where `refusal` is the number of classes before it."""

    @property
    def refusal(self) -> int | None:
        """Number of the class by which it refuses; None where it answers always."""
        raise NotImplementedError

    @property
    def offers(self) -> Access:
        return super().offers | (Access.NONE if self.refusal is None else Access.LOGITS)

    def forward(self, x: Tensor) -> Outputs:
        return self._told(self.inner.forward(x))

    def read(self, raw: object) -> Outputs:
        return self._told(self.inner.read(raw))

    def _told(self, outputs: Outputs) -> Outputs:
        return outputs if self.refusal is None else replace(outputs, kind="logits")

    def settled(self, domain: Domain) -> Self:
        told = domain if self.refusal is None else with_refusal(domain, self.refusal)
        return replace(self, inner=cast(TorchModel, self.inner.settled(told)))
