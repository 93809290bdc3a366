"""Restarts taken as one batch are the same runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vauban.attacks.evasion.apgd import APGD
from vauban.core.attack import EvasionScene
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.engine.oracle import MeteredOracle
from vauban.parts.goals import Misclassify
from vauban.parts.projections import SPACES
from vauban.targets.torch import TorchTarget

RADIUS, ROWS = 0.35, 60


def _model() -> tuple[TorchTarget, Tensor, Tensor]:
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)).eval()
    x = torch.randn(ROWS, 6)
    domain = Domain(kind="tabular", task="classification", classes=4)
    return TorchTarget(module=net, domain=domain), x, net(x).argmax(1).detach()


def _run(rows: Tensor, **settings: object) -> MeteredOracle:
    target, x, y = _model()
    x, y, space = x[rows], y[rows], SPACES["linf"]()
    oracle = MeteredOracle(target, Misclassify(y), space, x, RADIUS)
    oracle.begin()
    APGD(steps=12, **settings)(EvasionScene(oracle, x, space, RADIUS, 4), Rng(0, rows.numpy()))  # type: ignore[arg-type]
    return oracle


def test_at_once_and_one_by_one_break_the_same_samples() -> None:
    every = torch.arange(ROWS)
    apart = _run(every, restarts=4, finish=0.0)
    whole = _run(every, restarts=4, finish=0.0, at_once=True)
    assert 0 < int(whole.best.reached.sum()) < ROWS
    assert torch.equal(apart.best.reached, whole.best.reached)
    held = ~whole.best.reached
    assert torch.equal(apart.spent.gradients[held], whole.spent.gradients[held])
    assert int(whole.spent.gradients.max()) <= APGD(steps=12, restarts=4).price(4).gradients


def test_at_once_a_sample_does_not_depend_on_its_neighbours() -> None:
    every = torch.arange(ROWS)
    whole = _run(every, restarts=3, at_once=True).best.x
    parts = [_run(rows, restarts=3, at_once=True).best.x for rows in every.split(7)]
    assert torch.equal(whole, torch.cat(parts))
