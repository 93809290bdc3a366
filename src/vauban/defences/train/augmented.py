"""What trainings on rows made out of the training rows share: they may be attacked, and need not be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vauban.defences.common import row_losses
from vauban.defences.train.course import Searching
from vauban.defences.train.inner import Inner, RowLoss
from vauban.parts.training import Batch


@dataclass(frozen=True, kw_only=True)
class Augmented(Searching):
    """Those that train on other rows than the training rows; subclasses say on which."""

    adversarial: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recall:
            raise ValueError(
                "recall goes on from a row's last change, and these rows are others every time: leave it out"
            )

    def attacked(self, inner: Inner, batch: Batch, loss: RowLoss | None = None) -> Tensor:
        """The mean loss of a batch, of its labels unless given: at its worst inputs if `adversarial`, as it is otherwise."""
        told = loss or (lambda outputs: row_losses(outputs, batch.y))
        z = self.worst(inner, batch, told) if self.adversarial else batch.x
        return told(inner.answer(z)).mean()

    def facts(self) -> dict[str, Any]:
        return {"adversarial": self.adversarial, "steps": self.steps if self.adversarial else 0}
