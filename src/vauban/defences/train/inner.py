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
from vauban.parts.training import Batch

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

    def answer(self, z: Tensor) -> Outputs:
        """Differentiable."""
        return self.target.read(self.module(z.clone()))  # it may begin with a layer that works in place

    def calm(self, x: Tensor) -> Outputs:
        """Without gradients, in evaluation mode."""
        with only_inputs(self.module), torch.no_grad():
            return self.answer(x)

    def both(self, x: Tensor, z: Tensor) -> tuple[Outputs, Outputs]:
        """The answers to two batches of the same size, in one pass, so that batch normalisation sees both."""
        outputs = self.answer(torch.cat([x, z]))
        first, second = outputs.values.chunk(2)
        return replace(outputs, values=first), replace(outputs, values=second)

    def worst(self, batch: Batch, steps: int, loss: RowLoss | None = None) -> Tensor:
        """`worst_case` for a batch; the model is in evaluation mode meanwhile."""
        with only_inputs(self.module):
            return worst_case(self.answer, batch.x, batch.y, self.space, self.radius, steps, self.rng, batch.rows, loss)

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
    project, size = space.within(frame.start, radius), 2.5 * radius / steps
    told = loss or (lambda outputs: row_losses(outputs, y))
    z = space.sample(frame.start, radius, rng, rows)
    for _ in range(steps):
        z.requires_grad_()
        climbed = told(answer(frame.render(z, places))).sum()
        if not climbed.requires_grad:  # nothing to climb (corruptions): random points are what there is
            break
        (grad,) = torch.autograd.grad(climbed, z)
        z = z.detach()
        z = project(z + space.steepest(grad, z, size))
    return frame.render(z.detach(), places)
