"""What adversarial trainings share: their course, the radius that grows, the rows that they are judged on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vauban.core.data import Data
from vauban.core.defence import Context, Hardened
from vauban.core.rng import Rng
from vauban.core.space import Continuous
from vauban.core.target import Target
from vauban.defences.common import TorchModel, around, fresh, loaded, placement, torch_backed, training_rows
from vauban.defences.train.inner import Inner
from vauban.parts.layout import memory_format
from vauban.parts.training import Batch, Course, Schedule, Trained, train
from vauban.schema.cards import DefenceCard
from vauban.schema.errors import BadData, BadThreat

JUDGED = 10
"""Steps of the attack that judges an epoch."""
FEWEST = 8
"""Rows that must be left to judge on."""


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining(ABC):
    """Trains a copy of the model on inputs that are changed within the threat; subclasses say which, and the loss on them.

    The radius grows linearly over the first `ramp` of the run, and training starts from the target's own weights unless
    `from_scratch`: both make a small model robust in far fewer epochs.
    """

    card: ClassVar[DefenceCard]
    watched: ClassVar[bool] = False
    """Whether training ends where the accuracy under attack falls to half of its best: single steps can fail so."""

    epochs: int = 30
    batch_size: int = 64
    rate: float = 2e-3
    weight_decay: float = 0.0
    schedule: Schedule = "cosine"
    ramp: float = 0.3
    average: float = 0.0
    validation: float = 0.0
    patience: int = 0
    from_scratch: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.rate > 0:
            raise ValueError(f"rate must be above 0, got {self.rate}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp is a share in [0, 1], got {self.ramp}")
        if not 0 <= self.average < 1:
            raise ValueError(f"average is a decay in [0, 1), got {self.average}: 1 would keep the first weights")
        if not 0 <= self.validation <= 0.5:
            raise ValueError(f"validation is a share of the training rows in [0, 0.5], got {self.validation}")
        if self.patience < 0 or (self.patience and not self.validation):
            raise ValueError(f"patience is a number of epochs and needs validation above 0, got {self.patience}")

    @abstractmethod
    def loss(self, inner: Inner, batch: Batch) -> Tensor:
        """The loss to descend: inner attack included."""

    def judged(self, inner: Inner, batch: Batch) -> Tensor:
        """How well each row is held, float64 `[m]`: whether the worst input is answered right; minus its squared error in a
        regression."""
        outputs = inner.calm(inner.worst(batch, JUDGED))
        error = (outputs.labels.double() - batch.y.double()).square()
        return -error if outputs.kind == "values" else (error == 0).double()

    def grown(self, batch: Batch) -> float:
        """Share of its full size that the radius has at this batch."""
        return min(1.0, batch.share / self.ramp) if self.ramp else 1.0

    @property
    def course(self) -> Course:
        return Course(
            epochs=self.epochs, batch_size=self.batch_size, rate=self.rate, weight_decay=self.weight_decay,
            schedule=self.schedule, average=self.average, patience=self.patience,
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """What the report says of this method's own settings."""
        return {}

    def __call__(self, target: Target, data: Data, rng: Rng, context: Context) -> Hardened:
        model = torch_backed(target, self.card)
        space, radius = context.space, context.radius
        if space is None or radius is None:
            raise BadThreat(f"{self.card.id} trains against one threat: give it, such as --threat linf:0.1.")
        x, y = training_rows(model, data, self.card)
        seed = int(rng.child("train").seed)
        module = fresh(model, seed, self.card) if self.from_scratch else model.clone()
        drill = Drill(self, model, space, radius, Rng(seed, len(x)))
        made = drill.run(module, x, y, seed, context)
        facts: dict[str, Any] = {
            "space": space.name,
            "radius": radius,
            "epochs": made.epochs,
            **self.facts(),
            "started_from": "fresh weights" if self.from_scratch else "the model's own weights",
        }
        facts |= {"ended": made.ended} if made.ended else {}
        if self.validation:
            facts |= {"best_epoch": made.best, "validated": max(e.get("judged", 0.0) for e in made.history)}
        caveats = (
            *((_PLAIN,) if target.recipe else ()),
            *((f"Training ended early: {made.ended}.",) if made.ended else ()),
        )
        return Hardened(around(model, made.module, self.suffix), facts, caveats)

    @property
    def suffix(self) -> str:
        return f"+{self.card.id}"

    def restore(self, target: Target, data: Data, state: Mapping[str, Tensor]) -> Target:
        model = torch_backed(target, self.card)
        return around(model, loaded(model.clone(), state), self.suffix)


@dataclass(frozen=True, kw_only=True)
class Searching(AdversarialTraining):
    """Those whose inner attack is PGD of `steps` gradients."""

    steps: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


_PLAIN = (
    "Reference models of leakage attacks on the defended model were trained without the defence, so its leakage may "
    "be larger than measured."
)


_FAILED = "catastrophic overfitting: of the rows kept aside {score:.1%} held against ten steps, after {best:.1%} in a better epoch"


@dataclass
class Drill:
    """One training: the step and the judge that `train` asks for."""

    how: AdversarialTraining
    target: TorchModel
    space: Continuous
    radius: float
    rng: Rng
    memory: dict[str, Tensor] = field(default_factory=dict)
    """What a method hands from batch to batch."""
    best: float = 0.0
    """Accuracy under attack of the best epoch."""
    taught: Tensor | None = None
    """The numbers of the rows that are trained on, among all; None where these are all."""
    order: torch.memory_format = torch.preserve_format
    """Of inputs in memory."""

    def run(self, module: nn.Module, x: Tensor, y: Tensor, seed: int, context: Context) -> Trained:
        count = round(self.how.validation * len(x))
        if self.how.validation and min(count, len(x) - count) < FEWEST:
            raise BadData(
                f"{self.how.card.id} is to be judged on {count} of {len(x)} training rows: at least {FEWEST} are needed, "
                "set validation=0 or give more."
            )
        order = torch.randperm(len(x), generator=self.rng.torch("validation")) if count else torch.arange(len(x))
        held, self.taught = order[:count], order[count:].sort().values
        # convolutions are faster in this order, and the weights are the same
        if x.dim() == 4:
            self.order = memory_format(module, x[:1].to(placement(module)[0]))
        if self.order == torch.channels_last:
            _laid(module, torch.channels_last)
        made = train(
            module,
            x[self.taught],
            y[self.taught],
            self.step,
            self.how.course,
            seed,
            judge=(lambda net: self.judge(net, x[held], y[held], held)) if count else None,
            store=context.store,
            progress=lambda done, total: context.progress(done, total, self.how.card.name.lower()),
        )
        _laid(made.module, torch.contiguous_format)
        return made

    def step(self, module: nn.Module, batch: Batch) -> Tensor:
        device, _ = placement(module)
        rows = batch.rows if self.taught is None else self.taught[batch.rows]
        x = batch.x.to(device, memory_format=self.order)
        batch = replace(batch, x=x, y=batch.y.to(device), rows=rows.to(device))
        return self.how.loss(self.inner(module, self.radius * self.how.grown(batch), "step", batch.number), batch)

    def inner(self, module: nn.Module, radius: float, *name: object) -> Inner:
        # numbers of its own for every batch: a run that was interrupted draws the same ones again
        return Inner(self.target, module, self.space, radius, self.rng.child(*name), self.memory)

    def judge(self, module: nn.Module, x: Tensor, y: Tensor, rows: Tensor) -> tuple[float, str]:
        """How good an epoch is, on rows that are not trained on, and why to stop."""
        device, _ = placement(module)
        inner = self.inner(module, self.radius, "judge")
        found = []
        for part in torch.arange(len(x)).split(256):
            batch = Batch(x[part].to(device), y[part].to(device), rows[part].to(device))
            found.append(self.how.judged(inner, batch))
        score = float(torch.cat(found).mean())
        failed = self.how.watched and 0 <= score < self.best / 2
        self.best = max(self.best, score)
        return score, _FAILED.format(score=score, best=self.best) if failed else ""


def _laid(module: Any, order: torch.memory_format) -> None:
    """The weights of convolutions in that order of memory, in place."""
    module.to(memory_format=order)
