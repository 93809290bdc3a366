"""Linear models: the nearest success is known, so every attack is held against it as a ratio."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from linear import Linear
from torch import Tensor

from vauban.attacks.catalog import ATTACKS
from vauban.attacks.evasion.feature import Feature
from vauban.core.attack import EvasionScene
from vauban.core.rng import Rng
from vauban.engine.oracle import MeteredOracle
from vauban.parts.goals import ClassAs, Misclassify, ReachValue, Shift
from vauban.parts.projections import SPACES

DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}
D, N = 16, 5


def general(classes: int, seed: int = 0) -> tuple[Linear, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    target = Linear(torch.randn(classes, D, generator=g), torch.zeros(classes))
    x = torch.randn(N, D, generator=g)
    return target, x, target.forward(x).labels


def even(classes: int = 10, seed: int = 0) -> tuple[Linear, Tensor, Tensor]:
    """All classes equally far apart in every norm, so that the largest other logit is the nearest class, too."""
    g = torch.Generator().manual_seed(seed)
    # blocks of the same magnitudes: differences of rows have the same L1, L2 and Linf norm
    w = torch.zeros(classes, 2 * classes)
    for c in range(classes):
        w[c, 2 * c : 2 * c + 2] = torch.tensor([6.0, -3.0])
    target = Linear(w, torch.zeros(classes))
    x = torch.randn(N, 2 * classes, generator=g)
    return target, x, target.forward(x).labels


def distances(target: Linear, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """To every class, `[n, classes]`: difference of logits over the dual norm of the difference of weights."""
    z = target.forward(x).values
    gap = z.gather(1, y[:, None]) - z
    size = torch.linalg.vector_norm(target.w[None] - target.w[y][:, None], ord=DUAL[norm], dim=2)
    return torch.where(size > 0, gap / size, torch.inf)


def scaled(target: Linear, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """Every row brought to distance 1 of its nearest other class: without offsets, distances grow with the input."""
    return x / distances(target, x, y, norm).amin(1, keepdim=True)


def attack(made: Any, target: Linear, goal: Any, space: Any, x: Tensor, radius: float, **scene: Any) -> MeteredOracle:
    """All rows at once."""
    oracle = MeteredOracle(target, goal, space, x, radius, nearest=radius == float("inf"))
    oracle.begin()
    made(EvasionScene(oracle, x, space, radius, target.w.shape[0], **scene), Rng(0, len(x)))
    return oracle


def hold(made: Any, target: Linear, goal: Any, norm: str, x: Tensor, nearest: float = 1.0, slack: float = 1.01) -> None:
    """No row can be broken at 0.99 of the nearest success; all are at `slack` times it."""
    for factor, wanted in ((0.99, False), (slack, True)):
        oracle = attack(made, target, goal, SPACES[norm](), x, nearest * factor)
        assert oracle.best.reached.tolist() == [wanted] * len(x), factor


WHITE = {
    "evasion.fgsm": {},
    "evasion.pgd": {},
    "evasion.apgd": {"steps": 60},
    "evasion.universal": {},
}


MODELS = {"binary": lambda: general(2), "ten": even}
WHITE_MODELS = {
    **MODELS,
    # at random distances the nearest class need not have the largest logit, and following the loss may end at another
    **{f"random{seed}": lambda seed=seed: general(10, seed) for seed in range(4)},
}


@pytest.mark.parametrize("norm", sorted(DUAL))
@pytest.mark.parametrize("model", sorted(WHITE_MODELS))
@pytest.mark.parametrize("id", sorted(WHITE))
def test_white_box_attacks_land_within_one_percent_of_the_optimum(id: str, model: str, norm: str) -> None:
    target, x, y = WHITE_MODELS[model]()
    x = scaled(target, x, y, norm)
    rows = torch.arange(N) if not ATTACKS.load(id).card.joint else (y == y[0]).nonzero().flatten()[:1]
    hold(ATTACKS.load(id)(**WHITE[id]), target, Misclassify(y[rows]), norm, x[rows])


@pytest.mark.parametrize("norm", sorted(DUAL))
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("id", ["evasion.fgsm", "evasion.pgd", "evasion.apgd"])
def test_every_loss_leads_there_with_two_classes(id: str, loss: str, norm: str) -> None:
    target, x, y = general(2)
    hold(ATTACKS.load(id)(loss=loss), target, Misclassify(y), norm, scaled(target, x, y, norm))


@pytest.mark.parametrize("norm", sorted(DUAL))
@pytest.mark.parametrize("classes", [3, 10])
@pytest.mark.parametrize("loss", ["dlr", "margin"])
def test_targeted_apgd_finds_the_nearest_of_any_classes(loss: str, classes: int, norm: str) -> None:
    target, x, y = general(classes)
    made = ATTACKS.load("evasion.apgd_targeted")(steps=60, loss=loss)
    hold(made, target, Misclassify(y), norm, scaled(target, x, y, norm))


@pytest.mark.parametrize("norm", sorted(DUAL))
@pytest.mark.parametrize("id", ["evasion.fgsm", "evasion.pgd", "evasion.apgd"])
def test_a_wanted_class_is_reached_at_its_own_distance(id: str, norm: str) -> None:
    """Two classes, so that the wanted class's distance is that to the boundary."""
    target, x, y = general(2, seed=1)
    hold(ATTACKS.load(id)(), target, ClassAs(1 - y), norm, scaled(target, x, y, norm))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("model", ["binary", "ten"])
def test_square_lands_within_five_percent(model: str, norm: str) -> None:
    target, x, y = {"binary": lambda: general(2), "ten": even}[model]()
    x = scaled(target, x, y, norm)
    made = ATTACKS.load("evasion.square")(queries=4000 if norm == "l2" else 1500)
    hold(made, target, Misclassify(y), norm, x, slack=1.05)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("model", sorted(MODELS))
def test_hop_skip_jump_comes_within_five_percent_of_the_nearest(model: str, norm: str) -> None:
    target, x, y = MODELS[model]()
    made = ATTACKS.load("evasion.hop_skip_jump")(queries=6000)
    oracle = attack(made, target, Misclassify(y), SPACES[norm](), scaled(target, x, y, norm), float("inf"))
    assert bool((oracle.best.distance >= 1 - 1e-5).all())
    assert bool((oracle.best.distance <= 1.05).all()), oracle.best.distance
    assert int(oracle.spent.queries.max()) <= 6001


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_hop_skip_jump_ends_once_within_the_radius(norm: str) -> None:
    target, x, y = general(2)
    x = scaled(target, x, y, norm)
    made = ATTACKS.load("evasion.hop_skip_jump")(queries=6000)
    assert not bool(attack(made, target, Misclassify(y), SPACES[norm](), x, 0.99).best.reached.any())
    oracle = attack(made, target, Misclassify(y), SPACES[norm](), x, 1.05)
    assert bool(oracle.best.reached.all())
    assert int(oracle.spent.queries.max()) < 5000


@pytest.mark.parametrize("norm", sorted(DUAL))
def test_noise_succeeds_only_where_something_can(norm: str) -> None:
    target, x, y = general(2)
    hold(
        ATTACKS.load("evasion.noise")(draws=50), target, Misclassify(y), norm, scaled(target, x, y, norm), slack=1000.0
    )


def boxed(target: Linear, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """The largest margin of a binary model within an Linf ball and the box [0, 1], `[n]`."""
    slope = target.w[1 - y] - target.w[y]
    corner = torch.where(slope > 0, (x + radius).clamp_max(1.0), (x - radius).clamp_min(0.0))
    z = target.forward(corner).values
    return z.gather(1, (1 - y)[:, None])[:, 0] - z.gather(1, y[:, None])[:, 0]


@pytest.mark.parametrize("id", ["evasion.fgsm", "evasion.pgd", "evasion.apgd", "evasion.universal", "evasion.square"])
def test_the_optimum_in_a_box_is_reached_in_linf(id: str) -> None:
    g = torch.Generator().manual_seed(4)
    target = Linear(torch.randn(2, D, generator=g), torch.zeros(2))
    x = torch.rand(N, D, generator=g).round()  # every feature on a wall of the box
    y = target.forward(x).labels
    for i in range(N):
        one, label = x[i : i + 1], y[i : i + 1]
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if float(boxed(target, one, label, middle)) > 0 else (middle, high)
        for factor, wanted in ((0.99, False), (1.05 if id == "evasion.square" else 1.01, True)):
            oracle = attack(
                ATTACKS.load(id)(), target, Misclassify(label), SPACES["linf"](0.0, 1.0), one, high * factor
            )
            assert bool(oracle.best.reached[0]) is wanted, (i, high)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_fgsm_gives_what_the_box_denies_to_other_features(norm: str) -> None:
    """A step of the radius alone would be cut short by the box; an exact one spends the whole radius."""
    target = Linear(torch.tensor([[0.0] * 4, [4.0, 2.0, 1.0, 0.0]]), torch.tensor([10.0, 0.0]))
    x = torch.tensor([[0.9, 0.5, 0.5, 0.5]])
    space = SPACES[norm](0.0, 1.0) if norm == "l2" else SPACES[norm](0.0, 1.0, share=1.0)
    best = attack(ATTACKS.load("evasion.fgsm")(), target, Misclassify(torch.tensor([0])), space, x, 0.3).best.x
    change = (best - x)[0]
    assert change[0] == pytest.approx(0.1, abs=1e-5)
    wanted = {"l2": [0.1, 0.2530, 0.1265, 0.0], "l1": [0.1, 0.2, 0.0, 0.0]}[norm]
    assert torch.allclose(change, torch.tensor(wanted), atol=2e-3), change
    assert float(space.distance(best, x)) <= 0.3


def regression() -> tuple[Linear, Tensor, Tensor]:
    target, x, _ = general(1)
    target = Linear(target.w, target.b, "values")
    return target, x, target.forward(x).values


def per_unit(target: Linear, norm: str) -> float:
    """The change of an input that moves the prediction by one."""
    return 1 / float(torch.linalg.vector_norm(target.w[0], ord=DUAL[norm]))


@pytest.mark.parametrize("norm", sorted(DUAL))
@pytest.mark.parametrize("id", ["evasion.fgsm", "evasion.pgd", "evasion.apgd", "evasion.universal"])
@pytest.mark.parametrize("residual", [0.4, -0.4, 0.0])
def test_a_regression_is_shifted_at_the_known_radius(id: str, norm: str, residual: float) -> None:
    target, x, prediction = regression()
    nearest = (1.0 - abs(residual)) * per_unit(target, norm)
    hold(ATTACKS.load(id)(), target, Shift(prediction - residual, 1.0), norm, x, nearest)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("id", ["evasion.pgd", "evasion.apgd", "evasion.square"])
def test_a_regression_is_moved_to_a_wanted_value(id: str, norm: str) -> None:
    target, x, prediction = regression()
    hold(ATTACKS.load(id)(), target, ReachValue(prediction + 2.0, 0.1), norm, x, 1.9 * per_unit(target, norm), 1.05)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("id", "queries"), [("evasion.square", 2000), ("evasion.hop_skip_jump", 8000)])
def test_query_attacks_shift_a_regression(id: str, queries: int, norm: str) -> None:
    target, x, prediction = regression()
    # an exact prediction: both sides are equally near, for a walk along the boundary stays on the side where it began
    goal = Shift(prediction, 1.0)
    hold(ATTACKS.load(id)(queries=queries), target, goal, norm, x, per_unit(target, norm), 1.05)


@pytest.mark.parametrize("norm", sorted(DUAL))
def test_universal_finds_the_common_direction(norm: str) -> None:
    """Of one pair of classes: one change of the largest distance breaks all, and 0.99 of it leaves one."""
    target, x, y = general(2)
    same = (y == y[0]).nonzero().flatten()
    x, y = x[same], y[same]
    farthest = float(distances(target, x, y, norm).amin(1).amax())
    for factor in (0.99, 1.01):
        space, radius = SPACES[norm](), farthest * factor
        oracle = MeteredOracle(target, Misclassify(y), space, x, radius)
        oracle.begin()
        found = ATTACKS.load("evasion.universal")()(EvasionScene(oracle, x, space, radius, 2), Rng(0, len(x)))
        change = torch.tensor(found.facts["perturbation"])
        assert float(space.distance(change[None], torch.zeros(1, D))) <= radius * (1 + 1e-6)
        broken = target.forward(x + change).labels != y
        assert found.facts["fooled"] == pytest.approx(float(broken.double().mean()))
        assert int((~broken).sum()) == (1 if factor < 1 else 0)
        assert torch.allclose(found.x, x + change, atol=1e-5)


@pytest.mark.parametrize("norm", sorted(DUAL))
def test_feature_matching_ends_at_the_projection_of_the_donor(norm: str) -> None:
    """With the inputs as features, the nearest admissible point to the donor's features is known."""
    target, x, y = general(2)
    # a model that calls everything within reach the same, so that the match runs to its end
    target = Linear(target.w * 1e-3, torch.tensor([0.0, 0.0]).index_fill(0, y[0], 1.0))
    donor = x[:1] + 2000 * torch.nn.functional.normalize(target.w[1 - y[0]] - target.w[y[0]], dim=0)
    space, radius = SPACES[norm](), 1.0
    last: list[Tensor] = []

    class Watched(MeteredOracle):
        def margins(self, x: Tensor, rows: Tensor) -> Tensor:
            last.append(x.clone())
            return super().margins(x, rows)

    oracle = Watched(target, Misclassify(y[:1]), space, x[:1], radius)
    oracle.begin()
    found = Feature(steps=200)(EvasionScene(oracle, x[:1], space, radius, 2, donors=donor), Rng(0, 1))
    assert found.facts["matched"] == 1
    truth = space.project(donor, x[:1], radius)
    reach = lambda z: float((z - donor).double().norm())  # noqa: E731
    assert reach(last[-1]) <= reach(truth) + 0.01 * radius
    assert np.isfinite(reach(last[-1]))


def test_feature_attack_breaks_a_linear_model_once_the_donor_is_in_reach() -> None:
    target, x, y = general(2)
    one, label = x[:1], y[:1]
    slope = target.w[1 - label[0]] - target.w[label[0]]
    nearest = float(distances(target, one, label, "l2").amin())
    donor = one + 3 * nearest * slope / slope.norm()
    for factor, wanted in ((0.99, False), (1.01, True)):
        oracle = attack(Feature(), target, Misclassify(label), SPACES["l2"](), one, nearest * factor, donors=donor)
        assert bool(oracle.best.reached[0]) is wanted
