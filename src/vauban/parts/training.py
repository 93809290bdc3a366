"""Supervised training: what recipes, substitutes, reference models and defences share."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.crew import ALONE, Crew
from vauban.core.defence import Store
from vauban.core.rng import derive_seed
from vauban.parts.courses import RATES, Batch, Course, Optimiser, Precision, Schedule, Step, batches
from vauban.parts.descent import Descent

__all__ = [
    "RATES", "Batch", "Course", "Judge", "Optimiser", "Precision", "Schedule", "Step", "Trained", "Watch", "batches", "fit",
    "plain_step", "quiet_rng", "reset", "task_loss", "train",
]  # fmt: skip

Judge = Callable[[nn.Module], tuple[float, str]]
"""Module in evaluation mode -> how good it is, and why to stop (empty where not)."""
Watch = Callable[[nn.Module, int, Mapping[str, float]], None]
"""(module in evaluation mode, epoch from 1, its figures: `loss`, `rate`, `seconds`, `judged` where there is a judge)."""


@dataclass
class Trained:
    """The module in evaluation mode, and how it came about."""

    module: nn.Module
    epochs: int
    """Made."""
    best: int
    """The epoch whose weights these are, from 1."""
    ended: str
    """Why before its time, in plain words; empty where it was not."""
    history: list[dict[str, float]]
    """By epoch: `loss`, and what the judge said as `judged`."""


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


def plain_step(module: nn.Module, batch: Batch) -> Tensor:
    return task_loss(module(batch.x), batch.y)


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
    schedule: Schedule = "constant",
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """Train `module` in place on `x` `[n, ...]`, `y` `[n]`, and return it in evaluation mode.

    The order of batches, dropout and the rest depend on `seed` alone; global random state is as it was afterwards.
    """
    course = Course(
        epochs=epochs,
        batch_size=batch_size,
        rate=rate,
        weight_decay=weight_decay,
        optimiser=optimiser,
        schedule=schedule,
    )
    return train(module, x, y, step, course, seed, progress=progress).module


def train(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    step: Step,
    course: Course,
    seed: int,
    *,
    judge: Judge | None = None,
    store: Store | None = None,
    progress: Callable[[int, int], None] | None = None,
    crew: Crew = ALONE,
    memory: dict[str, Tensor] | None = None,
    watch: Watch | None = None,
) -> Trained:
    """As `fit`, by a course.

    `judge` looks at the module in evaluation mode after every epoch, and may end the run; the weights of the epoch that it
    liked best are kept.
    `store` is written to after every epoch; a run that finds something there goes on from it, to the same result; so does
    `memory`, in which steps and judge keep what they hand on. A loss that is not finite ends the run with the weights of the
    epoch before.
    `crew`: the processes that do this together, each with its share of every batch; all end with the same weights. The first
    one alone judges, watches, tells and stores, and it alone has its memory put back. `watch` is told of every epoch.
    """
    with quiet_rng(seed):
        run = _Run(module, course, crew, seed, {} if memory is None else memory)
        run.resume(store)
        while run.epoch < course.epochs and not run.ended:
            run.go_on(x, y, step)
            run.judged(judge)
            if crew.rank == 0:
                if store is not None:
                    store.save(run.tensors(), run.facts())
                run.shown(watch)
                if progress is not None:
                    progress(run.epoch, course.epochs)
        return run.finish()


class _Run:
    """A training between two epochs."""

    def __init__(self, module: nn.Module, course: Course, crew: Crew, seed: int, memory: dict[str, Tensor]) -> None:
        self.module, self.course, self.crew, self.seed, self.memory = module, course, crew, seed, memory
        self.home = next((p.device for p in module.parameters()), torch.device("cpu"))
        if crew.device is not None:
            module.to(crew.device)
        if crew.size > 1:  # all begin at the weights of the first
            module.load_state_dict(crew.same(lambda: {k: v.cpu() for k, v in module.state_dict().items()}))
        self.descent = Descent(module, course, crew)
        self.epoch, self.best, self.top = 0, 0, -math.inf
        self.ended = ""
        self.history: list[dict[str, float]] = []
        self.figures: dict[str, float] = {}
        """Of the last epoch, for whoever watches."""
        self.averaged = {k: v.clone() for k, v in _floats(module).items()} if course.average else {}
        self.kept: dict[str, Tensor] = {}
        """The state of the best epoch, where there is a judge."""

    def go_on(self, x: Tensor, y: Tensor, step: Step) -> None:
        """One epoch; the state before it comes back where the loss is lost."""
        before, course, device, since = (
            copy.deepcopy(self.module.state_dict()),
            self.course,
            self.descent.device,
            time.monotonic(),
        )
        parts = batches(self._order(len(x)), course.batch_size)
        # a batch that is repeated counts as often as it is stepped on
        each, total = len(parts) * course.repeats, len(parts) * course.repeats * course.epochs
        losses, rate = [], 0.0
        for place, rows in enumerate(part for part in parts for _ in range(course.repeats)):
            number = self.epoch * each + place
            batch = Batch(x[rows].to(device), y[rows].to(device), rows, number, (number + 1) / total)
            rate = RATES[course.schedule](self.epoch / course.epochs, (number + 0.5) / total)
            loss = self.descent.step(step, batch, rate)
            if not math.isfinite(loss):
                self.module.load_state_dict(before)
                self.ended = f"the loss was {loss} in epoch {self.epoch + 1}: the weights are those of the epoch before"
                return
            if self.averaged:
                self._average(number)
            losses.append(loss)
        self.descent.level(self.averaged)
        self.epoch += 1
        self.history.append({"loss": sum(losses) / len(losses)})
        self.figures = {"rate": course.rate * rate, "seconds": time.monotonic() - since}

    def _order(self, count: int) -> Tensor:
        """Of the rows in this epoch. The other processes draw dropout and the like by numbers of their own, fresh every epoch."""
        if self.crew.rank:
            torch.manual_seed(derive_seed(self.seed, "crew", self.crew.rank, self.epoch))
        return self.crew.same(lambda: torch.randperm(count))

    def _average(self, number: int) -> None:
        # a young average follows closely, for it not to remember the weights before training
        decay = min(self.course.average, (1 + number) / (10 + number))
        with torch.no_grad():
            for name, value in _floats(self.module).items():
                self.averaged[name].lerp_(value, 1 - decay)

    def judged(self, judge: Judge | None) -> None:
        if judge is None or self.ended:
            return
        with _lent(self.module, self.averaged):
            score, self.ended = self.crew.same(lambda: judge(self.module.eval()))
            self.history[-1]["judged"] = score
            # of equals the later, which has seen more
            if score >= self.top:
                self.top, self.best, self.kept = score, self.epoch, copy.deepcopy(self.module.state_dict())
        if not self.ended and self.course.patience and self.epoch - self.best >= self.course.patience:
            self.ended = f"no better for {self.course.patience} epochs"

    def shown(self, watch: Watch | None) -> None:
        """The weights that were judged, to whoever watches; an epoch whose loss was lost is not shown."""
        if watch is not None and self.figures:
            with _lent(self.module, self.averaged):
                watch(self.module.eval(), self.epoch, {**self.history[-1], **self.figures})
            self.figures = {}

    def tensors(self) -> dict[str, Tensor]:
        """All that the next epoch depends on."""
        found = {f"module/{k}": v for k, v in self.module.state_dict().items()}
        found |= {f"averaged/{k}": v for k, v in self.averaged.items()} | {f"kept/{k}": v for k, v in self.kept.items()}
        found |= {f"memory/{k}": v.detach() for k, v in self.memory.items()}
        found |= {f"slope/{k}": v.grad for k, v in self.memory.items() if v.grad is not None}
        for number, state in self.descent.optimizer.state_dict()["state"].items():
            found |= {f"optimizer/{number}/{k}": v for k, v in state.items() if isinstance(v, Tensor)}
        found["random"] = torch.get_rng_state()
        if torch.cuda.is_available():
            found["random.cuda"] = torch.cuda.get_rng_state()
        return found

    def facts(self) -> dict[str, Any]:
        return {
            "course": asdict(self.course), "epoch": self.epoch, "best": self.best, "ended": self.ended,
            "top": self.top if self.best else None, "history": self.history,
        }  # fmt: skip

    def resume(self, store: Store | None) -> None:
        """Go on from what is there, if it is of the same course."""
        found = self.crew.same(lambda: store.load() if store is not None else None)
        if found is None or found[1].get("course") != asdict(self.course):
            return
        tensors, facts = found
        device, optimizer = self.descent.device, self.descent.optimizer
        self.module.load_state_dict(_under("module/", tensors))
        self.averaged = {k: v.to(device) for k, v in _under("averaged/", tensors).items()}
        self.kept = _under("kept/", tensors)
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer/", tensors).items():
            number, _, key = name.partition("/")
            state.setdefault(int(number), {})[key] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        if self.crew.rank == 0:
            self._remember(tensors)
        self.epoch, self.best, self.ended = facts["epoch"], facts["best"], facts["ended"]
        self.top, self.history = -math.inf if facts["top"] is None else facts["top"], facts["history"]

    def _remember(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back the random state, and what steps hand on with its gradients."""
        torch.set_rng_state(tensors["random"].cpu())
        if "random.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random.cuda"].cpu())
        device, slopes = self.descent.device, _under("slope/", tensors)
        for name, value in _under("memory/", tensors).items():
            self.memory[name] = value.to(device)
            if name in slopes:
                self.memory[name].requires_grad_().grad = slopes[name].to(device)

    def finish(self) -> Trained:
        self.descent.optimizer.zero_grad(set_to_none=True)
        state = self.kept or self.averaged
        self.module.load_state_dict(state, strict=False)
        if self.crew.device is not None:
            self.module.to(self.home)
        return Trained(self.module.eval(), self.epoch, self.best or self.epoch, self.ended, self.history)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _floats(module: nn.Module) -> dict[str, Tensor]:
    """Weights and floating-point buffers."""
    return {k: v for k, v in module.state_dict().items() if v.is_floating_point()}


@contextlib.contextmanager
def _lent(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """`module` with other weights inside, where there are any."""
    if not weights:
        yield
        return
    own = {k: v.clone() for k, v in _floats(module).items()}
    module.load_state_dict(dict(weights), strict=False)
    try:
        yield
    finally:
        module.load_state_dict(own, strict=False)


def reset(module: nn.Module, seed: int) -> nn.Module:
    """Fresh weights in place, by each layer's own initialiser; buffers of normalisation layers start anew."""
    with quiet_rng(seed):
        for part in module.modules():
            initialise = getattr(part, "reset_parameters", None)
            if callable(initialise):
                initialise()
    return module
