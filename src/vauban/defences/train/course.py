"""What adversarial trainings share: their course, the radius that grows, the rows that they are judged on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vauban.core.crew import ALONE
from vauban.core.data import Data
from vauban.core.defence import Context, Diary, Hardened, Store
from vauban.core.rng import Rng
from vauban.core.space import Continuous
from vauban.core.target import Target
from vauban.defences.common import TorchModel, around, fresh, lessons, loaded, placement, torch_backed
from vauban.defences.preprocess.front import need_pictures
from vauban.defences.train.diary import SHOWN, Pages, by_parts
from vauban.defences.train.inner import Inner, RowLoss
from vauban.parts.augment import Moved, drawn
from vauban.parts.layout import memory_format
from vauban.parts.training import Batch, Course, Precision, Schedule, Trained, Watch, train
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
    accumulate: int = 1
    precision: Precision = "float32"
    crop: int = 0
    flip: bool = False
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
        if self.crop < 0:
            raise ValueError(f"crop is a number of pixels, 0 for none, got {self.crop}")
        Course(batch_size=self.batch_size, accumulate=self.accumulate, precision=self.precision)  # says what is wrong

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

    def prepare(self, drill: Drill, x: Tensor, y: Tensor, data: Data, context: Context) -> None:  # noqa: B027  most need none
        """What there is to do with the rows that are trained on, `x` `[m, ...]`, `y` `[m]`, before the first batch; what it leaves for the
        batches goes into the drill's memory."""

    def store(self, context: Context) -> Store | None:
        """Where this training keeps its state."""
        return context.store

    @property
    def course(self) -> Course:
        return Course(
            epochs=self.epochs, batch_size=self.batch_size, rate=self.rate, weight_decay=self.weight_decay,
            schedule=self.schedule, average=self.average, patience=self.patience, accumulate=self.accumulate,
            precision=self.precision,
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """What the report says of this method's own settings."""
        return {}

    def __call__(self, target: Target, data: Data, rng: Rng, context: Context) -> Hardened:
        model = torch_backed(target, self.card)
        space, radius = context.space, context.radius
        if space is None or radius is None:
            raise BadThreat(f"{self.card.id} trains against one threat: give it, such as --threat linf:0.1.")
        x, y = lessons(model, data, self.card)
        self._movable(data)
        seed = int(rng.child("train").seed)
        module = fresh(model, seed, self.card) if self.from_scratch else model.clone()
        drill = Drill(self, model, space, radius, Rng(seed, len(x)))
        made = drill.run(module, x, y, seed, context, data)
        facts: dict[str, Any] = {
            "space": space.name,
            "radius": radius,
            "epochs": made.epochs,
            **self.facts(),
            **drill.told,
            "started_from": "fresh weights" if self.from_scratch else "the model's own weights",
        }
        facts |= {"ended": made.ended} if made.ended else {}
        if self.validation:
            facts |= {"best_epoch": made.best, "validated": max(e.get("judged", 0.0) for e in made.history)}
        facts |= {"precision": self.precision} if self.precision != "float32" else {}
        caveats = (
            *((PLAIN,) if target.recipe else ()),
            *((_COARSE,) if self.precision == "bf16" and _on_cpu(module, context) else ()),
            *((f"Training ended early: {made.ended}.",) if made.ended else ()),
            *drill.caveats,
        )
        return Hardened(around(model, made.module, self.suffix), facts, caveats)

    def _movable(self, data: Data) -> None:
        """Raises where rows cannot be moved by the pixels that are asked for."""
        if self.crop or self.flip:
            need_pictures(data, self.card)
        if self.crop and self.crop >= min(data.shape[-2:]):
            raise BadData(
                f"crop moves pictures of {data.shape[-2]} x {data.shape[-1]} pixels by up to {self.crop}, which leaves nothing of them: "
                "take less than the shorter side, such as 1 in 8 of it."
            )

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
    recall: bool = False
    search: Precision = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        Course(precision=self.search)  # says what is wrong
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def worst(self, inner: Inner, batch: Batch, loss: RowLoss | None = None) -> Tensor:
        """The inputs that this attack finds."""
        return inner.worst(batch, self.steps, loss, self.recall, self.search)


PLAIN = (
    "Reference models of leakage attacks on the defended model were trained without the defence, so its leakage may "
    "be larger than measured."
)


_COARSE = "Trained in bf16 on a CPU, where that saves little time: passes in float32 are more exact."


def _on_cpu(module: nn.Module, context: Context) -> bool:
    return (context.crew.device or placement(module)[0]).type == "cpu"


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
    """What a method hands from batch to batch, and the accuracy under attack of the best epoch as `best`."""
    told: dict[str, Any] = field(default_factory=dict)
    """What the report says of the preparations."""
    caveats: tuple[str, ...] = ()
    taught: Tensor | None = None
    """The numbers of the rows that are trained on, among all; None where these are all."""
    order: torch.memory_format = torch.preserve_format
    """Of inputs in memory."""

    def run(
        self, module: nn.Module, x: Tensor, y: Tensor, seed: int, context: Context | None, data: Data | None = None
    ) -> Trained:
        """Train; without data there are no preparations."""
        count = round(self.how.validation * len(x))
        if self.how.validation and min(count, len(x) - count) < FEWEST:
            raise BadData(
                f"{self.how.card.id} is to be judged on {count} of {len(x)} training rows: at least {FEWEST} are needed, "
                "set validation=0 or give more."
            )
        order = torch.randperm(len(x), generator=self.rng.torch("validation")) if count else torch.arange(len(x))
        held, self.taught = order[:count], order[count:].sort().values
        if data is not None and context is not None:
            self.how.prepare(self, x[self.taught], y[self.taught], data, context)
        # convolutions are faster in this order, and the weights are the same
        if x.dim() == 4:
            self.order = memory_format(module.eval(), x[:1].to(placement(module)[0]))
        if self.order == torch.channels_last:
            _laid(module, torch.channels_last)
        name = self.how.card.name.lower()
        made = train(
            module,
            x[self.taught],
            y[self.taught],
            self.step,
            self.how.course,
            seed,
            judge=(lambda net: self.judge(net, x[held], y[held], held)) if count else None,
            store=self.how.store(context) if context else None,
            progress=(lambda done, total: context.progress(done, total, name)) if context else None,
            crew=context.crew if context else ALONE,
            memory=self.memory,
            watch=self.watch(
                context.diary if context else None, x, y, held if count else self.taught[:SHOWN], bool(count)
            ),
        )
        _laid(made.module, torch.contiguous_format)
        return made

    def step(self, module: nn.Module, batch: Batch) -> Tensor:
        device, _ = placement(module)
        rows = batch.rows if self.taught is None else self.taught[batch.rows]
        moved = self.moved(batch, rows)
        x = (moved.there(batch.x) if moved else batch.x).to(device, memory_format=self.order)
        batch = replace(batch, x=x, y=batch.y.to(device), rows=rows.to(device))
        inner = self.inner(module, self.radius * self.how.grown(batch), "step", batch.number)
        return self.how.loss(replace(inner, moved=moved), batch)

    def moved(self, batch: Batch, rows: Tensor) -> Moved | None:
        """How the pictures of a batch are shown, alike each time that it is stepped on."""
        if not (self.how.crop or self.how.flip):
            return None
        rng = self.rng.child("moved", batch.number // self.how.course.repeats)
        return drawn(rng, rows, self.how.crop, self.how.flip)

    def inner(self, module: nn.Module, radius: float, *name: object) -> Inner:
        # numbers of its own for every batch: a run that was interrupted draws the same ones again
        return Inner(self.target, module, self.space, radius, self.rng.child(*name), self.memory)

    def judge(self, module: nn.Module, x: Tensor, y: Tensor, rows: Tensor) -> tuple[float, str]:
        """How good an epoch is, on rows that are not trained on, and why to stop."""
        device, _ = placement(module)
        inner = self.inner(module, self.radius, "judge")
        whole = Batch(x.to(device), y.to(device), rows.to(device))
        score = float(by_parts(whole, lambda batch: self.how.judged(inner, batch)).mean())
        best = float(self.memory.get("best", torch.zeros(())))
        failed = self.how.watched and 0 <= score < best / 2
        best = max(best, score)
        self.memory["best"] = torch.tensor(best, dtype=torch.float64)
        return score, _FAILED.format(score=score, best=best) if failed else ""

    def watch(self, diary: Diary | None, x: Tensor, y: Tensor, rows: Tensor, held: bool) -> Watch | None:
        """Writes the diary, where there is one; `rows` are looked at."""
        if diary is None:
            return None

        def look(module: nn.Module, epoch: int, figures: Mapping[str, float]) -> None:
            device, _ = placement(module)
            batch = Batch(x[rows].to(device), y[rows].to(device), rows.to(device))
            inner = self.inner(module, self.radius, "diary")
            Pages(diary, self.target.domain, batch, held, JUDGED).write(inner, epoch, figures)

        return look


def _laid(module: Any, order: torch.memory_format) -> None:
    """The weights of convolutions in that order of memory, in place."""
    module.to(memory_format=order)
