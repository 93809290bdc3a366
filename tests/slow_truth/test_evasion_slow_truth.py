"""The fast paths against slow, obvious ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from vauban.attacks.evasion.pgd import PGD
from vauban.attacks.evasion.square import Square
from vauban.attacks.evasion.square_moves import MOVES
from vauban.core.attack import EvasionScene
from vauban.core.rng import Rng
from vauban.core.target import Domain, Outputs
from vauban.engine.oracle import MeteredOracle
from vauban.parts.goals import Misclassify
from vauban.parts.projections import SPACES
from vauban.parts.schedules import square_share
from vauban.parts.search import Grid
from vauban.schema.access import EVERYTHING


@dataclass(frozen=True, eq=False)
class Curved:
    """A small smooth classifier."""

    first: torch.Tensor
    second: torch.Tensor
    id: str = "curved"
    domain: Domain = Domain(task="classification", classes=3)  # noqa: RUF009
    offers: Any = EVERYTHING
    recipe: None = None

    def forward(self, x: torch.Tensor) -> Outputs:
        return Outputs(torch.tanh(x.flatten(1) @ self.first) @ self.second, "logits")

    def sha256(self) -> str:
        return "curved"

    def settled(self, domain: Domain) -> Curved:
        return self


def made(n: int = 6, shape: tuple[int, ...] = (12,)) -> tuple[Curved, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    d = int(np.prod(shape))
    target = Curved(torch.randn(d, 8, generator=g), torch.randn(8, 3, generator=g) * 3)
    x = torch.rand(n, *shape, generator=g)
    return target, x, target.forward(x).labels


@pytest.mark.parametrize("name", ["linf", "l2", "l1"])
@pytest.mark.parametrize("seed", range(4))
def test_projection_against_a_general_solver(name: str, seed: int) -> None:
    g = np.random.default_rng(seed)
    d, radius = 4, 0.8
    x, z = g.uniform(0.2, 0.8, d), g.uniform(-1.5, 2.5, d)
    w = SPACES[name](0.0, 1.0).project(torch.tensor(z[None]).float(), torch.tensor(x[None]).float(), radius)[0].double()
    # change = up - down with up, down >= 0 makes every norm smooth
    bounds = [(0.0, 1.0 - a) for a in x] + [(0.0, a) for a in x]
    size = {
        "linf": lambda v: radius - (v[:d] + v[d:]),
        "l2": lambda v: radius**2 - ((v[:d] - v[d:]) ** 2).sum(),
        "l1": lambda v: radius - v.sum(),
    }[name]
    found = minimize(
        lambda v: ((x + v[:d] - v[d:] - z) ** 2).sum(),
        np.full(2 * d, 0.01),
        bounds=bounds,
        constraints=[{"type": "ineq", "fun": size}],
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    truth = x + found.x[:d] - found.x[d:]
    assert np.abs(w.numpy() - truth).max() < 2e-3
    assert ((w.numpy() - z) ** 2).sum() <= found.fun + 1e-4


@pytest.mark.parametrize("name", ["linf", "l2", "l1"])
def test_pgd_against_a_loop_over_samples(name: str) -> None:
    target, x, y = made()
    radius = {"linf": 0.02, "l2": 0.08, "l1": 0.2}[name]
    space, attack = SPACES[name](0.0, 1.0), PGD(steps=5, loss="ce")
    oracle = MeteredOracle(target, Misclassify(y), space, x, radius)
    oracle.begin()
    attack(EvasionScene(oracle, x, space, radius, 3), Rng(0, len(x)))
    for i in range(len(x)):
        clean = x[i : i + 1]
        z = space.sample(clean, radius, Rng(0, [i]).child("pgd", 0), torch.arange(1))
        margins, points = [float(Misclassify(y[i : i + 1]).margin(target.forward(clean), torch.arange(1)))], [clean]
        for step in range(6):
            leaf = z.clone().requires_grad_(True)
            logits = target.forward(leaf).values
            (g,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, y[i : i + 1]), leaf)
            scores = logits.detach()[0].tolist()
            margins.append(max(s for k, s in enumerate(scores) if k != int(y[i])) - scores[int(y[i])])
            points.append(z)
            if margins[-1] > 0 or step == 5:
                break
            share = 4 / 5 * 2 * (5 - step) / 6
            z = space.project(z + space.steepest(g, z, radius * share), clean, radius)
        best = int(np.argmax(margins))
        assert int(oracle.spent.queries[i]) == len(margins)
        assert float(oracle.best.margin[i]) == pytest.approx(margins[best], abs=1e-4)
        assert torch.allclose(oracle.best.x[i : i + 1], points[best], atol=1e-5)


@pytest.mark.parametrize("name", ["linf", "l2", "l1"])
def test_square_keeps_exactly_what_helps(name: str) -> None:
    """Replay every row alone with the same proposals, judging each by a fresh evaluation."""
    target, x, y = made(n=4, shape=(1, 4, 4))
    radius = {"linf": 0.01, "l2": 0.04, "l1": 0.1}[name]
    space, attack = SPACES[name](0.0, 1.0), Square(queries=60)
    goal = Misclassify(y)
    oracle = MeteredOracle(target, goal, space, x, radius)
    oracle.begin()
    attack(EvasionScene(oracle, x, space, radius, 3), Rng(0, len(x)))
    moves = MOVES[name](Grid.of(x.shape[1:]), radius)
    for i in range(len(x)):
        rng, one, clean = Rng(0, [i]).child("square", 0), torch.arange(1), x[i : i + 1]
        judge = lambda z: float(Misclassify(y[i : i + 1]).margin(target.forward(z), one))  # noqa: B023, E731
        z = space.project(moves.start(clean, rng, one), clean, radius)
        frame = moves.frame(clean, space.within(clean, radius))
        best, scale, seen = judge(z), torch.tensor([0.5]), [judge(clean), judge(z)]
        for step in range(1, 60):
            if max(seen) > 0:
                break
            trial = moves.step(z, clean, frame, square_share(0.8, step, 60), step, scale, rng, one)
            trial = space.project(trial, clean, radius)
            seen.append(judge(trial))
            better = seen[-1] > best
            if better:
                z, best = trial, seen[-1]
            if moves.refines(step):
                scale = scale * (1.5 if better else 1.5**-0.25)
        assert int(oracle.spent.queries[i]) == len(seen)
        assert float(oracle.best.margin[i]) == pytest.approx(max(seen), abs=1e-4)
