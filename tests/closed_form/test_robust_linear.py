"""Min-max linear models against what can be worked out: all corners, conditions of optimality, adversarial training."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.defences.train.pgd import PGDTraining
from vauban.defences.train.robust_linear import RobustLinear
from vauban.engine.context import HouseContext
from vauban.parts.affine import Scale, affine
from vauban.parts.minmax import LOSSES, ROUNDED, Kind, MinMax
from vauban.parts.projections import L1, L2, Linf
from vauban.schema.errors import BadData, BadThreat, NotOffered
from vauban.targets.load import target as load
from vauban.targets.torch import TorchTarget

SPACES: dict[str, Any] = {"linf": Linf, "l2": L2, "l1": L1}


def rows(kind: Kind, outputs: int, n: int = 60, d: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(outputs + 10 * len(kind))
    x = torch.randn(n, d, generator=g, dtype=torch.float64) * torch.tensor([1.0, 0.3, 2.0, 0.05])[:d]
    scores = x @ torch.randn(d, max(outputs, 2), generator=g, dtype=torch.float64)
    scores = scores + 0.3 * torch.randn(n, max(outputs, 2), generator=g, dtype=torch.float64)
    return x, scores[:, 0] if kind == "values" else scores.argmax(1)


def extremes(space: str, radius: float, d: int) -> Tensor:
    """Corners of the ball; in l2, where there are none, many points of its surface."""
    if space == "linf":
        return radius * torch.tensor(list(itertools.product((-1.0, 1.0), repeat=d)), dtype=torch.float64)
    if space == "l1":
        return radius * torch.cat([torch.eye(d, dtype=torch.float64), -torch.eye(d, dtype=torch.float64)])
    points = torch.randn(200_000, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return radius * points / points.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("space", ["linf", "l1", "l2"])
@pytest.mark.parametrize(("kind", "outputs"), [("sigmoids", 1), ("softmax", 2), ("values", 1)])
def test_the_worst_case_is_that_of_all_corners(kind: Kind, outputs: int, space: str) -> None:
    x, y = rows(kind, outputs, n=5)
    weights, bias = torch.randn(outputs, 4, dtype=torch.float64), torch.randn(outputs, dtype=torch.float64)
    told = MinMax(kind=kind, space=space, radius=0.3, penalty=1.0).loss(weights, bias, x, y)
    still = MinMax(kind=kind, space=space, radius=0.0, penalty=1.0)
    moved = [still.loss(weights, bias, row + extremes(space, 0.3, 4), y[i].expand(len(extremes(space, 0.3, 4))))
             for i, row in enumerate(x)]  # fmt: skip
    worst = torch.stack([losses.max() for losses in moved])
    assert (told >= worst - 1e-12).all()
    assert torch.allclose(told, worst, atol=1e-12 if space != "l2" else 1e-2)


@pytest.mark.parametrize("kind", ["softmax", "sigmoids"])
def test_several_classes_are_bounded_and_their_margins_exact(kind: Kind) -> None:
    x, y = rows(kind, 3, n=8)
    weights, bias = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    how = MinMax(kind=kind, space="linf", radius=0.2, penalty=1.0)
    corners = extremes("linf", 0.2, 4)
    for row, label, told in zip(x, y, how.loss(weights, bias, x, y), strict=True):
        scores = (row + corners) @ weights.T + bias
        still = LOSSES[kind](MinMax(kind=kind, space="linf", radius=0.0, penalty=1.0), scores, weights,
                             label.expand(len(corners)), 0.0)  # fmt: skip
        assert told >= still.max() - 1e-12
        for other in range(3):
            margins = scores[:, label] - scores[:, other]
            least = (row @ (weights[label] - weights[other])) + bias[label] - bias[other]
            least = least - how.reach(weights[label] - weights[other], 0.0)
            assert torch.allclose(margins.min(), least, atol=1e-12)


@pytest.mark.parametrize("space", ["linf", "l2", "l1"])
def test_rounded_norms_lie_above_the_exact_ones_and_come_down_to_them(space: str) -> None:
    change = torch.randn(50, 6, dtype=torch.float64)
    exact = ROUNDED[space](change, 0.0)
    order = {"linf": 1, "l2": 2, "l1": torch.inf}[space]
    assert torch.allclose(exact, torch.linalg.vector_norm(change, order, dim=1))
    for round_ in (1e-1, 1e-3, 1e-6):
        above = ROUNDED[space](change, round_)
        assert (above >= exact - 1e-15).all()
        assert (above - exact).max() <= 6 * round_


def objective(how: MinMax, x: Tensor, y: Tensor, weights: Tensor, bias: Tensor) -> float:
    spread = (x - x.mean(0)).square().mean(0).sqrt()
    return float(how.loss(weights, bias, x, y).mean() + how.penalty / 2 * (weights * spread).square().sum())


@pytest.mark.parametrize(
    ("kind", "outputs", "space"),
    [("sigmoids", 1, "linf"), ("softmax", 3, "l2"), ("softmax", 2, "l1"), ("values", 1, "linf"), ("sigmoids", 3, "l1")],
)
def test_no_way_leads_down_from_the_solution(kind: Kind, outputs: int, space: str) -> None:
    """Convex: what no small step in any of many directions improves is the best."""
    x, y = rows(kind, outputs)
    how = MinMax(kind=kind, space=space, radius=0.1, penalty=1e-2)
    found = how.solve(x, y, outputs, biased=True)
    best = objective(how, x, y, found.weights, found.bias)
    assert best == pytest.approx(found.loss, rel=1e-9)
    spread = (x - x.mean(0)).square().mean(0).sqrt()
    g = torch.Generator().manual_seed(0)
    steps = torch.cat(
        [torch.eye(outputs * 5, dtype=torch.float64), torch.randn(200, outputs * 5, generator=g).double()]
    )
    for step, size in itertools.product(torch.cat([steps, -steps]), (1e-1, 1e-3)):
        step = size * step.reshape(outputs, 5)
        assert objective(how, x, y, found.weights + step[:, :4] / spread, found.bias + step[:, 4]) >= best - 2e-7


def test_the_gradient_is_zero_where_there_is_one() -> None:
    """In l2 the loss is smooth wherever the weights are not all 0."""
    x, y = rows("sigmoids", 1)
    how = MinMax(kind="sigmoids", space="l2", radius=0.1, penalty=1e-2)
    found = how.solve(x, y, 1, biased=True)
    weights, bias = found.weights.clone().requires_grad_(), found.bias.clone().requires_grad_()
    spread = (x - x.mean(0)).square().mean(0).sqrt()
    loss = how.loss(weights, bias, x, y).mean() + how.penalty / 2 * (weights * spread).square().sum()
    for slope in torch.autograd.grad(loss, (weights, bias)):
        assert slope.abs().max() < 1e-6


def test_the_conditions_of_optimality_hold_in_linf() -> None:
    """Of r |w|, whose slope at 0 is anything between -r and r: features that do not earn their keep are at 0."""
    x, y = rows("sigmoids", 1, n=200)
    x = torch.cat([x, torch.randn(200, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)], 1)
    how = MinMax(kind="sigmoids", space="linf", radius=0.1, penalty=1e-3)
    found = how.solve(x, y, 1, biased=True)
    w, spread = found.weights[0], (x - x.mean(0)).square().mean(0).sqrt()
    sign = torch.where(y == 1, 1.0, -1.0).double()
    margin = sign * (x @ w + found.bias) - 0.1 * w.abs().sum()
    weight = torch.sigmoid(-margin) / len(x)
    slope = -(weight * sign) @ x + 1e-3 * w * spread.square()  # without the attacker
    force = 0.1 * weight.sum()
    used = w.abs() > 1e-4
    assert used.any()
    assert not used.all()
    assert torch.allclose(slope[used], -force * w[used].sign(), atol=1e-5)
    assert (slope[~used].abs() <= force + 1e-5).all()
    assert abs(float((weight * sign).sum())) < 1e-5


def scene(space: str = "linf", radius: float = 0.1) -> HouseContext:
    return HouseContext(radius, SPACES[space]())


@pytest.mark.parametrize(("outputs", "space"), [(1, "linf"), (2, "l2"), (3, "l1")])
def test_adversarial_training_of_the_same_model_is_never_better(outputs: int, space: str) -> None:
    x, y = rows("sigmoids" if outputs == 1 else "softmax", outputs)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Linear(4, outputs, dtype=torch.float64)
    target = TorchTarget(net, "m", Domain(task="classification", classes=max(outputs, 2)), "logits")
    data, context = Data(x, y, x, y), scene(space)
    best = RobustLinear(penalty=1e-6)(target, data, Rng(0), context).target.module  # type: ignore[attr-defined]
    other = PGDTraining(epochs=10, rate=0.1)(target, data, Rng(0), context).target.module  # type: ignore[attr-defined]
    kind: Kind = "sigmoids" if outputs == 1 else "softmax"
    how = MinMax(kind=kind, space=space, radius=0.1, penalty=1e-6)
    with torch.no_grad():
        ours, theirs, first = (float(how.loss(m.weight, m.bias, x, y).mean()) for m in (best, other, net))
    assert ours <= theirs + 1e-4
    assert ours < 0.9 * first


@pytest.mark.parametrize("scaler", [StandardScaler(), MinMaxScaler(), make_pipeline(MinMaxScaler(), StandardScaler())])
def test_scalers_in_front_change_nothing(scaler: Any) -> None:
    """The threat is in the data's own units: behind whatever scaler, the same function comes out."""
    x, y = (part.numpy() for part in rows("softmax", 2))
    bare = load(LogisticRegression().fit(x, y))
    scaled = load(
        make_pipeline(*getattr(scaler, "named_steps", {"s": scaler}).values(), LogisticRegression()).fit(x, y)
    )
    data = Data(x, y, x, y)
    made = [RobustLinear()(target, data, Rng(0), scene()).target for target in (bare, scaled)]
    first, second = (m.forward(torch.from_numpy(x)).values for m in made)
    assert torch.allclose(first, second, atol=1e-5)
    assert not torch.allclose(first, bare.forward(torch.from_numpy(x)).values, atol=1e-2)


def test_folding_respects_shift_and_width() -> None:
    module = nn.Sequential(nn.Flatten(), Scale([1.0, 2.0], [2.0, 4.0]), Scale([0.5, 0.0], [0.1, 3.0]), nn.Linear(2, 3))
    module = module.double()
    found = affine(module)
    assert found is not None
    weights, bias = found.folded()
    x = torch.randn(9, 2, dtype=torch.float64)
    assert np.allclose(x.numpy() @ weights.T + bias, module(x).detach().numpy(), atol=1e-12)
    assert affine(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))) is None
    assert affine(nn.Sequential(Scale(0.0, 1.0, 0.0, 1.0), nn.Linear(2, 2))) is None


@pytest.mark.parametrize("estimator", [LinearSVC(), SGDClassifier(loss="log_loss", random_state=0), Ridge()])
def test_models_of_other_losses_are_trained_too(estimator: Any) -> None:
    kind: Kind = "values" if isinstance(estimator, Ridge) else "softmax"
    x, y = (part.numpy() for part in rows(kind, 1 if kind == "values" else 3))
    target = load(estimator.fit(x, y))
    hardened = RobustLinear()(target, Data(x, y, x, y), Rng(0), scene(radius=0.05))
    answers = hardened.target.forward(torch.from_numpy(x))
    error = float((answers.labels.detach() - torch.from_numpy(y)).double().square().mean())
    assert error < (float(y.var()) if kind == "values" else 0.3)


def test_what_it_is_not_made_for_is_told() -> None:
    x, y = rows("softmax", 3)
    deep = TorchTarget(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), "deep", Domain(classes=3), "logits")
    flat = TorchTarget(nn.Linear(4, 3), "flat", Domain(task="classification", classes=3), "logits")
    with pytest.raises(NotOffered, match="is made for linear models, and deep is none"):
        RobustLinear()(deep, Data(x, y, x, y), Rng(0), scene())
    with pytest.raises(BadThreat, match="none was given"):
        RobustLinear()(flat, Data(x, y, x, y), Rng(0), HouseContext(None, None))
    with pytest.raises(BadData, match="not among the model's 3 classes"):
        RobustLinear()(flat, Data(x, y + 1, x, y), Rng(0), scene())
