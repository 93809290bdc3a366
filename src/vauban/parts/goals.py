"""What an attacker can want of a prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from vauban.core.goal import Goal
from vauban.core.target import OutputKind, Outputs
from vauban.parts import losses
from vauban.parts.losses import ClassLoss

Objective = Callable[[Outputs, Tensor], Tensor]
"""(outputs, rows) -> [m], to be maximised."""


def _reaches(outputs: Outputs, wanted: Tensor) -> Tensor:
    return (outputs.labels == wanted).to(torch.float32) * 2 - 1


def _leaves(outputs: Outputs, true: Tensor) -> Tensor:
    return -_reaches(outputs, true)


_LEAVING: Mapping[OutputKind, ClassLoss] = {
    "logits": losses.margin,
    "probabilities": losses.margin,
    "labels": _leaves,
}
_REACHING: Mapping[OutputKind, ClassLoss] = {
    "logits": losses.targeted_margin,
    "probabilities": losses.targeted_margin,
    "labels": _reaches,
}


@dataclass(frozen=True, eq=False)
class _ClassGoal:
    labels: Tensor
    """int64 `[n]`."""

    targeted: ClassVar[bool]
    _margins: ClassVar[Mapping[OutputKind, ClassLoss]]
    _losses: ClassVar[Mapping[str, ClassLoss]]

    def _labels(self, outputs: Outputs, rows: Tensor) -> Tensor:
        return self.labels[rows.to(self.labels.device)].to(outputs.values.device)

    def margin(self, outputs: Outputs, rows: Tensor) -> Tensor:
        """Difference of logits (of log-probabilities), positive where reached; -1 or +1 from bare labels."""
        return self._margins[outputs.kind](outputs, self._labels(outputs, rows))

    def surrogate(self, outputs: Outputs, rows: Tensor) -> Tensor:
        """Cross-entropy, signed so that it grows towards the goal."""
        return self._loss("ce", outputs, rows)

    def objectives(self, name: str) -> tuple[Objective, ...]:
        """The loss `ce`, `margin` or `dlr`, signed so that it grows towards the goal."""
        return (self.margin if name == "margin" else partial(self._loss, name),)

    def _loss(self, name: str, outputs: Outputs, rows: Tensor) -> Tensor:
        return self._losses[name](outputs, self._labels(outputs, rows))


@dataclass(frozen=True, eq=False)
class Misclassify(_ClassGoal):
    """Any class but the true one. `labels`: true classes, int64 `[n]`."""

    targeted: ClassVar[bool] = False
    _margins: ClassVar[Mapping[OutputKind, ClassLoss]] = _LEAVING
    _losses: ClassVar[Mapping[str, ClassLoss]] = losses.UNTARGETED


@dataclass(frozen=True, eq=False)
class MisclassifyOutright(Misclassify):
    """Any class but the true one and `shunned`, the class of a refusal, which counts as the true one: who is refused has not fooled
    anybody."""

    shunned: int = 0

    def margin(self, outputs: Outputs, rows: Tensor) -> Tensor:
        """As of any misclassification, of the answers without the shunned class."""
        if outputs.kind == "labels":
            kept = torch.where(outputs.labels == self.shunned, self._labels(outputs, rows), outputs.labels)
            return _leaves(Outputs(kept, "labels"), self._labels(outputs, rows))
        return self._margins[outputs.kind](*self.folded(outputs, rows))

    def _loss(self, name: str, outputs: Outputs, rows: Tensor) -> Tensor:
        return self._losses[name](*self.folded(outputs, rows))

    def folded(self, outputs: Outputs, rows: Tensor) -> tuple[Outputs, Tensor]:
        """The answers with the shunned class taken out, the true class as likely as the likelier of the two."""
        true, values, gone = self._labels(outputs, rows), outputs.values, self.shunned
        own = torch.maximum(values.gather(1, true[:, None]), values[:, gone, None])
        values = values.scatter(1, true[:, None], own)
        return Outputs(torch.cat([values[:, :gone], values[:, gone + 1 :]], 1), outputs.kind), true - (
            true > gone
        ).long()


def misclassify(labels: Tensor, refusal: int | None) -> Misclassify:
    """Any wrong class, where `refusal` is none: `labels` are the true classes, int64 `[n]`."""
    return Misclassify(labels) if refusal is None else MisclassifyOutright(labels, shunned=refusal)


def shunned(goal: Goal) -> int | None:
    """The class that does not count as reaching the goal although it is a wrong one; None where there is none."""
    found: int | None = getattr(goal, "shunned", None)
    return found


@dataclass(frozen=True, eq=False)
class Firmly:
    """`goal` by a lead of `lead`: for answers that are not the same the next time."""

    goal: Goal
    lead: float

    @property
    def targeted(self) -> bool:
        return self.goal.targeted

    @property
    def labels(self) -> Tensor:
        return self.goal.labels

    @property
    def shunned(self) -> int | None:
        return shunned(self.goal)

    def margin(self, outputs: Outputs, rows: Tensor) -> Tensor:
        """The goal's margin less the lead."""
        return self.goal.margin(outputs, rows) - self.lead

    def surrogate(self, outputs: Outputs, rows: Tensor) -> Tensor:
        return self.goal.surrogate(outputs, rows)

    def objectives(self, name: str) -> tuple[Objective, ...]:
        return self.goal.objectives(name)


@dataclass(frozen=True, eq=False)
class ClassAs(_ClassGoal):
    """A class of the attacker's choice. `labels`: wanted classes, int64 `[n]`."""

    targeted: ClassVar[bool] = True
    _margins: ClassVar[Mapping[OutputKind, ClassLoss]] = _REACHING
    _losses: ClassVar[Mapping[str, ClassLoss]] = losses.TARGETED


@dataclass(frozen=True, eq=False)
class _ValueGoal:
    labels: Tensor
    """float `[n]`, in the units of the prediction."""
    tolerance: float
    """> 0, in the same units."""

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(f"a tolerance must be above 0, got {self.tolerance}")

    def _residual(self, outputs: Outputs, rows: Tensor) -> Tensor:
        labels = self.labels[rows.to(self.labels.device)]
        return outputs.values - labels.to(outputs.values)


@dataclass(frozen=True, eq=False)
class Shift(_ValueGoal):
    """A regression's prediction further than `tolerance` from the true value `labels`, on either side."""

    targeted: ClassVar[bool] = False

    def margin(self, outputs: Outputs, rows: Tensor) -> Tensor:
        """How far the error is above the tolerance."""
        away = self._residual(outputs, rows)
        # not abs(), whose slope at zero is zero: an exact prediction would give an attacker no direction
        return torch.where(away >= 0, away, -away) - self.tolerance

    def surrogate(self, outputs: Outputs, rows: Tensor) -> Tensor:
        """The margin."""
        return self.margin(outputs, rows)

    def objectives(self, name: str) -> tuple[Objective, ...]:
        """Two, whatever the name: too high a prediction, and too low. Each alone has no valley at the true value."""
        return (self._residual, lambda outputs, rows: -self._residual(outputs, rows))


@dataclass(frozen=True, eq=False)
class ReachValue(_ValueGoal):
    """A regression's prediction within `tolerance` of the wanted value `labels`."""

    targeted: ClassVar[bool] = True

    def margin(self, outputs: Outputs, rows: Tensor) -> Tensor:
        """The tolerance minus the distance from the wanted value."""
        away = self._residual(outputs, rows)
        return self.tolerance - away.abs()

    def surrogate(self, outputs: Outputs, rows: Tensor) -> Tensor:
        """The margin."""
        return self.margin(outputs, rows)

    def objectives(self, name: str) -> tuple[Objective, ...]:
        """The margin, whatever the name."""
        return (self.margin,)
