"""Input diversity, the blurring kernel, and what a run of the momentum family does with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.attacks.catalog import ATTACKS
from vauban.attacks.evasion.momentum import blurred, levelled, resized, sides
from vauban.core.attack import EvasionScene
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.engine.oracle import MeteredOracle
from vauban.parts.goals import Misclassify
from vauban.parts.projections import SPACES
from vauban.targets.torch import TorchTarget

FAMILY = {"evasion.mi_fgsm": {}, "evasion.ni_si": {"copies": 2}, "evasion.vmi": {"neighbours": 2}}
SHAPES = {"vector": (12,), "series": (2, 20), "picture": (3, 21, 17)}


def draw(shape: tuple[int, ...], rows: int = 6, seed: int = 0) -> Tensor:
    return torch.rand(rows, *shape, generator=torch.Generator().manual_seed(seed))


def net(shape: tuple[int, ...]) -> TorchTarget:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        size = int(torch.Size(shape).numel())
        module = nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.Tanh(), nn.Linear(16, 4))
    return TorchTarget(module.eval(), domain=Domain(task="classification"), output="logits")


def run(
    id: str, target: TorchTarget, x: Tensor, y: Tensor, radius: float, rows: list[int] | None = None, **settings: Any
) -> tuple[Tensor, MeteredOracle]:
    at = torch.arange(len(x)) if rows is None else torch.tensor(rows)
    ball = SPACES["linf"](0.0, 1.0)
    oracle = MeteredOracle(target, Misclassify(y[at]), ball, x[at], radius)
    oracle.begin()
    made = ATTACKS.load(id)(**{"steps": 4, **FAMILY[id], **settings})
    return made(EvasionScene(oracle, x[at], ball, radius, 4), Rng(0, at.numpy())).x, oracle


@pytest.mark.parametrize("shape", ["series", "picture"])
@pytest.mark.parametrize("id", sorted(FAMILY))
def test_a_row_is_the_same_alone_and_among_others_with_diversity_and_kernel(id: str, shape: str) -> None:
    x, target = draw(SHAPES[shape]), net(SHAPES[shape])
    with torch.no_grad():
        y = target.forward(x).labels
    whole, oracle = run(id, target, x, y, 0.02, diversity=0.7, kernel=3)
    assert not torch.equal(whole, x)
    for rows in ([0], [3], [1, 4, 5]):
        part, asked = run(id, target, x, y, 0.02, rows, diversity=0.7, kernel=3)
        assert torch.equal(part, whole[rows])
        assert asked.spent.queries.tolist() == oracle.spent.queries[rows].tolist()


@pytest.mark.parametrize("id", sorted(FAMILY))
def test_the_best_attempt_is_within_the_radius_though_others_were_looked_at(id: str) -> None:
    """Shrunk, paler and neighbouring points lie outside, and some of them fool the model."""
    x, target = draw((3, 21, 17)), net((3, 21, 17))
    with torch.no_grad():
        y = target.forward(x).labels
    found, oracle = run(id, target, x, y, 1e-3, diversity=1.0)
    assert not bool(oracle.best.reached.any())
    assert float((found - x).abs().max()) <= 1e-3 * (1 + 1e-5)


@pytest.mark.parametrize("id", sorted(FAMILY))
def test_vectors_are_not_transformed(id: str) -> None:
    x, target = draw((12,)), net((12,))
    with torch.no_grad():
        y = target.forward(x).labels
    plain, before = run(id, target, x, y, 0.01)
    with_all, after = run(id, target, x, y, 0.01, diversity=1.0, kernel=5)
    assert torch.equal(plain, with_all)
    assert torch.equal(before.spent.queries, after.spent.queries)


class Flat(nn.Module):
    """Inputs whose first feature is 0 are told apart by nothing; the others by their sum."""

    def forward(self, x: Tensor) -> Tensor:
        rise = torch.relu(x[:, 0]) * x.sum(1)
        return torch.stack([torch.full_like(rise, 0.5), rise], 1)


@pytest.mark.parametrize("space", ["linf", "l2"])
@pytest.mark.parametrize("id", sorted(FAMILY))
def test_a_row_without_a_gradient_stays_finite_beside_one_that_has_one(id: str, space: str) -> None:
    target = TorchTarget(Flat(), domain=Domain(task="classification"), output="logits")
    x, y = torch.tensor([[-0.9, 0.1, 0.1], [0.5, 0.2, 0.1]]), torch.tensor([0, 0])
    ball = SPACES[space](-1.0, 1.0)
    asked: list[Tensor] = []
    target.module.register_forward_pre_hook(lambda _module, inputs: asked.append(inputs[0].detach().clone()))
    oracle = MeteredOracle(target, Misclassify(y), ball, x, 0.05)
    oracle.begin()
    found = ATTACKS.load(id)(**FAMILY[id])(EvasionScene(oracle, x, ball, 0.05, 2), Rng(0, 2)).x
    assert bool(torch.cat(asked).isfinite().all())
    assert torch.equal(found[0], x[0])
    assert bool((found[1] > x[1]).all())


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1.0, 1e30])
def test_levelled_rows_have_magnitude_one_whatever_they_had(scale: float) -> None:
    slope = torch.tensor([[3.0, -1.0], [0.0, 0.0]]) * scale
    assert torch.allclose(levelled(slope), torch.tensor([[1.5, -0.5], [0.0, 0.0]]), rtol=1e-3)


@pytest.mark.parametrize("shape", ["series", "picture"])
def test_the_way_back_is_the_transpose_of_the_way_there(shape: str) -> None:
    x, other = draw(SHAPES[shape]).double(), draw(SHAPES[shape], seed=1).double()
    there, back = resized(x, 1.0, Rng(0, len(x)), torch.arange(len(x)))
    assert bool(((there * other).flatten(1).sum(1) - (x * back(other)).flatten(1).sum(1)).abs().max() < 1e-9)


def test_resized_rows_are_what_interpolation_gives_on_zeros_and_the_rest_are_as_they_were() -> None:
    x = draw((3, 21, 17), rows=40) + 0.1
    there, _ = resized(x, 0.5, Rng(0, 40), torch.arange(40))
    same = (there == x).flatten(1).all(1)
    shrunk = 0
    for row in range(40):
        rows, columns = (there[row] != 0).any(0).any(1).nonzero(), (there[row] != 0).any(0).any(0).nonzero()
        top, left = int(rows.min()), int(columns.min())
        high, wide = int(rows.max()) - top + 1, int(columns.max()) - left + 1
        small = F.interpolate(x[row : row + 1], (high, wide), mode="bilinear", align_corners=False)[0]
        assert torch.allclose(there[row, :, top : top + high, left : left + wide], small, atol=1e-5)
        assert bool(same[row]) == (high == 21 and wide == 17)
        assert high >= int(0.9 * 21)
        assert wide >= int(0.9 * 17)
        shrunk += high < 21
    assert 8 <= shrunk <= 32


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_blurring_is_the_separable_gaussian_convolution(kernel: int) -> None:
    slope = draw((3, 21, 17))
    bell = torch.exp(-0.5 * torch.linspace(-3, 3, kernel).square()) if kernel > 1 else torch.ones(1)
    window = torch.outer(bell, bell) / bell.sum().square()
    truth = F.conv2d(slope, window.expand(3, 1, kernel, kernel), padding=kernel // 2, groups=3)
    assert torch.allclose(blurred(slope, kernel), truth, atol=1e-5)


def test_spatial_sides() -> None:
    assert [sides(torch.zeros(2, *shape)) for shape in SHAPES.values()] == [(), (2,), (2, 3)]


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel must be odd"):
        ATTACKS.load("evasion.mi_fgsm")(kernel=4)
