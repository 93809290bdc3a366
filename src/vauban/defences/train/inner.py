"""The inner problem of adversarial training: the worst inputs within the threat, for a batch and the weights of now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vauban.core.rng import Rng
from vauban.core.space import Continuous, Frame
from vauban.core.target import Outputs
from vauban.defences.common import TorchModel, only_inputs, row_losses
from vauban.parts.augment import Moved
from vauban.parts.descent import casting
from vauban.parts.training import Batch, Precision

RECALL = "recall"
"""Where the last change of every row lies in a training's memory."""
MENDING = 7
"""Steps go on from there as small as those of so many."""
RowLoss = Callable[[Outputs], Tensor]
"""Outputs of a batch -> the loss of each row `[m]`, to be driven up."""


@dataclass(frozen=True, eq=False)
class Inner:
    """A model in training, the room that its attacker has, and random numbers of the batch."""

    target: TorchModel
    module: nn.Module
    space: Continuous
    radius: float
    rng: Rng
    memory: dict[str, Tensor]
    """What a method hands from batch to batch."""
    moved: Moved | None = None
    """How the pictures of the batch were turned round and moved."""

    def answer(self, z: Tensor) -> Outputs:
        """Differentiable."""
        return self.read(self.module(z.clone()))  # it may begin with a layer that works in place

    def read(self, raw: object) -> Outputs:
        """What the module gave; losses are computed in float32 at least."""
        outputs = self.target.read(raw)
        coarse = outputs.values.dtype in (torch.bfloat16, torch.float16)
        return replace(outputs, values=outputs.values.float()) if coarse else outputs

    def calm(self, x: Tensor) -> Outputs:
        """Without gradients, in evaluation mode."""
        with only_inputs(self.module), torch.no_grad():
            return self.answer(x)

    def both(self, x: Tensor, z: Tensor) -> tuple[Outputs, Outputs]:
        """The answers to two batches of the same size, in one pass, so that batch normalisation sees both."""
        outputs = self.answer(torch.cat([x, z]))
        first, second = outputs.values.chunk(2)
        return replace(outputs, values=first), replace(outputs, values=second)

    def worst(
        self,
        batch: Batch,
        steps: int,
        loss: RowLoss | None = None,
        recall: bool = False,
        search: Precision = "float32",
    ) -> Tensor:
        """`worst_case` for a batch; the model is in evaluation mode meanwhile. `recall`: it begins at the change that was found for
        a row when it was last trained on, in radii of then. `search`: precision of its passes."""
        frame, places = self.frame(batch)
        z = self.space.sample(frame.start, self.radius, self.rng, batch.rows)
        if recall:
            kept = self._changes(z)[batch.rows.cpu()]
            kept = (self.moved.there(kept) if self.moved else kept).to(z)
            known = self.space.within(frame.start, self.radius)(frame.start + self.radius * kept)
            z = torch.where(kept.isnan(), z, known)
        told = loss or (lambda outputs: row_losses(outputs, batch.y))
        with only_inputs(self.module), casting(search, z.device)():
            # what was found before is mended, not left behind in one leap
            size = 2.5 * self.radius / (max(steps, MENDING) if recall else steps)
            z = climbed(self.answer, frame, places, self.space, self.radius, steps, size, z, told)
        if recall:
            change = ((z - frame.start) / self.radius).to("cpu", torch.float32)
            self._changes(z)[batch.rows.cpu()] = self.moved.back(change) if self.moved else change
        return frame.render(z, places)

    def _changes(self, z: Tensor) -> Tensor:
        """The last change of every row; NaN before there is one."""
        if RECALL not in self.memory:
            self.memory[RECALL] = torch.full((len(self.rng.ids), *z.shape[1:]), torch.nan)
        return self.memory[RECALL]

    def frame(self, batch: Batch) -> tuple[Frame, Tensor]:
        """Where the search lives, and the numbers of its rows."""
        return framed(self.space, batch.x, batch.rows)


def framed(space: Continuous, x: Tensor, rows: Tensor) -> tuple[Frame, Tensor]:
    """Where the search for changes of `x` `[m, ...]`, rows `rows`, lives, and the places of its rows."""
    return space.frame(x, rows.cpu().numpy()), torch.arange(len(x), device=x.device)


def worst_case(
    answer: Callable[[Tensor], Outputs],
    x: Tensor,
    y: Tensor,
    space: Continuous,
    radius: float,
    steps: int,
    rng: Rng,
    rows: Tensor,
    loss: RowLoss | None = None,
) -> Tensor:
    """Inputs `[m, ...]` within `radius` of `x` that a loss was driven up on: PGD's last iterate, from a random point.

    `answer` maps inputs to outputs and is differentiable; `rows` `[m]` are the numbers of the rows in `rng`; the loss is that of
    the labels `y` unless given. Steps of 2.5 radii over `steps`.
    """
    frame, places = framed(space, x, rows)
    z = space.sample(frame.start, radius, rng, rows)
    told = loss or (lambda outputs: row_losses(outputs, y))
    return frame.render(climbed(answer, frame, places, space, radius, steps, 2.5 * radius / steps, z, told), places)


def climbed(
    answer: Callable[[Tensor], Outputs],
    frame: Frame,
    places: Tensor,
    space: Continuous,
    radius: float,
    steps: int,
    size: float,
    z: Tensor,
    told: RowLoss,
) -> Tensor:
    """The point that PGD comes to from `z` by steps of that size, in the coordinates of the frame."""
    project = space.within(frame.start, radius)
    for _ in range(steps):
        z.requires_grad_()
        loss = told(answer(frame.render(z, places))).sum()
        if not loss.requires_grad:  # nothing to climb (corruptions): random points are what there is
            break
        (grad,) = torch.autograd.grad(loss, z)
        z = z.detach()
        z = project(z + space.steepest(grad, z, size))
    return z.detach()
