"""What a training against attacks writes into its diary: losses, accuracies on rows kept aside, pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vauban.core.defence import Diary
from vauban.core.target import Domain
from vauban.defences.train.inner import Inner
from vauban.parts.distances import pictures
from vauban.parts.training import Batch

SHOWN = 8
"""Pictures an epoch."""
GREY = 0.5
"""Where a difference is nothing."""


@dataclass(frozen=True)
class Pages:
    """Writes one page an epoch.

    `rows` are looked at, `[n]` of them; `held` says whether they are kept from training: of others no accuracy is told.
    """

    diary: Diary
    domain: Domain
    rows: Batch
    held: bool
    steps: int
    """Of the attack that makes the pictures."""

    def write(self, inner: Inner, epoch: int, figures: Mapping[str, float]) -> None:
        names = {"loss": "loss", "rate": "rate", "seconds": "seconds"}
        told = {name: figures[key] for key, name in names.items() if key in figures}
        if self.held:
            told |= self._clean(inner)
            told |= self._robust(figures)
        self.diary.write(epoch, told, self._pictures(inner))

    @property
    def _regression(self) -> bool:
        return self.domain.task == "regression"

    def _clean(self, inner: Inner) -> dict[str, float]:
        """Accuracy on the rows as they are; mean squared error in a regression."""
        labels = by_parts(self.rows, lambda part: inner.calm(part.x).labels)
        error = (labels.double() - self.rows.y.double()).square()
        return (
            {"error/clean": float(error.mean())}
            if self._regression
            else {"accuracy/clean": float((error == 0).double().mean())}
        )

    def _robust(self, figures: Mapping[str, float]) -> dict[str, float]:
        """What the judge found."""
        if "judged" not in figures:
            return {}
        return {"error/robust": -figures["judged"]} if self._regression else {"accuracy/robust": figures["judged"]}

    def _pictures(self, inner: Inner) -> dict[str, Tensor]:
        """The first rows: clean, as the attack changed them, and the difference, which is stretched to what can be seen."""
        if self.rows.x.dim() != 4 or self.domain.kind not in ("image", None):
            return {}
        first = Batch(self.rows.x[:SHOWN], self.rows.y[:SHOWN], self.rows.rows[:SHOWN])
        changed = inner.worst(first, self.steps)
        sides = (self.domain.low, float(first.x.min())), (self.domain.high, float(first.x.max()))
        low, high = (torch.as_tensor(near if side is None else side) for side, near in sides)
        clean, adversarial = (pictures(x.cpu(), low, high).clamp(0, 1).float() for x in (first.x, changed))
        apart = adversarial - clean
        widest = apart.abs().max().clamp_min(torch.finfo(apart.dtype).tiny)
        return {
            "examples/clean": clean,
            "examples/adversarial": adversarial,
            "examples/difference": GREY + GREY * apart / widest,
        }


def by_parts(rows: Batch, look: Callable[[Batch], Tensor], size: int = 256) -> Tensor:
    """`look` at all rows, so many at a time."""
    numbers = torch.arange(len(rows.x), device=rows.x.device).split(size)
    return torch.cat([look(Batch(rows.x[part], rows.y[part], rows.rows[part])) for part in numbers])
