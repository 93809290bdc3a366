"""Plain supervised training: what recipes, substitutes, reference models and defences share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.schema.errors import NotOffered

Step = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""(module in training mode, x, y, rows) -> loss of the batch."""
Optimiser = Literal["adam", "sgd"]


@contextlib.contextmanager
def quiet_rng(seed: int) -> Iterator[None]:
    """Global torch randomness seeded inside and put back outside: initialisers and dropout draw from it."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def task_loss(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy for class numbers (int64), mean squared error for real values."""
    if y.is_floating_point():
        return F.mse_loss(outputs.reshape(y.shape), y.to(outputs.dtype))
    return F.cross_entropy(outputs, y)


def plain_step(module: nn.Module, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    return task_loss(module(x), y)


def fit(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
    epochs: int = 20,
    batch_size: int = 64,
    rate: float = 1e-3,
    weight_decay: float = 0.0,
    optimiser: Optimiser = "adam",
    step: Step = plain_step,
    schedule: Literal["constant", "cosine"] = "constant",
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """Train `module` in place on `x` `[n, ...]`, `y` `[n]`, and return it in evaluation mode.

    The order of batches, dropout and the rest depend on `seed` alone; global random state is as it was afterwards.
    """
    make = _OPTIMISERS[optimiser]
    with quiet_rng(seed):
        optimizer = make(module.parameters(), rate, weight_decay)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs) if schedule == "cosine" else None
        for epoch in range(epochs):
            for rows in batches(torch.randperm(len(x)), batch_size):
                module.train()
                loss = step(module, x[rows], y[rows], rows)
                if not loss.requires_grad:
                    raise NotOffered(
                        "the model passes no gradients to its weights (no_grad, argmax or detach inside, or every weight "
                        "of the factory's module frozen), so that none like it can be trained"
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            if falling is not None:
                falling.step()
            if progress is not None:
                progress(epoch + 1, epochs)
    optimizer.zero_grad(set_to_none=True)
    return module.eval()


def batches(order: Tensor, size: int) -> Sequence[Tensor]:
    """`order` in parts of `size`; a single row left over joins the part before it, for batch normalisation needs two."""
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def _adam(parameters: Iterator[nn.Parameter], rate: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=rate, weight_decay=weight_decay)


def _sgd(parameters: Iterator[nn.Parameter], rate: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=weight_decay, nesterov=True)


_OPTIMISERS: dict[str, Callable[[Iterator[nn.Parameter], float, float], torch.optim.Optimizer]] = {
    "adam": _adam,
    "sgd": _sgd,
}


def reset(module: nn.Module, seed: int) -> nn.Module:
    """Fresh weights in place, by each layer's own initialiser; buffers of normalisation layers start anew."""
    with quiet_rng(seed):
        for part in module.modules():
            initialise = getattr(part, "reset_parameters", None)
            if callable(initialise):
                initialise()
    return module
