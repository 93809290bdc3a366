"""Detectors of adversarial inputs against explicit formulas and slow, obvious loops."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vauban.core.data import Data
from vauban.core.registry import configure
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.defences.catalog import DEFENCES
from vauban.defences.detect.dispersion import pieces
from vauban.defences.detect.distances import apart
from vauban.defences.detect.lid import dimension
from vauban.defences.detect.mahalanobis import Mahalanobis, projection
from vauban.defences.detect.reconstruction import Reconstruction
from vauban.defences.detect.view import View
from vauban.defences.detect.watch import Unheard, raised
from vauban.defences.detect.watched import WatchedTarget
from vauban.defences.preprocess.squeeze import Squeezer
from vauban.defences.refusal import refusing
from vauban.parts.losses import margin
from vauban.schema.errors import BadData, NotOffered
from vauban.targets.torch import TorchTarget

G = torch.Generator().manual_seed(0)
CLASSES, FEATURES = 3, 6


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % CLASSES
    return (0.15 * torch.randn(count, FEATURES, generator=g) + 0.3 * y[:, None] + 0.2).clamp(0, 1), y


def data(count: int = 240) -> Data:
    x, y = rows(count + 60)
    return Data(x[:count], y[:count], x[count:], y[count:], id="rows")


def linear() -> nn.Module:
    layer = nn.Linear(FEATURES, CLASSES)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(CLASSES, FEATURES, generator=g))
        layer.bias.copy_(torch.randn(CLASSES, generator=g))
    return nn.Sequential(layer)


def deep() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def watched(id: str, module: nn.Module, **settings: Any) -> WatchedTarget:
    domain = Domain(task="classification", classes=CLASSES, low=0.0, high=1.0)
    target = TorchTarget(module.eval(), "m", domain, "logits")
    made: Any = configure(DEFENCES.load(id), settings)(target, data(), Rng(0), Unheard()).target
    return made


def learnt_rows(share: float = 0.75) -> tuple[Tensor, Tensor]:
    """The rows that a detector with the seed 0 learns from."""
    whole = data()
    order = torch.randperm(240, generator=Rng(0).torch("aside"))[round((1 - share) * 240) :]
    return whole.x_train[order], whole.y_train[order]


def test_mahalanobis_is_the_quadratic_form_with_the_inverse_covariance() -> None:
    g = torch.Generator().manual_seed(3)
    mix = torch.randn(4, 4, generator=g, dtype=torch.float64)
    y = torch.arange(90) % 3
    seen = torch.randn(90, 4, generator=g, dtype=torch.float64) @ mix + y[:, None]
    fresh = torch.randn(7, 4, generator=g, dtype=torch.float64)
    detector = Mahalanobis(1, 0.1)
    found = detector.score(fresh, y[:7], *detector.remember(seen, y))
    means = np.stack([seen[y == c].numpy().mean(0) for c in range(3)])
    away = seen.numpy() - means[y.numpy()]
    covariance = away.T @ away / 90
    covariance = 0.9 * covariance + 0.1 * np.trace(covariance) / 4 * np.eye(4)
    inverse = np.linalg.inv(covariance)
    for row, value in zip(fresh.numpy(), found.tolist(), strict=True):
        assert value == pytest.approx(min((row - m) @ inverse @ (row - m) for m in means), rel=1e-9)


def test_the_distance_of_gaussian_rows_is_chi_squared() -> None:
    """Each dimension adds one to the mean squared distance from the own class."""
    g = torch.Generator().manual_seed(4)
    mix = torch.randn(5, 5, generator=g, dtype=torch.float64)
    draw = torch.randn(8000, 5, generator=g, dtype=torch.float64) @ mix
    detector = Mahalanobis(1, 1e-6)
    zero = torch.zeros(4000, dtype=torch.int64)
    scores = detector.score(draw[4000:], zero, *detector.remember(draw[:4000], zero))
    assert float(scores.mean()) == pytest.approx(5, rel=0.05)
    assert float(scores.var()) == pytest.approx(10, rel=0.15)


def test_wide_layers_are_projected_with_their_distances_kept() -> None:
    g = torch.Generator().manual_seed(5)
    wide = torch.randn(6, 3000, generator=g, dtype=torch.float64)
    few = wide @ projection(3000)
    assert few.shape == (6, 512)
    ratio = torch.pdist(few) / torch.pdist(wide)
    assert float((ratio - 1).abs().max()) < 0.15
    assert torch.equal(projection(4), torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("dimensions", [1, 3, 8])
def test_dimension_of_a_uniform_ball(dimensions: int) -> None:
    g = torch.Generator().manual_seed(dimensions)
    # the distance to the centre of a ball is the d-th root of a uniform number
    radii = torch.rand(20, 4000, generator=g, dtype=torch.float64) ** (1 / dimensions)
    found = dimension(radii, 400)
    assert float(found.mean()) == pytest.approx(dimensions, rel=0.03)


def test_dimension_is_the_formula_written_out() -> None:
    distances = torch.tensor([[4.0, 1.0, 2.0, 8.0, 16.0]], dtype=torch.float64)
    # of the three nearest: 1, 2 and 4, each over 4
    assert float(dimension(distances, 3)) == pytest.approx(-3 / (math.log(1 / 4) + math.log(2 / 4) + 0))
    assert bool(dimension(torch.tensor([[0.0, 0.0, 1.0], [2.0, 2.0, 2.0]]).double(), 20).isfinite().all())


def test_distances_are_those_of_loops_and_have_slopes() -> None:
    a, b = torch.randn(4, 3, generator=G, dtype=torch.float64), torch.randn(5, 3, generator=G, dtype=torch.float64)
    slow = torch.tensor([[math.dist(r, s) for s in b.tolist()] for r in a.tolist()], dtype=torch.float64)
    assert torch.allclose(apart(a, b), slow, atol=1e-9)
    same = b.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(apart(same, b).sum(), same)
    assert bool(slope.isfinite().all())
    assert float(apart(b, b).diagonal().abs().max()) == 0


def test_energy_is_minus_the_log_sum_exp() -> None:
    made = watched("detect.energy", linear(), temperature=2.0)
    x, _ = rows(20, seed=9)
    with torch.no_grad():
        logits = linear()(x)
    expected = [-2 * math.log(sum(math.exp(v / 2) for v in row)) for row in logits.double().tolist()]
    assert torch.allclose(made.suspicion(x), torch.tensor(expected), atol=1e-5)


def test_neighbours_are_those_of_brute_force() -> None:
    module = deep()
    made = watched("detect.neighbours", module, layers=1, neighbours=4)
    x, _ = rows(15, seed=11)
    known, labels = learnt_rows()
    with torch.no_grad():
        seen, fresh = module[:4](known).double(), module[:4](x).double()
        answered = module(x).argmax(1)
    for row, value, label in zip(fresh, made.suspicion(x).tolist(), answered.tolist(), strict=True):
        unit = row / row.norm()
        away = sorted(
            float((unit - s / s.norm()).norm()) for s, c in zip(seen, labels.tolist(), strict=True) if c == label
        )
        assert value == pytest.approx(away[3], abs=1e-6)


def test_several_layers_become_the_mean_of_standardised_scores() -> None:
    made: Any = watched("detect.mahalanobis", deep(), layers=2)
    inner = made.module
    x, _ = rows(12, seed=13)
    with torch.no_grad():
        parts = inner.detector(inner.view(x))
        held = data().x_train[torch.randperm(240, generator=Rng(0).torch("aside"))[:60]]
        clean = inner.detector(inner.view(held))
    assert parts.shape == (12, 2)
    expected = ((parts - clean.mean(0)) / clean.std(0)).mean(1)
    assert torch.allclose(made.suspicion(x), expected.float(), atol=1e-5)


def test_squeezing_compares_probabilities() -> None:
    made = watched("detect.squeezing", linear(), bits=1, median=0)
    x, _ = rows(20, seed=15)
    squeezed = Squeezer(torch.zeros(FEATURES), torch.ones(FEATURES), 1, 0)(x)
    assert torch.equal(squeezed, x.round())
    with torch.no_grad():
        here, there = (linear()(z).double().softmax(1) for z in (x, squeezed))
    assert torch.allclose(made.suspicion(x).exp(), (here - there).abs().sum(1).float(), atol=1e-6)


def test_reconstruction_error_of_known_networks() -> None:
    x = torch.rand(5, FEATURES, generator=G)
    view = View(linear(), None, x)  # type: ignore[arg-type]
    assert float(Reconstruction(nn.Identity(), 1.0)(view).abs().max()) == 0
    nothing = nn.Linear(FEATURES, FEATURES)
    nn.init.zeros_(nothing.weight)
    nn.init.zeros_(nothing.bias)
    expected = x.double().square().mean(1, keepdim=True)
    assert torch.allclose(Reconstruction(nothing, 2.0)(view), expected)


def test_dispersion_is_the_interquartile_range_of_what_is_lost() -> None:
    made = watched("detect.dispersion", linear(), parts=FEATURES)
    x, _ = rows(8, seed=17)
    with torch.no_grad():
        for row, value in zip(x, made.suspicion(x).tolist(), strict=True):
            whole = linear()(row[None]).double().softmax(1)[0]
            top = int(whole.argmax())
            lost = []
            for feature in range(FEATURES):
                without = row.clone()
                without[feature] = 0
                lost.append(float(whole[top] - linear()(without[None]).double().softmax(1)[0, top]))
            low, high = np.percentile(lost, [25, 75])
            assert math.exp(value) == pytest.approx(high - low, rel=1e-4)


@pytest.mark.parametrize(("shape", "parts", "count"), [((6,), 3, 3), ((6,), 99, 6), ((3, 8, 6), 4, 16), ((5, 5), 2, 4)])
def test_pieces_cut_every_input_once(shape: tuple[int, ...], parts: int, count: int) -> None:
    masks = pieces(shape, parts)
    assert masks.shape == (count, *shape)
    assert bool((masks.sum(0) == 1).all())


@pytest.mark.parametrize("steps", [1, 5])
def test_shift_of_a_linear_model_is_known(steps: int) -> None:
    """There gradients are the same everywhere: integrated or not, a map is weight times input."""
    made = watched("detect.shift", linear(), steps=steps)
    weight = linear()[0].weight.detach().double()  # type: ignore[index]
    weight = weight - weight.mean(0)

    def maps(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            answered = linear()(x).argmax(1)
        return x.double() * weight[answered], answered

    known, classes = maps(learnt_rows()[0])
    x, _ = rows(10, seed=19)
    fresh, answered = maps(x)
    for row, label, value in zip(fresh, answered, made.suspicion(x).tolist(), strict=True):
        own = known[classes == label] if int((classes == label).sum()) > 1 else known
        deviation = own.std(0)
        deviation = deviation.maximum(0.1 * deviation.square().mean().sqrt())
        assert value == pytest.approx(float(((row - own.mean(0)) / deviation).square().mean()), rel=1e-4)


IDS = DEFENCES.select(["detect"])
SMOOTH = [name for name in IDS if name != "detect.squeezing"]


@pytest.mark.parametrize("id", SMOOTH)
def test_scores_have_the_slopes_of_their_differences(id: str) -> None:
    quick = {"epochs": 1, "width": 2} if id == "detect.reconstruction" else {}
    made: Any = watched(id, deep().double(), **quick)
    inner = made.module
    x = rows(3, seed=21)[0].double().requires_grad_(True)

    def score(z: Tensor) -> Tensor:
        parts: Tensor = inner.detector(inner.view(z))
        return parts

    (slope,) = torch.autograd.grad(score(x).sum(), x)
    assert float(slope.abs().max()) > 0
    step = 1e-6
    for feature in range(FEATURES):
        away = torch.zeros(FEATURES, dtype=torch.float64)
        away[feature] = step
        with torch.no_grad():
            quotient = (score(x.detach() + away) - score(x.detach() - away)).sum(1) / (2 * step)
        assert torch.allclose(slope[:, feature], quotient, rtol=1e-3, atol=1e-4 * float(slope.abs().max()))


def test_the_slope_goes_straight_through_the_squeezers() -> None:
    made = watched("detect.squeezing", deep())
    x = rows(5, seed=23)[0].requires_grad_(True)
    (slope,) = torch.autograd.grad(made.suspicion(x).sum(), x)
    assert bool((slope.abs().amax(1) > 0).all())


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=4),
    st.one_of(st.floats(-1e3, 1e3, width=32), st.sampled_from([0.5, math.nextafter(0.5, 1)])),
    st.floats(0, 1e3, width=32),
)
def test_the_refusal_wins_exactly_above_the_threshold(values: list[float], score: float, slope: float) -> None:
    logits, score_ = torch.tensor([values]), torch.tensor([score])
    threshold = torch.tensor(0.5)
    whole = refusing(logits, score_, threshold, torch.tensor(slope))
    assert torch.equal(whole[:, :-1], logits)
    assert (int(whole.argmax(1)) == len(values)) == bool(score_ > threshold)


@pytest.mark.parametrize("id", IDS)
def test_reject_flag_and_pass(id: str) -> None:
    quick = {"epochs": 1, "width": 2} if id == "detect.reconstruction" else {}
    x, _ = rows(60, seed=25)
    x = torch.cat([x, torch.rand(60, FEATURES, generator=torch.Generator().manual_seed(1))])
    plain = deep()
    made = {name: watched(id, plain, policy=name, alarms=0.3, **quick) for name in ("reject", "flag", "pass")}
    with torch.no_grad():
        answers = plain(x)
        over = made["flag"].suspicion(x) > made["flag"].threshold
        refused = made["reject"].forward(x).labels == CLASSES
        kept = made["reject"].forward(x).labels == answers.argmax(1)
    assert bool(over.any())
    assert bool((~over).any())
    assert torch.equal(refused, over)
    assert torch.equal(kept, ~over)
    for name in ("flag", "pass"):
        assert torch.equal(made[name].forward(x).values, answers)
        assert made[name].domain.refusal is None
        assert torch.equal(made[name].suspicion(x), made["reject"].suspicion(x))
    assert torch.equal(made["flag"].flagged(x), over)
    assert not bool(made["pass"].flagged(x).any())
    assert made["reject"].domain.refusal == CLASSES
    assert made["reject"].domain.true_classes == CLASSES


@pytest.mark.parametrize("id", IDS)
def test_scores_do_not_depend_on_the_batch(id: str) -> None:
    quick = {"epochs": 1, "width": 2} if id == "detect.reconstruction" else {}
    made = watched(id, deep(), **quick)
    x, _ = rows(16, seed=27)
    with torch.no_grad():
        assert torch.allclose(made.suspicion(x)[8:], made.suspicion(x[8:]), rtol=1e-5, atol=1e-6)


def test_the_threshold_keeps_to_the_rate_of_false_alarms() -> None:
    g = torch.Generator().manual_seed(6)
    shares = []
    for _ in range(200):
        draw = torch.rand(399, generator=g)
        threshold, said = raised(draw, 0.05)
        assert not said
        shares.append(1 - float(threshold))  # of uniform scores, what lies above
    assert float(np.mean(shares)) == pytest.approx(0.05, abs=0.003)
    assert float(raised(torch.arange(19.0), 0.05)[0]) == 18
    threshold, said = raised(torch.arange(18.0), 0.05)
    assert float(threshold) == 17
    assert said == ["18 rows are too few to set a threshold with 5.00% false alarms: it is the largest score of all."]


def test_what_makes_no_sense_is_refused() -> None:
    for settings in ({"policy": "shrug"}, {"alarms": 0.0}, {"aside": 1.0}, {"rows": 0}, {"temperature": 0.0}):
        with pytest.raises(Exception, match=next(iter(settings))):
            configure(DEFENCES.load("detect.energy"), settings)
    few = Data(*(part[:12] for part in rows(12)), *rows(12))
    target = TorchTarget(linear().eval(), "m", Domain(task="classification", classes=3), "logits")
    with pytest.raises(BadData, match="at least 8 are needed"):
        configure(DEFENCES.load("detect.energy"), {})(target, few, Rng(0), Unheard())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(deep().eval(), torch.rand(2, FEATURES))
    scripted = TorchTarget(traced, "t", target.domain, "logits")
    with pytest.raises(NotOffered, match="cannot be listened to"):
        configure(DEFENCES.load("detect.lid"), {})(scripted, data(), Rng(0), Unheard())


def test_a_model_that_gives_probabilities_is_watched_as_well() -> None:
    soft = nn.Sequential(deep(), nn.Softmax(1))
    domain = Domain(task="classification", classes=CLASSES, low=0.0, high=1.0)
    target = TorchTarget(soft.eval(), "p", domain, "probabilities")
    made: Any = configure(DEFENCES.load("detect.energy"), {})(target, data(), Rng(0), Unheard()).target
    x, y = rows(30, seed=29)
    outputs = made.forward(x)
    assert outputs.kind == "logits"
    assert torch.allclose(outputs.values[:, :CLASSES].exp(), soft(x), atol=1e-5)
    assert margin(outputs, y).shape == (30,)
