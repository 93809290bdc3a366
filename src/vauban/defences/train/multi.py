"""Adversarial training against several norms at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.core.space import Continuous
from vauban.defences.common import row_losses
from vauban.defences.train.course import Searching
from vauban.defences.train.inner import Inner
from vauban.parts.projections import SPACES
from vauban.parts.training import Batch
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source

WAYS = ("worst", "mean", "random")
TRAINED = ("linf", "l2", "l1")
"""Spaces that may stand in `norms`."""


@dataclass(frozen=True, kw_only=True)
class SeveralNorms(Searching):
    """Trains on the worst inputs of several threats, for a model robust in one norm is seldom so in another.

    Every batch is attacked in the threat of the audit and in those named in `norms`. Descended is the loss of each row's worst
    attack (`worst`), the mean over attacks (`mean`), or that of one attack drawn anew for each batch (`random`, which costs no more
    than one norm).

    Source: Tramer and Boneh 2019 (arXiv:1904.13000, section 3.1: max and avg); Madaan, Shin and Hwang 2021 (arXiv:2006.12135:
    one drawn at random).
    Departures: those of `train.pgd`.

    Args:
        norms: further threats, separated by commas, such as `l2:1,l1:8`.
        way: `worst`, `mean` or `random`.
        epochs: passes over the training rows.
        steps: gradient steps of each attack, 1 or more.
        batch_size: rows a step.
        rate: first learning rate of Adam.
        weight_decay: L2 penalty on the weights.
        schedule: of the rate: `constant`, `cosine` (epoch by epoch) or `cycle` (up over a fifth of the run, down to nothing).
        ramp: share of the run in which the radii grow to their full size, in [0, 1].
        average: decay, a step, of averaged weights, which are then the result; 0 for none.
        validation: share of the training rows that are kept aside; the epoch that holds best, each row against every threat, is the result.
        patience: epochs without a better one after which training ends; 0 for never.
        accumulate: parts in which the gradient of a batch is summed up, to save memory; the step is that of the whole batch.
        search: precision of the inner attack, `float32` or `bf16`, which takes half the time on processors that have it.
        precision: of the passes, `float32` or `bf16`, which is faster on GPUs that have it; weights stay in float32.
        crop: pictures are moved by up to so many pixels, at random and anew every epoch; their edge goes on where that leaves a gap.
        flip: half of the pictures are mirrored at random, left to right.
        from_scratch: start from fresh weights.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="train.multi",
        name="Adversarial training, several norms",
        summary="Trains the model on inputs that were changed to fool it in several norms, as one alone protects from one alone.",
        needs=Access.WEIGHTS_READ | Access.DATA_READ,
        tasks=("classification", "regression"),
        adaptive=("evasion.apgd", "evasion.apgd_targeted", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="Adversarial training and robustness for multiple perturbations",
                where="Tramer, Boneh, NeurIPS 2019, arXiv:1904.13000, section 3.1",
            ),
            Source(
                title="Learning to generate noise for multi-attack robustness",
                where="Madaan, Shin, Hwang, ICML 2021, arXiv:2006.12135",
            ),
        ),
    )

    norms: str = "l2:1"
    way: str = "worst"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recall:
            raise ValueError(
                "recall is for one threat, and train.multi begins at random points of several: leave it out"
            )
        if self.way not in WAYS:
            raise ValueError(f"way is one of {', '.join(WAYS)}, got {self.way!r}")
        if not self.others:
            raise ValueError("norms names no threat: give one or more, such as l2:1,l1:8")

    @property
    def others(self) -> list[tuple[str, float]]:
        """Names and radii of the further threats; raises ValueError."""
        found = []
        for word in self.norms.split(","):
            name, _, size = word.strip().partition(":")
            try:
                radius = float(size)
            except ValueError:
                radius = -1.0
            if name not in TRAINED or not radius > 0:
                raise ValueError(
                    f"norms are written as {TRAINED[0]}:0.1 (of {', '.join(TRAINED)}), got {word.strip()!r}"
                )
            found.append((name, radius))
        return found

    def loss(self, inner: Inner, batch: Batch) -> Tensor:
        """That of the inputs changed in one norm or the other."""
        rooms = self._rooms(inner, self.grown(batch))
        if self.way == "random":
            rooms = [rooms[int(inner.rng.numpy("norm").integers(len(rooms)))]]
        tried = [self.worst(room, batch) for room in rooms]
        if self.way == "mean":
            return torch.stack([row_losses(inner.answer(z), batch.y).mean() for z in tried]).mean()
        return row_losses(inner.answer(_worst(inner, batch, tried)), batch.y).mean()

    def _rooms(self, inner: Inner, share: float) -> list[Inner]:
        """The threat of the audit and the others, their radii grown as far."""
        low, high = inner.space.low, inner.space.high
        others: list[tuple[Continuous, float]] = [(SPACES[name](low, high), radius) for name, radius in self.others]
        return [inner, *(replace(inner, space=space, radius=share * radius) for space, radius in others)]

    def judged(self, inner: Inner, batch: Batch) -> Tensor:
        """Whether a row is held against every threat; minus the worst squared error in a regression."""
        held = [super(SeveralNorms, self).judged(room, batch) for room in self._rooms(inner, 1.0)]
        return torch.stack(held).amin(0)

    def facts(self) -> dict[str, Any]:
        return {"norms": self.norms, "way": self.way, "steps": self.steps}


def _worst(inner: Inner, batch: Batch, tried: list[Tensor]) -> Tensor:
    """Of every row the input with the largest loss."""
    losses = torch.stack([row_losses(inner.calm(z), batch.y) for z in tried])
    return torch.stack(tried)[losses.argmax(0), torch.arange(len(batch.x), device=batch.x.device)]
