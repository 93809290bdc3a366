"""Adversarial weight perturbation: robust in a neighbourhood of the weights, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vauban.defences.common import row_losses
from vauban.defences.train.course import Searching
from vauban.defences.train.inner import Inner
from vauban.parts.training import Batch
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source


@dataclass(frozen=True, kw_only=True)
class WeightPerturbation(Searching):
    """Adversarial training at weights that are moved against it first, by a share of each layer's size.

    A flat loss over the weights generalises better: the gap between robustness on training and on other inputs, which in adversarial
    training is large, shrinks. The weights are moved one step up the loss on the worst inputs, each matrix by `gamma`
    times its own norm; the gradient is taken there and applied to the weights as they were.

    Source: Wu, Xia and Wang 2020 (arXiv:2004.05884, section 4 and algorithm 1), on `train.pgd`.
    Departures: those of `train.pgd`; biases and the parameters of normalisation layers are left alone, as in the authors' code.

    Args:
        epochs: passes over the training rows.
        steps: gradient steps of the inner attack, 1 or more.
        recall: begin it at the change that was found for a row in the epoch before, so that two or three steps, as small as those of
            seven, find what seven would (Zheng et al. 2020, arXiv:1912.11969).
        gamma: how far weights are moved, as a share of their norm, above 0 (0.005 to 0.01 in the paper).
        delay: share of the run before weights are moved, in [0, 1).
        batch_size: rows a step.
        rate: first learning rate of Adam.
        weight_decay: L2 penalty on the weights.
        schedule: of the rate: `constant`, `cosine` (epoch by epoch) or `cycle` (up over a fifth of the run, down to nothing).
        ramp: share of the run in which the radius grows to its full size, in [0, 1].
        average: decay, a step, of averaged weights, which are then the result; 0 for none.
        validation: share of the training rows that are kept aside; the epoch that is most robust on them is the result.
        patience: epochs without a better one after which training ends; 0 for never.
        accumulate: parts in which the gradient of a batch is summed up, to save memory; each part moves the weights by itself.
        search: precision of the inner attack, `float32` or `bf16`, which takes half the time on processors that have it.
        precision: of the passes, `float32` or `bf16`, which is faster on GPUs that have it; weights stay in float32.
        crop: pictures are moved by up to so many pixels, at random and anew every epoch; their edge goes on where that leaves a gap.
        flip: half of the pictures are mirrored at random, left to right.
        from_scratch: start from fresh weights.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="train.awp",
        name="Adversarial weight perturbation",
        summary="Adversarial training at weights that are moved against it first, which generalises better.",
        needs=Access.WEIGHTS_READ | Access.DATA_READ,
        tasks=("classification", "regression"),
        adaptive=("evasion.apgd", "evasion.apgd_targeted", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="Adversarial weight perturbation helps robust generalization",
                where="Wu, Xia, Wang, NeurIPS 2020, arXiv:2004.05884, algorithm 1",
            ),
        ),
    )

    gamma: float = 0.005
    delay: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma > 0:
            raise ValueError(f"gamma must be above 0, got {self.gamma}: at 0 no weight would be moved")
        if not 0 <= self.delay < 1:
            raise ValueError(f"delay is a share in [0, 1), got {self.delay}")

    def loss(self, inner: Inner, batch: Batch) -> Tensor:
        """That of the worst inputs, at the weights that are worst for them."""
        z = self.worst(inner, batch)
        if batch.share <= self.delay:
            return row_losses(inner.answer(z), batch.y).mean()
        moved = self._moved(inner, z, batch.y)
        return row_losses(inner.read(functional_call(inner.module, moved, (z.clone(),))), batch.y).mean()

    def _moved(self, inner: Inner, z: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The matrices one step up the loss; differentiable with respect to the weights as they are."""
        wide = {k: p for k, p in inner.module.named_parameters() if p.dim() > 1 and p.requires_grad}
        with still_statistics(inner.module):
            grads = torch.autograd.grad(row_losses(inner.answer(z), y).mean(), list(wide.values()), allow_unused=True)
        moved = {}
        for (name, p), grad in zip(wide.items(), grads, strict=True):
            if grad is not None:
                size = self.gamma * p.detach().norm() / grad.norm().clamp_min(torch.finfo(grad.dtype).tiny)
                moved[name] = p + size * grad
        return moved

    def facts(self) -> dict[str, Any]:
        return {"steps": self.steps, "gamma": self.gamma, "delay": self.delay}


@contextmanager
def still_statistics(module: nn.Module) -> Iterator[None]:
    """Running statistics of normalisation layers inside are as they were outside."""
    kept = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(kept[name])
