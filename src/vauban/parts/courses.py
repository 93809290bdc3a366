"""What a training is made of: its course, batches, rates and optimisers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vauban.parts.schedules import cosine


@dataclass(frozen=True, eq=False)
class Batch:
    """What a step is made on: inputs `[m, ...]`, labels `[m]`, their numbers in the training set `[m]`."""

    x: Tensor
    y: Tensor
    rows: Tensor
    number: int = 0
    """Of the step in the run, from 0."""
    share: float = 1.0
    """Of the run that is done with this step, above 0 to 1."""
    part: int = 0
    """Number of this part of the batch, from 0, where a step is made in several."""


Step = Callable[[nn.Module, Batch], Tensor]
"""(module in training mode, batch) -> its loss, a mean over the rows of the batch."""
Optimiser = Literal["adam", "adam_short", "sgd"]
Schedule = Literal["constant", "cosine", "cycle"]
Precision = Literal["float32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Course:
    """How long a training goes, and by which steps.

    `schedule`: of the rate: `cosine` falls from epoch to epoch, `cycle` rises over the first fifth and falls to nothing, step by
    step. `average`: weights are averaged over steps with this decay, and the averages kept (0: not). `repeats`: steps on each batch
    before the next. `patience`: epochs without a better judgement after which it ends (0: never).
    `accumulate`: parts in which the gradient of a batch is summed up, of two rows or more; memory falls with their size.
    `precision`: that of the passes; weights and the optimiser's state stay in float32.
    """

    epochs: int = 20
    batch_size: int = 64
    rate: float = 1e-3
    weight_decay: float = 0.0
    optimiser: Optimiser = "adam"
    schedule: Schedule = "constant"
    average: float = 0.0
    repeats: int = 1
    patience: int = 0
    accumulate: int = 1
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if not 1 <= self.accumulate <= self.batch_size:
            raise ValueError(
                f"accumulate splits a batch of {self.batch_size} rows into 1 to {self.batch_size} parts, got {self.accumulate}"
            )
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision is one of {', '.join(get_args(Precision))}, got {self.precision!r}")


def _constant(epochs: float, steps: float) -> float:
    return 1.0


def _cosine(epochs: float, steps: float) -> float:
    return cosine(epochs, 1)


def _cycle(epochs: float, steps: float) -> float:
    return steps / RISE if steps < RISE else (1 - steps) / (1 - RISE)


RISE = 0.2
"""Share of a cycle in which the rate rises."""
RATES: Mapping[Schedule, Callable[[float, float], float]] = {"constant": _constant, "cosine": _cosine, "cycle": _cycle}
"""(share of the epochs done, share of the steps done) -> share of the first rate."""


def batches(order: Tensor, size: int) -> Sequence[Tensor]:
    """`order` in parts of `size`; a single row left over joins the part before it, for batch normalisation needs two."""
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def dealt(batch: Batch, hands: int) -> list[Batch]:
    """`batch` dealt out row by row, in `hands` parts; in fewer where one would have a single row.

    Row by row, so that the place of a row within its part depends on its place in the batch alone.
    """
    count = max(1, min(hands, len(batch.rows) // 2))
    if count == 1:
        return [batch]
    mine = [slice(first, None, count) for first in range(count)]
    return [
        replace(batch, x=batch.x[own].contiguous(), y=batch.y[own], rows=batch.rows[own], part=part)
        for part, own in enumerate(mine)
    ]


def _adam(parameters: Iterator[nn.Parameter], rate: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=rate, weight_decay=weight_decay)


def _adam_short(parameters: Iterator[nn.Parameter], rate: float, weight_decay: float) -> torch.optim.Optimizer:
    # networks that play against each other must not remember for long where the other one was
    return torch.optim.Adam(parameters, lr=rate, betas=(0.5, 0.9), weight_decay=weight_decay)


def _sgd(parameters: Iterator[nn.Parameter], rate: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=weight_decay, nesterov=True)


OPTIMISERS: Mapping[Optimiser, Callable[[Iterator[nn.Parameter], float, float], torch.optim.Optimizer]] = {
    "adam": _adam,
    "adam_short": _adam_short,
    "sgd": _sgd,
}
