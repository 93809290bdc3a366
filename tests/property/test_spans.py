"""Intervals for training: they hold, they are those of the proofs, and their slopes are right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vauban.parts.bounds import trace
from vauban.parts.bounds.crown import Context, context, lower
from vauban.parts.bounds.intervals import propagate, region
from vauban.parts.bounds.ops import Smooth
from vauban.parts.spans import lowest_gaps, through
from vauban.schema.errors import NotOffered


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 1), nn.Linear(3 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.a(x)) + 0.5 * self.b(x) - 0.1
        scores: Tensor = self.last(z.flatten(1))
        return scores


def pooled() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    norm.running_mean.normal_()  # type: ignore[union-attr]
    norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    norm.weight.data.normal_()
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, stride=1), norm, nn.LeakyReLU(0.1), nn.AvgPool2d(2), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 3),
    )  # fmt: skip


def deep() -> nn.Module:
    """Two activations one after another, one of them leaky."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 8), nn.LeakyReLU(0.2),
        nn.Linear(8, 3),
    )  # fmt: skip


NETS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "pooled": pooled,
    "largest": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 3)),
    "deep": deep,
    "sure": lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Sigmoid(), nn.Linear(8, 3), nn.ELU()),
}


@pytest.mark.parametrize("name", sorted(NETS))
@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), radius=st.floats(0, 0.3))
def test_outputs_lie_within(name: str, seed: int, radius: float) -> None:
    torch.manual_seed(seed)
    net, x = NETS[name]().eval(), torch.rand(4, 2, 4, 4)
    low, high = (x - radius).clamp_min(0), (x + radius).clamp_max(1)
    with torch.no_grad():
        span = through(net, low, high)
        labels = net(x).argmax(1)
        gaps, tighter = lowest_gaps(span, labels), lowest_gaps(span, labels, linear=True)
        for z in (low, high, *(low + (high - low) * torch.rand(40, *x.shape))):
            scores = net(z)
            assert bool((scores >= span.low - 1e-5).all())
            assert bool((scores <= span.high + 1e-5).all())
            apart = scores.gather(1, labels[:, None]) - scores
            assert bool((apart >= gaps - 1e-5).all())
            assert bool((apart >= tighter - 1e-5).all())


@pytest.mark.parametrize("name", ["residual", "pooled"])
def test_they_are_the_intervals_of_the_proofs(name: str) -> None:
    torch.manual_seed(0)
    net, x = NETS[name]().eval(), torch.rand(4, 2, 4, 4)
    graph = trace(net, x)
    with torch.no_grad():
        span = through(net, (x - 0.1).clamp_min(0), (x + 0.1).clamp_max(1))
        proved = propagate(graph, region(x, "linf", 0.1, 0.0, 1.0))
    torch.testing.assert_close(span.low.double(), proved.low[graph.last], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(span.high.double(), proved.high[graph.last], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["residual", "pooled", "deep"])
def test_lines_are_those_of_the_proofs(name: str) -> None:
    torch.manual_seed(0)
    net, x = NETS[name]().eval(), torch.rand(4, 2, 4, 4)
    y, graph = torch.tensor([0, 1, 2, 0]), trace(net, x)
    apart = torch.eye(3, dtype=torch.float64)[y][:, None] - torch.eye(3, dtype=torch.float64)[None]
    area = region(x, "linf", 0.1, 0.0, 1.0)
    with torch.no_grad():
        span = through(net, (x - 0.1).clamp_min(0), (x + 0.1).clamp_max(1))
        found = propagate(graph, area)
        smooth = [i for i in graph.bends if isinstance(graph.nodes[i].op, Smooth)]
        made = context(graph, area, found)
        # curved activations end in their intervals
        kept = {i: lines for i, lines in made.lines.items() if i not in smooth}
        made = Context(graph, area, kept, {i: (found.low[i], found.high[i]) for i in smooth})
        proved = lower(made, apart, graph.last).value
        tight, loose = (lowest_gaps(span, y, linear=linear).double() for linear in (True, False))
    torch.testing.assert_close(tight, proved, rtol=1e-4, atol=1e-4)
    assert bool(smooth) or float((tight - loose).mean()) > 0


def test_gaps_of_a_linear_model_are_exact() -> None:
    torch.manual_seed(1)
    net, x = nn.Linear(5, 4), torch.rand(6, 5)
    y = net(x).argmax(1)
    gaps = lowest_gaps(through(net, x - 0.2, x + 0.2), y)
    apart = net.weight[y][:, None] - net.weight[None]
    exact = (apart @ x[:, :, None])[:, :, 0] + net.bias[y][:, None] - net.bias - 0.2 * apart.abs().sum(2)
    torch.testing.assert_close(gaps, exact)


@pytest.mark.parametrize("linear", [False, True])
def test_slopes_reach_the_weights(linear: bool) -> None:
    torch.manual_seed(2)
    net, x, y = (
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double(),
        torch.rand(5, 3).double(),
        torch.arange(5) % 2,
    )

    def told() -> Tensor:
        return (-lowest_gaps(through(net, x - 0.1, x + 0.1), y, linear)).logsumexp(1).mean()

    weight: Tensor = net[0].weight
    (grad,) = torch.autograd.grad(told(), weight)
    with torch.no_grad():
        weight[1, 2] += 1e-6
        up = told()
        weight[1, 2] -= 2e-6
        down = told()
    assert float((up - down) / 2e-6) == pytest.approx(float(grad[1, 2]), rel=1e-4, abs=1e-8)


def test_what_no_interval_is_known_for_is_named() -> None:
    with pytest.raises(NotOffered, match="no interval is known for the operation `gelu`"):
        through(nn.Sequential(nn.Linear(2, 2), nn.GELU()), torch.zeros(1, 2), torch.ones(1, 2))
