"""One step of a training: by one process or several, on a whole batch or in parts, in float32 or bf16."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from vauban.core.crew import Crew
from vauban.parts.courses import OPTIMISERS, Batch, Course, Precision, Step, dealt
from vauban.schema.errors import NotOffered

Cast = Callable[[], contextlib.AbstractContextManager[object]]


class Descent:
    """Steps down the loss of whole batches.

    Each process of the crew takes its share of a batch, and each share is taken in parts; the gradients are summed with the parts'
    shares of the rows, so that the step is that of the whole batch. What looks at a batch as a whole sees its own part:
    batch normalisation, weights that are moved by a batch's gradient.
    """

    def __init__(self, module: nn.Module, course: Course, crew: Crew) -> None:
        self.module, self.course, self.crew = module, course, crew
        self.optimizer = OPTIMISERS[course.optimiser](module.parameters(), course.rate, course.weight_decay)
        self.learnt = list(module.parameters())
        self.device = self.learnt[0].device
        self.cast = casting(course.precision, self.device)

    def step(self, step: Step, batch: Batch, share: float) -> float:
        """Make one step, at this share of the rate; the loss. Nothing changes where that is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.course.rate * share
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        told = self._summed(self._backward(step, batch))
        if math.isfinite(told):
            self.optimizer.step()
        return told

    def _backward(self, step: Step, batch: Batch) -> float:
        """Gradients of this process's share of the batch, and its share of the loss."""
        told = 0.0
        for own in dealt(batch, self.crew.size)[self.crew.rank : self.crew.rank + 1]:
            for part in dealt(own, self.course.accumulate):
                loss, share = self._loss(step, part), len(part.rows) / len(batch.rows)
                told += share * float(loss.detach())
                if not math.isfinite(told):
                    return told
                (loss if share == 1 else share * loss).backward()
        return told

    def _loss(self, step: Step, batch: Batch) -> Tensor:
        with self.cast():
            loss = step(self.module, batch)
        if not loss.requires_grad:
            raise NotOffered(
                "the model passes no gradients to its weights (no_grad, argmax or detach inside, or every weight "
                "of the factory's module frozen), so that none like it can be trained"
            )
        return loss

    def _summed(self, told: float) -> float:
        """The loss and the gradients over the whole crew."""
        if self.crew.size == 1:
            return told
        wide = torch.float64 if any(p.dtype == torch.float64 for p in self.learnt) else torch.float32
        flat = [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1).to(wide) for p in self.learnt]
        known = [float(p.grad is not None) for p in self.learnt]
        whole = self.crew.total(torch.cat([*flat, torch.tensor([*known, told], dtype=wide, device=self.device)]))
        *sums, tail = whole.split([*(p.numel() for p in self.learnt), len(known) + 1])
        *known, told = tail.tolist()
        for p, total, some in zip(self.learnt, sums, known, strict=True):
            # a weight that no process used has no gradient, as with one process
            if some:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                p.grad.copy_(total.view(p.shape))
        return float(told)

    def level(self, averaged: Mapping[str, Tensor]) -> None:
        """Running statistics become the mean of those of the crew, each of which saw its share of the rows; their averages, too.

        Counts become those of the first process.
        """
        if self.crew.size == 1:
            return
        found = dict(self.module.named_buffers())
        kept = self.crew.same(lambda: {k: v.cpu() for k, v in found.items() if not v.is_floating_point()})
        means = [v for k, v in found.items() if k not in kept] + [averaged[k] for k in found if k in averaged]
        with torch.no_grad():
            for name, count in kept.items():
                found[name].copy_(count)
            for values in means:
                values.copy_(self.crew.total(values.clone()) / self.crew.size)


def casting(precision: Precision, device: torch.device) -> Cast:
    """What passes are made in. Raises NotOffered where the device has no bf16."""
    if precision == "float32":
        return contextlib.nullcontext
    if not _BF16.get(device.type, _autocast)(device):
        raise NotOffered(f"bf16 was asked for, and {device.type} has none here: set precision=float32.")
    # casts are not kept: an inner attack between two passes would leave some that know of no gradient
    return functools.partial(torch.autocast, device.type, dtype=torch.bfloat16, cache_enabled=False)


def _autocast(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type)


_BF16: dict[str, Callable[[torch.device], bool]] = {
    "cuda": lambda device: torch.cuda.is_bf16_supported(including_emulation=False)
}
"""Where it takes more than torch's word."""
