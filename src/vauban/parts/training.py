"""Supervised training: what recipes, substitutes, reference models and defences share."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.defence import Store
from vauban.parts.schedules import cosine
from vauban.schema.errors import NotOffered


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


Step = Callable[[nn.Module, Batch], Tensor]
"""(module in training mode, batch) -> its loss."""
Judge = Callable[[nn.Module], tuple[float, str]]
"""Module in evaluation mode -> how good it is, and why to stop (empty where not)."""
Optimiser = Literal["adam", "sgd"]
Schedule = Literal["constant", "cosine", "cycle"]


@dataclass(frozen=True, kw_only=True)
class Course:
    """How long a training goes, and by which steps.

    `schedule`: of the rate: `cosine` falls from epoch to epoch, `cycle` rises over the first fifth and falls to nothing, step by
    step. `average`: weights are averaged over steps with this decay, and the averages kept (0: not). `repeats`: steps on each batch
    before the next. `patience`: epochs without a better judgement after which it ends (0: never).
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
) -> Trained:
    """As `fit`, by a course.

    `judge` looks at the module in evaluation mode after every epoch, and may end the run; the weights of the epoch that it
    liked best are kept.
    `store` is written to after every epoch; a run that finds something there goes on from it, to the same result. A loss that
    is not finite ends the run with the weights of the epoch before.
    """
    with quiet_rng(seed):
        run = _Run(module, course)
        run.resume(store)
        while run.epoch < course.epochs and not run.ended:
            run.go_on(x, y, step)
            run.judged(judge)
            if store is not None:
                store.save(run.tensors(), run.facts())
            if progress is not None:
                progress(run.epoch, course.epochs)
        return run.finish()


class _Run:
    """A training between two epochs."""

    def __init__(self, module: nn.Module, course: Course) -> None:
        self.module, self.course = module, course
        self.optimizer = _OPTIMISERS[course.optimiser](module.parameters(), course.rate, course.weight_decay)
        self.epoch, self.best, self.top = 0, 0, -math.inf
        self.ended = ""
        self.history: list[dict[str, float]] = []
        self.averaged = {k: v.clone() for k, v in _floats(module).items()} if course.average else {}
        self.kept: dict[str, Tensor] = {}
        """The state of the best epoch, where there is a judge."""

    def go_on(self, x: Tensor, y: Tensor, step: Step) -> None:
        """One epoch; the state before it comes back where the loss is lost."""
        before = copy.deepcopy(self.module.state_dict())
        parts, course = batches(torch.randperm(len(x)), self.course.batch_size), self.course
        # a batch that is repeated counts as often as it is stepped on
        each, total = len(parts) * course.repeats, len(parts) * course.repeats * course.epochs
        losses = []
        for place, rows in enumerate(part for part in parts for _ in range(course.repeats)):
            number = self.epoch * each + place
            batch = Batch(x[rows], y[rows], rows, number, (number + 1) / total)
            loss = self._step(step, batch, RATES[course.schedule](self.epoch / course.epochs, (number + 0.5) / total))
            if not math.isfinite(loss):
                self.module.load_state_dict(before)
                self.ended = f"the loss was {loss} in epoch {self.epoch + 1}: the weights are those of the epoch before"
                return
            losses.append(loss)
        self.epoch += 1
        self.history.append({"loss": sum(losses) / len(losses)})

    def _step(self, step: Step, batch: Batch, share: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.course.rate * share
        self.module.train()
        loss = step(self.module, batch)
        if not loss.requires_grad:
            raise NotOffered(
                "the model passes no gradients to its weights (no_grad, argmax or detach inside, or every weight "
                "of the factory's module frozen), so that none like it can be trained"
            )
        told = float(loss.detach())
        if math.isfinite(told):
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            if self.averaged:
                self._average(batch.number)
        return told

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
            score, self.ended = judge(self.module.eval())
            self.history[-1]["judged"] = score
            # of equals the later, which has seen more
            if score >= self.top:
                self.top, self.best, self.kept = score, self.epoch, copy.deepcopy(self.module.state_dict())
        if not self.ended and self.course.patience and self.epoch - self.best >= self.course.patience:
            self.ended = f"no better for {self.course.patience} epochs"

    def tensors(self) -> dict[str, Tensor]:
        """All that the next epoch depends on."""
        found = {f"module/{k}": v for k, v in self.module.state_dict().items()}
        found |= {f"averaged/{k}": v for k, v in self.averaged.items()} | {f"kept/{k}": v for k, v in self.kept.items()}
        for number, state in self.optimizer.state_dict()["state"].items():
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
        found = store.load() if store is not None else None
        if found is None or found[1].get("course") != asdict(self.course):
            return
        tensors, facts = found
        self.module.load_state_dict(_under("module/", tensors))
        self.averaged, self.kept = _under("averaged/", tensors), _under("kept/", tensors)
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer/", tensors).items():
            number, _, key = name.partition("/")
            state.setdefault(int(number), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        torch.set_rng_state(tensors["random"].cpu())
        if "random.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random.cuda"].cpu())
        self.epoch, self.best, self.ended = facts["epoch"], facts["best"], facts["ended"]
        self.top, self.history = -math.inf if facts["top"] is None else facts["top"], facts["history"]

    def finish(self) -> Trained:
        self.optimizer.zero_grad(set_to_none=True)
        state = self.kept or self.averaged
        self.module.load_state_dict(state, strict=False)
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
