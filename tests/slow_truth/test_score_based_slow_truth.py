"""Parts of the attacks that see scores alone, against slow and obvious ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.fft import idct

from vauban.attacks.evasion.sign_hunter import SignHunter, parts
from vauban.attacks.evasion.simba import SimBA
from vauban.attacks.evasion.zoo import _adam
from vauban.core.attack import EvasionScene
from vauban.core.rng import Rng
from vauban.core.target import Domain, Outputs
from vauban.engine.oracle import MeteredOracle
from vauban.parts.estimators import two_point
from vauban.parts.goals import Misclassify
from vauban.parts.projections import SPACES
from vauban.parts.search import cosines
from vauban.schema.access import EVERYTHING


def test_the_expectation_of_spsa_is_the_gradient_of_a_linear_function() -> None:
    """All sign vectors once: the mean over them is the expectation."""
    g = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=6)), dtype=torch.float64)
    away = 0.3 * signs.expand(2, -1, -1)
    answers = (away @ g[:, :, None])[..., 0] + 5.0
    assert torch.allclose(two_point(answers, 5.0 * 2 - answers, away, 0.3), g, atol=1e-12)


def test_the_expectation_of_nes_is_the_gradient_of_a_linear_function() -> None:
    """Many normal directions: within five standard errors, which shrink with the root of their number."""
    g = torch.tensor([[3.0, -1.0, 0.5, 0.0]], dtype=torch.float64)
    count = 40_000
    away = 0.1 * Rng(0, 1).normal(torch.arange(1), (count, 4)).double()
    answers = (away @ g[:, :, None])[..., 0]
    error = (two_point(answers, -answers, away, 0.1) - g).abs()
    # the variance of (g u) u_i over normal u is |g|^2 + g_i^2
    spread = ((g.square().sum() + g.square()) / count).sqrt()
    assert bool((error < 5 * spread).all())
    assert bool((error > 0).any())


@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_cosines_are_the_inverse_transform_of_unit_vectors(length: int) -> None:
    assert np.allclose(cosines(length).numpy(), idct(np.eye(length), norm="ortho", axis=1), atol=1e-12)


def test_zoo_moves_as_adam_does() -> None:
    g = torch.Generator().manual_seed(1)
    leaf = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([leaf], lr=0.1, maximize=True)
    mean, square, seen = (torch.zeros(3, 4, dtype=torch.float64) for _ in range(3))
    ours = torch.zeros(3, 4, dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1]).expand(3, -1)
    for _ in range(5):
        slope = torch.randn(3, 4, generator=g, dtype=torch.float64)
        leaf.grad = slope
        adam.step()
        ours = ours.scatter_add(1, order, 0.1 * _adam(mean, square, seen, order, slope.gather(1, order), False))
        assert torch.allclose(ours, leaf.detach(), atol=1e-9)


def test_parts_halve_down_to_single_features() -> None:
    assert parts(1) == [(0, 1)]
    assert parts(4) == [(0, 4), (0, 2), (2, 4), (0, 1), (1, 2), (2, 3), (3, 4)]
    for count in (3, 6, 13):
        found = parts(count)
        assert len(set(found)) == len(found)
        assert {(k, k + 1) for k in range(count)} <= set(found)
        assert found[0] == (0, count)


class Bowl:
    """A small smooth classifier."""

    id, domain, offers, recipe = "bowl", Domain(task="classification", classes=3), EVERYTHING, None

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(5)
        self.first, self.second = torch.randn(6, 8, generator=g), torch.randn(8, 3, generator=g) * 3

    def forward(self, x: torch.Tensor) -> Outputs:
        return Outputs(torch.tanh(x.flatten(1) @ self.first) @ self.second, "logits")

    def sha256(self) -> str:
        return "bowl"

    def settled(self, domain: Domain) -> Bowl:
        return self


def run(made: SimBA | SignHunter, radius: float) -> tuple[MeteredOracle, torch.Tensor, torch.Tensor, Bowl]:
    target = Bowl()
    x = torch.rand(5, 6, generator=torch.Generator().manual_seed(2))
    y = target.forward(x).labels
    oracle = MeteredOracle(target, Misclassify(y), SPACES["linf"](0.0, 1.0), x, radius)
    oracle.begin()
    made(EvasionScene(oracle, x, SPACES["linf"](0.0, 1.0), radius, 3), Rng(0, len(x)))
    return oracle, x, y, target


def judge(target: Bowl, z: torch.Tensor, label: int) -> float:
    answer = target.forward(z[None]).values[0].tolist()
    return max(v for k, v in enumerate(answer) if k != label) - answer[label]


def test_simba_is_what_a_loop_over_features_does() -> None:
    """One time through all features, there and back, feature by feature."""
    radius = 0.02
    oracle, x, y, target = run(SimBA(queries=14, step=2.0), radius)
    space = SPACES["linf"](0.0, 1.0)
    for i in range(len(x)):
        order = Rng(0, [i]).child("simba", 0).uniform(torch.arange(1), (6,)).argsort(dim=1, stable=True)[0].tolist()
        z, asked = x[i].clone(), 1
        best = judge(target, z, int(y[i]))
        for place in order:
            for way in (1, -1):
                trial = z.clone()
                trial[place] += way * 2 * radius
                trial = space.project(trial[None], x[i : i + 1], radius)[0]
                asked += 1
                if judge(target, trial, int(y[i])) > best:
                    z, best = trial, judge(target, trial, int(y[i]))
                    break
        assert asked <= 13
        assert float(oracle.best.margin[i]) == pytest.approx(best, abs=1e-4)


def test_sign_hunter_ends_where_no_part_can_be_turned() -> None:
    """At the end no single part of the signs found does better turned round."""
    radius = 0.02
    oracle, x, y, target = run(SignHunter(queries=500), radius)
    project = SPACES["linf"](0.0, 1.0).within(x, radius)
    low, high = project(x - radius), project(x + radius)
    for i in range(len(x)):
        z = oracle.best.x[i]
        best = judge(target, z, int(y[i]))
        for start, stop in parts(6):
            trial = z.clone()
            trial[start:stop] = torch.where(z == high[i], low[i], high[i])[start:stop]
            assert judge(target, trial, int(y[i])) <= best + 1e-4
