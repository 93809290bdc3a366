"""Robust distillation: a student that learns the answers of a robust teacher, under attack as well."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from vauban.core.crew import Crew
from vauban.core.data import Data
from vauban.core.defence import Context, Store
from vauban.core.registry import configure
from vauban.core.space import Continuous
from vauban.core.target import TorchBacked
from vauban.defences.catalog import DEFENCES
from vauban.defences.common import TorchModel, around, placement, row_batches, training_rows
from vauban.defences.train.course import Drill, Searching
from vauban.defences.train.inner import Inner
from vauban.defences.train.trades import divergence
from vauban.parts.losses import log_probabilities
from vauban.parts.shelves import shelf
from vauban.parts.training import Batch
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source
from vauban.schema.errors import NotOffered

SOFT = "soft"
"""Where the teacher's answers lie in a training's memory."""


@dataclass(frozen=True, kw_only=True)
class RobustDistillation(Searching):
    """Trains the model to answer as a robust teacher does, at the inputs and at the worst ones near them.

    The labels are the teacher's probabilities at the clean inputs, which say more than class numbers and never demand what a small
    model cannot hold; the inner attack climbs the divergence from them. No gradients are hidden: what breaks other adversarially
    trained models breaks this one. It is worth most where the teacher is larger than the student, or holds better.

    Source: Zi et al. 2021 (arXiv:2108.07969, section 3.3: RSLAD), after Goldblum et al. 2020 (arXiv:1905.09747).
    Departures: the teacher is trained here first, by another training, unless a module is given; its temperature is 1; the rest is as in
    `train.pgd`.

    Args:
        teacher: id of the training that makes the teacher out of a copy of this model; in Python also a robust module.
        teaching: epochs of that training.
        share: weight of the divergence at the worst inputs, above 0 to 1; that at the clean inputs has the rest.
        epochs: passes over the training rows.
        steps: gradient steps of the inner attack, 1 or more.
        recall: begin it at the change that was found for a row in the epoch before, so that two or three steps, as small as those of
            seven, find what seven would (Zheng et al. 2020, arXiv:1912.11969).
        batch_size: rows a step.
        rate: first learning rate of Adam.
        weight_decay: L2 penalty on the weights.
        schedule: of the rate: `constant`, `cosine` (epoch by epoch) or `cycle` (up over a fifth of the run, down to nothing).
        ramp: share of the run in which the radius grows to its full size, in [0, 1].
        average: decay, a step, of averaged weights, which are then the result; 0 for none.
        validation: share of the training rows that are kept aside; the epoch that is most robust on them is the result.
        patience: epochs without a better one after which training ends; 0 for never.
        accumulate: parts in which the gradient of a batch is summed up, to save memory; the step is that of the whole batch.
        search: precision of the inner attack, `float32` or `bf16`, which takes half the time on processors that have it.
        precision: of the passes, `float32` or `bf16`, which is faster on GPUs that have it; weights stay in float32.
        crop: pictures are moved by up to so many pixels, at random and anew every epoch; their edge goes on where that leaves a gap; the
            teacher answers them unmoved.
        flip: half of the pictures are mirrored at random, left to right.
        from_scratch: start from fresh weights.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="distill.robust",
        name="Robust distillation",
        summary="Trains the model to answer as a robust teacher does, under attack as well.",
        needs=Access.WEIGHTS_READ | Access.DATA_READ,
        tasks=("classification",),
        adaptive=("evasion.apgd", "evasion.apgd_targeted", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="Revisiting adversarial robustness distillation: robust soft labels make student better",
                where="Zi et al., ICCV 2021, arXiv:2108.07969, section 3.3",
            ),
            Source(
                title="Adversarially robust distillation",
                where="Goldblum et al., AAAI 2020, arXiv:1905.09747",
            ),
        ),
    )

    teacher: Any = "train.trades"
    teaching: int = 30
    share: float = 5 / 6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"share is a weight above 0 to 1, got {self.share}")
        if self.teaching < 1:
            raise ValueError(f"teaching must be at least 1, got {self.teaching}")
        if not isinstance(self.teacher, nn.Module) and not str(self.teacher).startswith("train."):
            raise ValueError(
                f"teacher is the id of a training, such as train.trades, or a module, got {self.teacher!r}"
            )

    def prepare(self, drill: Drill, x: Tensor, y: Tensor, data: Data, context: Context) -> None:
        """The teacher learns, and answers all training rows."""
        rows, _ = training_rows(drill.target, data, self.card)
        drill.memory[SOFT] = _answers(self._teacher(drill, data, context), rows)

    def store(self, context: Context) -> Store | None:
        """Beside the teacher's, so that neither is made twice."""
        return shelf(context.store, "student")

    def _teacher(self, drill: Drill, data: Data, context: Context) -> TorchModel:
        model = drill.target
        if isinstance(self.teacher, nn.Module):
            return around(model, copy.deepcopy(self.teacher).eval().to(placement(model.module)[0]), "+teacher")
        settings = {"epochs": self.teaching, "batch_size": self.batch_size, "from_scratch": self.from_scratch}
        method = configure(DEFENCES.load(self.teacher), settings)
        made = method(model, data, drill.rng.child("teacher"), _Teaching(context)).target
        if not isinstance(made, TorchBacked):
            raise NotOffered(f"{self.teacher} made a teacher without layers: name another training.")
        return cast(TorchModel, made)

    def loss(self, inner: Inner, batch: Batch) -> Tensor:
        """Divergences of the student's answers from the teacher's, at the clean inputs and at the worst ones."""
        soft = inner.memory[SOFT][batch.rows.cpu()].to(batch.x.device).log()
        z = self.worst(inner, batch, lambda outputs: divergence(log_probabilities(outputs), soft))
        clean, changed = (divergence(log_probabilities(outputs), soft) for outputs in inner.both(batch.x, z))
        return (self.share * changed + (1 - self.share) * clean).mean()

    def facts(self) -> dict[str, Any]:
        given = isinstance(self.teacher, nn.Module)
        return {"teacher": "a module" if given else self.teacher, "share": self.share, "steps": self.steps}


def _answers(teacher: TorchModel, x: Tensor) -> Tensor:
    """Probabilities `[n, classes]`, none of them 0."""
    device, _ = placement(teacher.module)
    return row_batches(lambda rows: log_probabilities(teacher.forward(x[rows].to(device))).exp(), len(x)).clamp_min(
        1e-7
    )


@dataclass(frozen=True)
class _Teaching:
    """The context of the teacher's training: its own shelf, and nothing in the diary."""

    whole: Context
    diary: None = None

    @property
    def radius(self) -> float | None:
        return self.whole.radius

    @property
    def space(self) -> Continuous | None:
        return self.whole.space

    @property
    def crew(self) -> Crew:
        return self.whole.crew

    @property
    def store(self) -> Store | None:
        return shelf(self.whole.store, "teacher")

    def attack(self, id: str, **settings: Any) -> Callable[..., Any]:
        return self.whole.attack(id, **settings)

    def progress(self, done: int, total: int, text: str = "") -> None:
        self.whole.progress(done, total, f"the teacher: {text}")
