"""What an attacker carries examples over from: substitutes of his own, learnt from a target's answers, asked together."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vauban.core.attack import EvasionScene
from vauban.core.rng import Rng, derive_seed
from vauban.core.target import OutputKind, Outputs
from vauban.parts.losses import log_probabilities
from vauban.parts.substitute import imitate, imitation, learnable, mixtures, network
from vauban.parts.training import fit
from vauban.schema.access import Access
from vauban.schema.errors import BadOption

NOISE = 0.02
"""Standard deviation of the noise on mixtures of inputs, as a share of each feature's range."""
HELD_OUT = 0.1
"""Share of the answers on which substitutes are measured and not trained."""
FEWEST = 50
"""Answers below which all are learnt from and nothing is measured."""


@dataclass(frozen=True)
class Lessons:
    """Inputs `[k, ...]` float32 and what the target said: probabilities `[k, c]`, classes `[k]`, or values `[k]` brought to
    mean 0 and variance 1 by `centre` and `spread`."""

    x: Tensor
    answers: Tensor
    outputs: int
    centre: float = 0.0
    spread: float = 1.0

    @property
    def taught(self) -> int:
        """How many of the first are learnt from; the rest measures."""
        return len(self.x) - round(HELD_OUT * len(self.x)) if len(self.x) >= FEWEST else len(self.x)


@dataclass(frozen=True)
class Ensemble:
    """Substitutes that answer together, by the mean of their logits (of their values in a regression).

    Each is a row of networks that take turns, one a look; a row of one is always the same.
    """

    members: tuple[tuple[nn.Module, ...], ...]
    kind: OutputKind
    centre: float = 0.0
    spread: float = 1.0

    def outputs(self, x: Tensor, turn: int) -> Outputs:
        """The mean answer to `x` `[m, ...]`, differentiable."""
        total = torch.stack([self.alone(member[turn % len(member)], x) for member in self.members]).mean(0)
        return self._read(total)

    def opinions(self, x: Tensor) -> list[Outputs]:
        """Each substitute's own answer; where several networks take turns, that of the last of them."""
        return [self._read(self.alone(member[-1], x)) for member in self.members]

    def alone(self, module: nn.Module, x: Tensor) -> Tensor:
        """What one network gives for `x`, in the type and on the device of `x`."""
        first = next(module.parameters(), None)
        answer: Tensor = module(x if first is None else x.to(first))
        return answer.to(x)

    def _read(self, raw: Tensor) -> Outputs:
        return Outputs(raw.reshape(len(raw)) * self.spread + self.centre if self.kind == "values" else raw, self.kind)


def box(space: Any, pool: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest inputs, float32 `[...]`; where the space is open, those of the pool."""
    low, high = (side.to(pool.device).expand(pool.shape[1:]) for side in (space.low, space.high))
    return torch.where(low.isfinite(), low, pool.amin(0)), torch.where(high.isfinite(), high, pool.amax(0))


def payers(left: Tensor, most: int) -> Tensor:
    """Whose budget each question is charged to, `[k]` positions in `left` `[m]`: in turns, no more than is left, `most` in all."""
    turns = bisect_left(range(most), most, key=lambda turn: int(left.clamp_max(turn).sum()))
    turn = torch.arange(min(turns, int(left.max()) if len(left) else 0), device=left.device)
    return (turn[:, None] < left).nonzero()[:most, 1]


def lessons(scene: EvasionScene, charged: Tensor, rng: Rng) -> Lessons:
    """Ask the target about inputs of the same kind, each at the cost of one of the rows `charged` `[k]`.

    Inputs are the donors in random order, the inputs to be attacked where there are none, and then mixtures of them.
    """
    pool = scene.donors if scene.donors is not None and len(scene.donors) else scene.x
    pool = pool.to(scene.x.device, torch.float32)
    generator = rng.torch("lessons", device=pool.device)
    order = torch.randperm(len(pool), generator=generator, device=pool.device)
    x = pool[order[: len(charged)]]
    if len(x) < len(charged):
        x = torch.cat([x, mixtures(pool, len(charged) - len(x), *box(scene.space, pool), NOISE, generator)])
    if scene.classes is None:
        values = scene.oracle.labels(x.to(scene.x), charged).to(torch.float32)
        centre, spread = float(values.mean()), max(float(values.std(correction=0)), 1e-12)
        return Lessons(x, (values - centre) / spread, 1, centre, spread)
    if Access.SCORES not in scene.oracle.grants:
        return Lessons(x, scene.oracle.labels(x.to(scene.x), charged), scene.classes)
    logs = scene.oracle.values(lambda outputs, _: log_probabilities(outputs), x.to(scene.x), charged)
    return Lessons(x, logs.exp().to(torch.float32), scene.classes)


def trained(scene: EvasionScene, taught: Lessons, members: int, steps: int, rng: Rng) -> list[nn.Module]:
    """Substitutes of different architectures and beginnings, trained on the lessons for about `steps` batches of 64."""
    low, high = box(scene.space, taught.x)
    count = taught.taught
    made = []
    for number in range(members):
        seed = derive_seed(rng.seed, "substitute", number)
        module = network(tuple(scene.x.shape[1:]), taught.outputs, low, high, seed, number).to(scene.x.device)
        made.append(imitate(module, taught.x[:count], taught.answers[:count], seed=seed, steps=steps))
    return made


def wandered(module: nn.Module, taught: Lessons, count: int, rate: float, seed: int) -> tuple[nn.Module, ...]:
    """`count` networks on the way of a trained one under plain descent at a constant rate, one an epoch (LGV)."""
    x, answers = taught.x[: taught.taught], taught.answers[: taught.taught]
    found: list[nn.Module] = []

    def collect(epoch: int, epochs: int) -> None:
        found.append(copy.deepcopy(walker).eval().requires_grad_(False))

    walker = copy.deepcopy(module)
    step, y = imitation(answers), learnable(answers)
    fit(walker, x, y, seed=seed, epochs=count, rate=rate, optimiser="sgd", step=step, progress=collect)
    return tuple(found)


def agreement(ensemble: Ensemble, taught: Lessons) -> float | None:
    """Share of the answers held out that the ensemble gives as well (1 - unexplained variance in a regression)."""
    x, answers = taught.x[taught.taught :], taught.answers[taught.taught :]
    if not len(x):
        return None
    with torch.no_grad():
        said = ensemble.outputs(x, 0)
    if said.kind == "values":
        wanted = answers * taught.spread + taught.centre
        return 1 - float((said.values - wanted).square().mean()) / max(taught.spread**2, 1e-24)
    wanted = answers.argmax(1) if answers.dim() > 1 else answers
    return float((said.labels == wanted).to(torch.float64).mean())


def ready(modules: Sequence[nn.Module], scene: EvasionScene) -> Ensemble:
    """An ensemble of modules that somebody brings along; copies, so that they are left as they are.

    Raises BadOption where one does not give as many scores as there are classes, or has no slope.
    """
    kind: OutputKind = "values" if scene.classes is None else "logits"
    made = Ensemble(tuple((copy.deepcopy(module).eval().requires_grad_(False),) for module in modules), kind)
    width = scene.classes or 1
    for number, (module,) in enumerate(made.members):
        leaf = scene.x[:1].detach().requires_grad_(True)
        with torch.enable_grad():
            answer = made.alone(module, leaf)
        if answer.numel() != width or not answer.requires_grad:
            raise BadOption(
                f"Number {number} of the substitutes gives {answer.numel()} scores for an input, "
                f"{'with' if answer.requires_grad else 'without'} a slope to follow, and the target {width}: give torch modules that "
                "answer inputs in the data's own units with one differentiable score a class."
            )
    return made
