"""Two steps that go on from the epoch before find what seven from a random point find."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vauban.core.crew import ALONE
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.data.demo import digits
from vauban.defences.train.inner import worst_case
from vauban.defences.train.pgd import PGDTraining
from vauban.parts.projections import Linf
from vauban.parts.training import fit
from vauban.targets.torch import TorchTarget

RADIUS = 0.15


class Context:
    radius, space, store, crew, diary = RADIUS, Linf(0.0, 1.0), None, ALONE, None

    def attack(self, id: str, **settings: Any) -> Any:
        raise AssertionError

    def progress(self, done: int, total: int, text: str = "") -> None: ...


def held(target: Any) -> float:
    """Share of test rows that twenty steps leave."""
    data = digits()
    x, y = data.x_test, data.y_test
    z = worst_case(target.forward, x, y, Linf(0.0, 1.0), RADIUS, 20, Rng(1, len(x)), torch.arange(len(x)))
    with torch.no_grad():
        return float((target.forward(z).labels == y).double().mean())


@pytest.mark.slow
def test_few_steps_that_go_on_are_worth_many_that_begin_anew() -> None:
    torch.manual_seed(0)
    data = digits()
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    fit(net, data.x_train, data.y_train, seed=0, epochs=15, rate=2e-3)
    target = TorchTarget(net, "m", Domain(kind="image", task="classification", classes=10, low=0.0, high=1.0), "logits")
    found = {
        name: held(PGDTraining(epochs=40, **how)(target, data, Rng(0), Context()).target)  # type: ignore[arg-type]
        for name, how in {
            "seven": {"steps": 7}, "two, going on": {"steps": 2, "recall": True}, "one": {"steps": 1, "ramp": 0.0},
        }.items()
    }  # fmt: skip
    assert found["two, going on"] > found["seven"] - 0.05, found
    assert found["two, going on"] > held(target) + 0.2, found
