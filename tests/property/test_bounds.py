"""Bounds hold: nothing that sampling, gradients or enumeration finds lies outside them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.parts.bounds import EFFORTS, Graph, Unprovable, prove, prove_value, trace
from vauban.parts.bounds import cones as local
from vauban.parts.bounds.alpha import Claims, Settings, tune
from vauban.parts.bounds.counter import counter
from vauban.parts.bounds.crown import before_bends, charge, context, lower, refine
from vauban.parts.bounds.intervals import Region, propagate, region
from vauban.parts.bounds.ops import Conv
from vauban.parts.projections import SPACES

FEW = settings(max_examples=5, deadline=None, derandomize=True)
SPACE = st.sampled_from(["linf", "l2", "l1"])
SEED = st.integers(0, 10_000)


class Walk(nn.Module):
    """Layers one after the other, then `last` from any shape to `out` scores."""

    def __init__(self, body: Callable[..., Tensor], parts: list[nn.Module], size: int, out: int = 3) -> None:
        super().__init__()
        self.parts, self.body, self.last = nn.ModuleList(parts), body, nn.Linear(size, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x, *self.parts).flatten(1))


def vector(act: Callable[[Tensor], Tensor]) -> Callable[[], tuple[nn.Module, tuple[int, ...]]]:
    def make() -> tuple[nn.Module, tuple[int, ...]]:
        a, b = nn.Linear(5, 7), nn.Linear(7, 6)
        return Walk(lambda x, a, b: act(b(act(a(x)))), [a, b], 6), (5,)

    return make


def image(middle: Callable[[Tensor], Tensor], size: int) -> Callable[[], tuple[nn.Module, tuple[int, ...]]]:
    """A convolution with batch norm and ReLU, `middle`, a ReLU."""

    def make() -> tuple[nn.Module, tuple[int, ...]]:
        conv, norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.data.normal_()
        norm.bias.data.normal_()
        return Walk(lambda x, conv, norm: middle(F.relu(norm(conv(x)))).relu(), [conv, norm], size), (2, 6, 6)

    return make


def sequence() -> tuple[nn.Module, tuple[int, ...]]:
    conv, dense = nn.Conv1d(3, 4, 3, stride=2, dilation=2, padding="valid"), nn.Linear(4, 5)
    return Walk(lambda x, conv, dense: F.leaky_relu(dense(conv(x).permute(0, 2, 1)), 0.2).mean(1), [conv, dense], 5), (
        3,
        11,
    )


def residual() -> tuple[nn.Module, tuple[int, ...]]:
    first, second, short = (
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.Conv2d(4, 4, 3, 1, 1, groups=2),
        nn.Conv2d(2, 4, 1),
    )

    def body(x: Tensor, first: nn.Module, second: nn.Module, short: nn.Module) -> Tensor:
        x = (x - torch.tensor([0.1, 0.2]).to(x).reshape(2, 1, 1)) / 0.5
        inside = second(F.relu(first(x))) + short(x)
        return 1 - 2 * (F.relu(inside) - 0.5 * inside)

    return Walk(body, [first, second, short], 4 * 5 * 5), (2, 5, 5)


POOLS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "average": (lambda x: F.avg_pool2d(x, 3, 2, 1), 4 * 9),
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x, 2), 4 * 4),
    "largest": (lambda x: F.max_pool2d(x, 2), 4 * 9),
    "largest of three, padded": (lambda x: F.max_pool2d(x, 3, 2, 1), 4 * 9),
    "joined and padded": (lambda x: F.pad(torch.cat([x[:, :2], -x[:, 1:3]], 1), (1, 0, 0, 2), value=0.3), 4 * 7 * 8),
    "reflected": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect").transpose(1, 2).reshape(len(x), -1, 4), 4 * 64),
}
ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "leaky": lambda t: F.leaky_relu(t, 0.3), "steep": lambda t: F.leaky_relu(t, 1.7), "abs": torch.abs,
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "gelu": F.gelu, "gelu by tanh": lambda t: F.gelu(t, approximate="tanh"),
    "softplus": F.softplus, "elu": F.elu, "selu": F.selu, "silu": F.silu, "relu6": lambda t: F.relu6(3 * t),
    "hardtanh": F.hardtanh, "clamp": lambda t: t.clamp(min=-0.5, max=0.2), "maximum": lambda t: torch.maximum(t, -0.5 * t),
    "dropout": lambda t: F.dropout(t, 0.5, training=False).relu_(),
}  # fmt: skip
NETS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    **{name: vector(act) for name, act in ACTS.items()},
    **{name: image(*how) for name, how in POOLS.items()},
    "sequence": sequence,
    "residual": residual,
}


def make(name: str, seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    model, shape = NETS[name]()
    for p in model.parameters():
        p.data.mul_(1.5)
    return model.eval(), torch.rand(4, *shape)


def inside(area: Region, count: int, seed: int) -> Tensor:
    """Points of the region `[count * n, ...]`: random ones and the far ends of random directions."""
    torch.manual_seed(seed)
    n = len(area)
    x, r = area.x.repeat(count, *(1,) * (area.x.dim() - 1)), area.radius.repeat(count)
    way = torch.randn_like(x) * (torch.rand_like(x) < torch.rand(len(x)).reshape(-1, *(1,) * (x.dim() - 1)))
    ball = SPACES[area.order](area.low.amin(0), area.high.amax(0))
    z = ball.project(x + ball.steepest(way, x, r * torch.rand(len(x)).double().sqrt()), x, r)
    low, high = (t.repeat(count, *(1,) * (x.dim() - 1)) for t in (area.low, area.high))
    return torch.cat(
        [z[: len(z) // 2], torch.where(way > 0, high, low)[len(z) // 2 :] if area.order == "linf" else z[len(z) // 2 :]]
    ).maximum(low).minimum(high), torch.arange(n).repeat(count)  # type: ignore[return-value]


def values(graph: Graph, x: Tensor) -> list[Tensor]:
    """What every node really holds."""
    out = [x.double()]
    for node in graph.nodes[1:]:
        assert node.op is not None
        out.append(node.op.forward(*(out[i] for i in node.inputs)))
    return out


@pytest.mark.parametrize("name", NETS)
@given(seed=SEED, space=SPACE, clipped=st.booleans())
@FEW
def test_every_bound_holds_what_sampling_finds(name: str, seed: int, space: str, clipped: bool) -> None:
    model, x = make(name, seed)
    graph = trace(model, x)
    radius = {"linf": 0.1, "l2": 0.3, "l1": 0.6}[space]
    box = (0.0, 1.0) if clipped else (-torch.inf, torch.inf)
    area = region(x, space, radius, *box)
    z, rows = inside(area, 40, seed)
    seen = values(graph, z)
    with torch.no_grad():
        found = propagate(graph, area)
        looser = found
        for at in before_bends(graph):
            cones = local.find(graph, at, area.x)
            found = refine(graph, area, found, at, parallel=seed % 2 == 0)
            if cones is not None:
                found = local.tighten(graph, area, found, cones)
        for at, value in enumerate(seen):
            for bounds in (looser, found):
                assert bool((value >= bounds.low[at][rows]).all())
                assert bool((value <= bounds.high[at][rows]).all())
        a = torch.randn(4, 2, 3, dtype=torch.float64)
        truth = (a[rows] @ seen[-1][:, :, None])[:, :, 0]
        noise = found.noise[graph.last]
        for parallel in (False, True):
            bound = lower(context(graph, area, found, parallel=parallel), a, graph.last).value - charge(a, noise)
            assert bool((truth >= bound[rows]).all())
        first = a[:, :1]
        tuned = tune(graph, area, found, Claims(first, torch.zeros(4, 1).double()), Settings(steps=6)).value
        assert bool((truth[:, 0] >= tuned[rows]).all())
        # tuning starts from the default slopes and keeps the best
        start = lower(context(graph, area, found), first, graph.last).value - charge(first, noise)
        assert bool((tuned >= start[:, 0] - 1e-9).all())


@pytest.mark.parametrize("effort", EFFORTS)
@given(seed=SEED, space=SPACE)
@FEW
def test_descent_breaks_no_certified_row(effort: str, seed: int, space: str) -> None:
    name = list(NETS)[seed % len(NETS)]
    model, x = make(name, seed)
    graph = trace(model, x)
    labels = model(x).argmax(1)
    radius = {"linf": 0.03, "l2": 0.1, "l1": 0.2}[space]
    proof = prove(graph, x, labels, space, radius, 0.0, 1.0, effort=effort)
    area = region(x, space, radius, 0.0, 1.0)
    a = torch.eye(3, dtype=torch.float64)[labels][:, None] - torch.eye(3, dtype=torch.float64)[None]
    a[torch.arange(4), labels] = a[torch.arange(4), (labels + 1) % 3]
    worst = counter(graph, area, Claims(a, torch.zeros(4, 3).double()), lambda: False)
    assert not bool((proof.certified & (worst.margin <= 0)).any())
    assert bool((worst.margin[proof.stage != 4] >= proof.bound[proof.stage != 4]).all())
    assert not bool((proof.certified & proof.broken).any())
    # in the model's own float32 too
    assert bool((model(worst.x.float()).argmax(1) == labels)[proof.certified].all())


@given(seed=SEED)
@FEW
def test_more_effort_never_proves_less(seed: int) -> None:
    model, x = make(list(NETS)[seed % len(NETS)], seed)
    graph, labels = trace(model, x), model(x).argmax(1)
    proofs = [prove(graph, x, labels, "linf", 0.05, 0.0, 1.0, effort=effort) for effort in EFFORTS]
    for less, more in itertools.pairwise(proofs):
        assert bool((more.bound >= less.bound).all() or (more.certified >= less.certified).all())


def by_hand(weight: Tensor, x: Tensor, space: str, radius: float, low: float, high: float) -> float:
    """The smallest `weight . z`, by a linear programme (linf, l1) or a fine search over the multiplier (l2)."""
    w, x0 = weight.double().numpy(), x.double().numpy()
    if space == "linf":
        return float(sum(min(a * max(v - radius, low), a * min(v + radius, high)) for a, v in zip(w, x0, strict=True)))
    if space == "l1":
        d = len(w)
        # z = x + p - q, p and q not negative, their sum at most the radius
        limits = [(0, high - v) for v in x0] + [(0, v - low) for v in x0]
        found = linprog(np.r_[w, -w], A_ub=np.ones((1, 2 * d)), b_ub=[radius], bounds=limits)
        return float(found.fun + w @ x0)
    best = np.inf
    for by in np.geomspace(1e-4, 1e4, 4_000):
        move = np.clip(-w / by, low - x0, high - x0)
        if np.linalg.norm(move) <= radius:
            best = min(best, float(w @ (x0 + move)))
    return best


@pytest.mark.parametrize("space", ["linf", "l2", "l1"])
@given(seed=SEED)
@FEW
def test_linear_models_are_exact(space: str, seed: int) -> None:
    torch.manual_seed(seed)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(6, 2)).double(), torch.rand(3, 2, 3).double()
    labels = model(x).argmax(1)
    radius = 0.4
    proof = prove(trace(model, x), x, labels, space, radius, 0.0, 1.0, effort="ibp")
    weight, bias = model[1].weight.data, model[1].bias.data
    for row, label in enumerate(labels.tolist()):
        difference = weight[label] - weight[1 - label]
        truth = by_hand(difference, x[row].flatten(), space, radius, 0.0, 1.0) + float(bias[label] - bias[1 - label])
        # never above the truth but for the rounding of the slow one, and as near as its own grid
        assert float(proof.bound[row]) <= truth + 1e-9
        assert float(proof.bound[row]) >= truth - (2e-3 if space == "l2" else 1e-6)
        assert bool(proof.certified[row]) == (float(proof.bound[row]) > 0)


def enumerated(model: nn.Sequential, x: Tensor, label: int, radius: float) -> float:
    """The smallest margin of a two-layer ReLU net over a box, by a linear programme for every pattern of ReLUs."""
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in (*model[0].parameters(), *model[2].parameters()))
    box = [(float(v) - radius, float(v) + radius) for v in x]
    worst = np.inf
    for other in range(len(b2)):
        if other == label:
            continue
        for pattern in itertools.product([0.0, 1.0], repeat=len(b1)):
            on = np.array(pattern)
            c = (w2[label] - w2[other]) * on
            sign = np.where(on == 1, -1.0, 1.0)
            found = linprog(c @ w1, A_ub=sign[:, None] * w1, b_ub=-sign * b1, bounds=box)
            if found.status == 0:
                worst = min(worst, found.fun + c @ b1 + b2[label] - b2[other])
    return float(worst)


@given(seed=SEED)
@settings(max_examples=6, deadline=None, derandomize=True)
def test_splitting_decides_what_enumeration_decides(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3))
    model[0].weight.data.mul_(2)
    x = torch.rand(2, 3)
    labels, graph = model(x).argmax(1), trace(model, x)
    radius = 0.15
    proof = prove(graph, x, labels, "linf", radius, effort="branch")
    for row, label in enumerate(labels.tolist()):
        truth = enumerated(model, x[row], label, radius)
        if abs(truth) > 1e-3:
            assert bool(proof.certified[row]) == (truth > 0), truth
            assert bool(proof.broken[row]) == (truth < 0), truth


def test_a_proof_covers_the_rounding_of_the_model() -> None:
    """Margins that only exist in exact arithmetic are not certified for a model that computes in float32."""
    model = nn.Linear(1000, 2)
    torch.nn.init.constant_(model.weight, 0.1)
    model.weight.data[1] *= -1
    model.bias.data = torch.tensor([1e-7, 0.0])
    x = torch.zeros(1, 1000)
    x[0, :500], x[0, 500:] = 0.3, -0.3
    single = prove(trace(model, x), x, torch.tensor([0]), "linf", 0.0)
    double = prove(trace(model.double(), x.double()), x.double(), torch.tensor([0]), "linf", 0.0)
    assert not bool(single.certified)
    assert bool(double.certified)


def test_a_value_stays_within_its_tolerance() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), torch.rand(6, 4)
    graph = trace(model, x)
    area = region(x, "linf", 0.05, 0.0, 1.0)
    z, rows = inside(area, 200, 0)
    moved = (graph.forward(z) - graph.forward(x)[rows]).abs()[:, 0]
    reached = torch.zeros(6).double().scatter_reduce(0, rows, moved, "amax")
    assert bool(prove_value(graph, x, 1.6 * reached, "linf", 0.05, 0.0, 1.0).certified.all())
    assert not bool(prove_value(graph, x, 0.99 * reached, "linf", 0.05, 0.0, 1.0, effort="alpha").certified.any())


def test_only_rows_that_fall_little_short_are_tuned() -> None:
    torch.manual_seed(3)
    model, x = (
        nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)),
        torch.rand(80, 8),
    )
    graph, labels = trace(model, x[:4]), model(x).argmax(1)

    def proved(**how: Any) -> Tensor:
        return prove(graph, x, labels, "linf", 0.15, 0.0, 1.0, **how).certified

    without, tuned, none, some = (
        proved(effort="crown"),
        proved(effort="alpha"),
        proved(effort="alpha", most_short=0.0),
        proved(effort="alpha", most_short=1.0),
    )
    assert torch.equal(none, without)
    assert 0 < int(without.sum()) < int(some.sum()) < int(tuned.sum())
    assert not bool((some & ~tuned).any())


def test_splitting_is_not_kept_from_rows_that_fall_short() -> None:
    torch.manual_seed(3)
    model, x = (
        nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)),
        torch.rand(40, 8),
    )
    graph, labels = trace(model, x[:4]), model(x).argmax(1)
    whole, short = (prove(graph, x, labels, "linf", 0.15, 0.0, 1.0, effort="branch", most_short=m) for m in (None, 0.0))
    for name in ("certified", "broken", "counter", "stage", "bound"):
        assert torch.equal(getattr(whole, name), getattr(short, name)), name
    assert bool(whole.broken.any())


def test_two_classes_from_one_score() -> None:
    model = nn.Linear(2, 1)
    model.weight.data, model.bias.data = torch.tensor([[1.0, 1.0]]), torch.tensor([0.0])
    x = torch.tensor([[0.5, 0.5], [-0.5, -0.5], [0.5, 0.5]])
    proof = prove(trace(model, x), x, torch.tensor([1, 0, 0]), "linf", 0.4)
    assert proof.certified.tolist() == [True, True, False]
    assert proof.broken.tolist() == [False, False, True]


def test_no_rows_and_no_time() -> None:
    model, x = make("relu", 0)
    graph = trace(model, x)
    assert prove(graph, x[:0], torch.zeros(0, dtype=torch.long), "linf", 0.1, effort="branch").bound.shape == (0,)
    late = prove(graph, x, model(x).argmax(1), "linf", 0.1, effort="branch", deadline=0.0)
    assert late.bound.shape == (4,)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.detach().numpy().sum()) > 0 else -x


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


class Batchwise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(1) * 2 + 1


@pytest.mark.parametrize(
    "model", [Noisy(), Deciding(), Squared(), Batchwise(), Inner(), nn.LSTM(3, 3), nn.LayerNorm(3)]
)
def test_what_cannot_be_followed_is_refused_in_words(model: nn.Module) -> None:
    with pytest.raises(Unprovable) as caught:
        trace(model, torch.rand(3, 3) + 0.5)
    assert len(str(caught.value)) > 20


def test_a_final_softmax_changes_no_proof() -> None:
    torch.manual_seed(0)
    bare, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.rand(5, 4)
    labels = bare(x).argmax(1)
    bounds = [
        prove(trace(nn.Sequential(bare, *end), x), x, labels, "l2", 0.1).bound
        for end in ([], [nn.Softmax(1)], [nn.LogSoftmax(1)])
    ]
    assert torch.equal(bounds[0], bounds[1])
    assert torch.equal(bounds[0], bounds[2])


def test_tracing_leaves_the_module_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.ReLU(inplace=True))
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trace(model, torch.rand(2, 3))
    assert all(part.training for part in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 3), SEED)
def test_windows_are_what_a_pass_back_shows(data: st.DataObject, dims: int, seed: int) -> None:
    def draw(least: int, most: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(least, most)) for _ in range(dims))

    torch.manual_seed(seed)
    width, stride, padding, dilation = draw(1, 3), draw(1, 3), draw(0, 2), draw(1, 2)
    conv = Conv(
        weight=torch.randn(3, 2, *width).double(), stride=stride, padding=padding, dilation=dilation, terms=1
    )  # fmt: skip
    shape = (2, *draw(5, 7))
    out = tuple(conv.apply(torch.zeros(1, *shape).double()).shape[1:])
    total = int(torch.Size(out).numel())
    found = conv.windows(shape)
    assert found is not None
    (pulled,) = conv.pull(torch.eye(total).double().reshape(total, *out), [shape])
    assert pulled is not None
    laid = torch.zeros(total, pulled[0].numel() + 1).double().scatter_add_(1, *found)
    assert torch.equal(laid[:, :-1], pulled.flatten(1))
    assert not bool(laid[:, -1].any())


def test_cones_give_what_a_pass_for_every_value_gives() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 5, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)
    )
    x = torch.rand(6, 1, 16, 16)
    graph = trace(model, x)
    for space, radius in (("linf", 0.1), ("l2", 0.5), ("l1", 2.0)):
        area = region(x, space, radius, 0.0, 1.0)
        with torch.no_grad():
            found = propagate(graph, area)
            at = before_bends(graph)[1]
            cones = local.find(graph, at, area.x)
            assert cones is not None
            quick, slow = local.tighten(graph, area, found, cones), refine(graph, area, found, at, parallel=True)
        open_ = (found.low[at] < 0) & (found.high[at] > 0)
        assert bool(open_.any())
        for one, two in ((quick.low, slow.low), (quick.high, slow.high)):
            assert float((one[at] - two[at])[open_].abs().max()) < 1e-3
