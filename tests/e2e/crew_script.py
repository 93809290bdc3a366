"""Run by `torchrun` in test_crew.py: what two processes train together is what one trains alone."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vauban.core.crew import ALONE, Crew
from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.defences.train.free import FreeTraining
from vauban.defences.train.pgd import PGDTraining
from vauban.integrations.accelerate import crew
from vauban.parts.projections import Linf
from vauban.parts.training import Batch, Course, Trained, plain_step, train
from vauban.targets.torch import TorchTarget

COURSE = Course(epochs=4, batch_size=12, rate=1e-2, schedule="cycle", average=0.9, patience=3, accumulate=2)


class Memory:
    kept: tuple[dict[str, Tensor], dict[str, Any]] | None = None

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        self.kept = {k: v.clone() for k, v in tensors.items()}, copy.deepcopy(dict(facts))

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return self.kept


@dataclass
class Context:
    crew: Crew
    radius: float = 0.1
    space: Any = None
    store: Any = None
    diary: Any = None

    def progress(self, done: int, total: int, text: str = "") -> None: ...


def rows() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.rand(51, 4, generator=g, dtype=torch.float64)
    return x, x[:, :3].argmax(1)


class Network(nn.Module):
    def __init__(self, noisy: bool) -> None:
        super().__init__()
        between: list[nn.Module] = [nn.BatchNorm1d(8), nn.Dropout(0.3)] if noisy else [nn.Tanh()]
        self.used = nn.Sequential(nn.Linear(4, 8), *between, nn.Linear(8, 3))
        self.unused = nn.Linear(8, 8)
        """Has no gradient: it must stay as it is."""

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.used(x)
        return answer


def network(noisy: bool, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Network(noisy).double()


def run(crew: Crew, noisy: bool, store: Memory | None = None, stop: float = float("inf")) -> Trained:
    x, y = rows()

    def step(module: nn.Module, batch: Batch) -> Tensor:
        if batch.number >= stop:
            raise KeyboardInterrupt
        return plain_step(module, batch)

    def judge(module: nn.Module) -> tuple[float, str]:
        assert crew.rank == 0, "the first process judges"
        with torch.no_grad():
            return float((module(x).argmax(1) == y).double().mean()), ""

    # other first weights in other processes: those of the first are used
    return train(network(noisy, crew.rank), x, y, step, COURSE, 7, judge=judge, store=store, crew=crew)


def hardened(method: Any, crew: Crew) -> dict[str, Tensor]:
    x, y = rows()
    target = TorchTarget(network(False), "m", Domain(task="classification", classes=3, low=0.0, high=1.0), "logits")
    made = method(target, Data(x.float(), y, x.float(), y), Rng(3), Context(crew, space=Linf(0.0, 1.0)))
    state: dict[str, Tensor] = made.target.module.state_dict()
    return state


def close(one: Mapping[str, Tensor], two: Mapping[str, Tensor], what: str, tolerance: float = 1e-7) -> None:
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=tolerance, atol=tolerance, msg=lambda m: f"{what}: {m}")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    together = crew()
    told: dict[str, Any] = {"size": together.size, "rank": together.rank}
    first = together.rank == 0
    plain = run(together, False)
    if first:
        alone = run(ALONE, False)
        close(alone.module.state_dict(), plain.module.state_dict(), "plain")
        assert (alone.best, alone.epochs, len(alone.history)) == (plain.best, plain.epochs, len(plain.history))
        for a, b in zip(alone.history, plain.history, strict=True):
            assert abs(a["loss"] - b["loss"]) < 1e-9
    for noisy in (False, True):
        whole, store = run(together, noisy), Memory()
        try:
            run(together, noisy, store, stop=11)  # in the third epoch
        except KeyboardInterrupt:
            told["stopped"] = store.kept[1]["epoch"] if store.kept else None
        resumed = run(together, noisy, store)
        close(whole.module.state_dict(), resumed.module.state_dict(), "resumed", 0)
        theirs = together.same(lambda: {k: v.clone() for k, v in whole.module.state_dict().items()})  # noqa: B023
        close(theirs, whole.module.state_dict(), "in all processes", 0)
    for method in (PGDTraining(epochs=2, batch_size=10, steps=3, validation=0.2), FreeTraining(epochs=4, replays=2)):
        state = hardened(method, together)
        if first:
            close(hardened(method, ALONE), state, method.card.id, 1e-6)
    (folder / f"{together.rank}.json").write_text(json.dumps(told))


main(Path(sys.argv[1]))
