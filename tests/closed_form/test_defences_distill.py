"""Robust distillation: its loss written out, its teacher, and how it goes on after an interruption."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from stages import Memory
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.crew import ALONE
from vauban.core.data import Data
from vauban.core.registry import configure
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.defences.distill.robust import SOFT, RobustDistillation
from vauban.defences.train.course import Drill
from vauban.parts.projections import Linf
from vauban.parts.training import Batch
from vauban.schema.errors import BadOption
from vauban.targets.torch import TorchTarget

N, D, EPS = 40, 5, 0.2


class Kept(Memory):
    """Remembers, too, which parts it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        super().save(tensors, facts)
        self.parts.append(",".join(facts))


@dataclass
class Context:
    radius: float | None = EPS
    space: Any = field(default_factory=lambda: Linf(0.0, 1.0))
    store: Any = None
    stop: int = -1
    told: list[str] = field(default_factory=list)
    crew: Any = ALONE
    diary: Any = None

    def attack(self, id: str, **settings: Any) -> Any:
        raise AssertionError

    def progress(self, done: int, total: int, text: str = "") -> None:
        self.told.append(text)
        if len(self.told) == self.stop:
            raise KeyboardInterrupt


def data() -> Data:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 2
    x = (0.5 * torch.rand(N, D, generator=g) + 0.3 * y[:, None]).clamp(0, 1)
    return Data(x, y, x, y)


def target(seed: int = 0) -> TorchTarget:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, 2))
    return TorchTarget(module, "m", Domain(task="classification", classes=2, low=0.0, high=1.0), "logits")


def test_the_loss_is_the_divergence_from_the_teacher_clean_and_at_the_worst_inputs() -> None:
    student, known = target(), data()
    soft = torch.rand(N, 2, generator=torch.Generator().manual_seed(3)).softmax(1)
    how = RobustDistillation(share=0.7, steps=4, ramp=0.0)
    batch = Batch(known.x_train, known.y_train, torch.arange(N))
    drill = Drill(how, student, Linf(0.0, 1.0), EPS, Rng(0, N), {SOFT: soft})
    loss = drill.step(student.module, batch)

    def apart(z: Tensor) -> Tensor:
        return F.kl_div(student.module(z).log_softmax(1), soft, reduction="none").sum(1)

    # the same search, written out: from the same random points, by signs of the slope of the divergence
    z = Linf(0.0, 1.0).sample(known.x_train, EPS, Rng(0, N).child("step", 0), torch.arange(N))
    for _ in range(4):
        leaf = z.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(apart(leaf).sum(), leaf)
        z = z + 2.5 * EPS / 4 * slope.sign()
        z = z.maximum(known.x_train - EPS).minimum(known.x_train + EPS).clamp(0, 1)
    written = (0.7 * apart(z) + 0.3 * apart(known.x_train)).mean()
    assert loss.item() == pytest.approx(written.item(), rel=1e-4)


def test_a_given_teacher_is_learnt_from_and_left_as_it_was() -> None:
    teacher = target(7).module.train()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    how = RobustDistillation(teacher=teacher, epochs=150, steps=2, rate=2e-2, batch_size=40, ramp=0.0)
    made = how(target(), data(), Rng(0), Context(radius=1e-3))
    with torch.no_grad():
        mine, theirs = made.target.forward(data().x_test).values.softmax(1), teacher(data().x_test).softmax(1)
    assert float((mine - theirs).abs().max()) < 0.05
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(part.training for part in teacher.modules())
    assert made.facts["teacher"] == "a module"


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_it_goes_on_in_either_part(stop: int) -> None:
    """Two epochs of the teacher, then two of the student."""
    how = RobustDistillation(epochs=2, teaching=2, steps=2)
    whole = how(target(), data(), Rng(0), Context()).target
    store = Kept()
    with pytest.raises(KeyboardInterrupt):
        how(target(), data(), Rng(0), Context(store=store, stop=stop))
    again = Context(store=store)
    assert how(target(), data(), Rng(0), again).target.sha256() == whole.sha256()
    assert len(again.told) == 4 - stop
    assert store.parts[-1] == "teacher,student"


def test_settings_that_make_no_sense_are_refused() -> None:
    for settings in ({"share": 0.0}, {"teaching": 0}, {"teacher": "evasion.pgd"}, {"teacher": 3}):
        with pytest.raises(BadOption, match=r"distill\.robust cannot take these settings"):
            configure(RobustDistillation, settings)
