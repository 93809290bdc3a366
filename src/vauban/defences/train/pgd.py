"""Adversarial training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vauban.core.data import Data
from vauban.core.defence import Context, Hardened
from vauban.core.rng import Rng
from vauban.core.space import Continuous
from vauban.core.target import Outputs, Target
from vauban.defences.common import (
    TorchModel,
    around,
    fresh,
    loaded,
    only_inputs,
    placement,
    row_losses,
    torch_backed,
    training_rows,
)
from vauban.parts.training import fit
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source
from vauban.schema.errors import BadThreat

SUFFIX = "+train.pgd"


@dataclass(frozen=True, kw_only=True)
class PGDTraining:
    """Trains a copy of the model on the worst inputs within the threat: min over weights of max over changes.

    The inner maximisation is PGD from a random point, `steps` steps of 2.5 x radius / steps each, with the model in
    evaluation mode and input gradients alone; the outer step then updates the weights on the last iterate in training
    mode, so that batch normalisation learns the statistics of adversarial inputs only. Works in every continuous space
    (linf, l2, l1), for classification (cross-entropy) and regression (squared error).

    Source: Madry et al. 2018 (arXiv:1706.06083, sections 2.1 and 5).
    Departures: training starts from the target's own weights unless `from_scratch`, and the radius grows linearly over
    the first `ramp` of the epochs, for both make a small model robust in far fewer epochs; Adam with a rate that falls
    along a cosine instead of SGD with steps; `clean` mixes in the loss on the unchanged inputs (Goodfellow et al.
    2015, arXiv:1412.6572, section 6), none by default. The inner attack's model is in evaluation mode, as in common
    practice since; the paper does not say.

    Args:
        epochs: passes over the training rows.
        steps: gradient steps of the inner attack, 1 or more.
        batch_size: rows a step.
        rate: first learning rate of Adam.
        weight_decay: L2 penalty on the weights.
        clean: share of the clean loss, in [0, 1).
        ramp: share of the epochs in which the radius grows to its full size, in [0, 1].
        from_scratch: start from fresh weights.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="train.pgd",
        name="Adversarial training (PGD)",
        summary="Trains the model on inputs that were changed to fool it, so that small changes no longer do.",
        needs=Access.WEIGHTS_READ | Access.DATA_READ,
        tasks=("classification", "regression"),
        adaptive=("evasion.apgd", "evasion.apgd_targeted", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="Towards deep learning models resistant to adversarial attacks",
                where="Madry et al., ICLR 2018, arXiv:1706.06083, sections 2.1 and 5",
            ),
        ),
    )

    epochs: int = 30
    steps: int = 7
    batch_size: int = 64
    rate: float = 2e-3
    weight_decay: float = 0.0
    clean: float = 0.0
    ramp: float = 0.3
    from_scratch: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.rate > 0:
            raise ValueError(f"rate must be above 0, got {self.rate}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        if not 0 <= self.clean < 1:
            raise ValueError(f"clean is a share in [0, 1), got {self.clean}: 1 would be no adversarial training at all")
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp is a share in [0, 1], got {self.ramp}")

    def __call__(self, target: Target, data: Data, rng: Rng, context: Context) -> Hardened:
        model = torch_backed(target, self.card)
        space, radius = context.space, context.radius
        if space is None or radius is None:
            raise BadThreat(f"{self.card.id} trains against one threat: give it, such as --threat linf:0.1.")
        x, y = training_rows(model, data, self.card)
        seed = int(rng.child("train").seed)
        module = fresh(model, seed, self.card) if self.from_scratch else model.clone()
        batches = -(-len(x) // self.batch_size)
        step = _Step(self, model, space, radius, Rng(seed, len(x)), batches)
        fit(
            module,
            x,
            y,
            seed=seed,
            epochs=self.epochs,
            batch_size=self.batch_size,
            rate=self.rate,
            weight_decay=self.weight_decay,
            schedule="cosine",
            step=step,
            progress=lambda done, total: context.progress(done, total, "adversarial training"),
        )
        facts: dict[str, Any] = {
            "space": space.name,
            "radius": radius,
            "epochs": self.epochs,
            "steps": self.steps,
            "clean": self.clean,
            "started_from": "fresh weights" if self.from_scratch else "the model's own weights",
        }
        return Hardened(around(model, module, SUFFIX), facts, (_PLAIN,) if target.recipe else ())

    def restore(self, target: Target, data: Data, state: Mapping[str, Tensor]) -> Target:
        model = torch_backed(target, self.card)
        return around(model, loaded(model.clone(), state), SUFFIX)


_PLAIN = (
    "Reference models of leakage attacks on the defended model were trained without the defence, so its leakage may "
    "be larger than measured."
)


@dataclass
class _Step:
    """The training step: attack the batch, then give the loss on what came out."""

    how: PGDTraining
    target: TorchModel
    space: Continuous
    radius: float
    rng: Rng
    batches: int
    done: int = field(default=0, init=False)

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        device, _ = placement(module)
        x, y, rows = x.to(device), y.to(device), rows.to(device)

        def answer(z: Tensor) -> Outputs:
            return self.target.read(module(z.clone()))  # it may begin with a layer that works in place

        radius = self.radius * self._share()
        self.done += 1
        with only_inputs(module):
            z = worst_case(answer, x, y, self.space, radius, self.how.steps, self.rng, rows)
        loss = row_losses(answer(z), y).mean()
        if self.how.clean == 0:
            return loss
        return (1 - self.how.clean) * loss + self.how.clean * row_losses(answer(x), y).mean()

    def _share(self) -> float:
        growing = self.how.ramp * self.how.epochs * self.batches
        return min(1.0, (self.done + 1) / growing) if growing else 1.0


def worst_case(
    answer: Callable[[Tensor], Outputs],
    x: Tensor,
    y: Tensor,
    space: Continuous,
    radius: float,
    steps: int,
    rng: Rng,
    rows: Tensor,
) -> Tensor:
    """Inputs `[m, ...]` within `radius` of `x` that the loss was driven up on: PGD's last iterate.

    `answer` maps inputs to outputs and is differentiable; `rows` `[m]` are the numbers of the rows in `rng`.
    """
    frame, places = space.frame(x, rows.cpu().numpy()), torch.arange(len(x), device=x.device)
    project, size = space.within(frame.start, radius), 2.5 * radius / steps
    z = space.sample(frame.start, radius, rng, rows)
    for _ in range(steps):
        z.requires_grad_()
        loss = row_losses(answer(frame.render(z, places)), y).sum()
        if not loss.requires_grad:  # nothing to climb (corruptions): random points are what there is
            break
        (grad,) = torch.autograd.grad(loss, z)
        z = z.detach()
        z = project(z + space.steepest(grad, z, size))
    return frame.render(z.detach(), places)
