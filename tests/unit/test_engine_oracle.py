"""The oracle meters, limits, keeps the best, and leaves no trace."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from vauban.core.target import Domain, Outputs, Recipe, Target
from vauban.domains.image.modality import Image
from vauban.engine.oracle import MeteredOracle
from vauban.parts.goals import Misclassify
from vauban.schema.access import EVERYTHING, Access
from vauban.schema.errors import Limit, NotOffered
from vauban.schema.threat import Budget

DOMAIN = Domain(kind="image", task="classification", classes=3, low=0.0, high=1.0)


@dataclass(frozen=True)
class Counting:
    """A linear model that counts the rows it answers."""

    layer: nn.Linear
    seen: list[int]
    domain: Domain = DOMAIN
    offers: Access = EVERYTHING & ~Access.FEATURES
    id: str = "counting"
    recipe: Recipe | None = None
    extra: dict[str, int] = field(default_factory=dict)

    def forward(self, x: Tensor) -> Outputs:
        self.seen.append(len(x))
        return Outputs(self.layer(x.flatten(1)), "logits")

    def sha256(self) -> str:
        return "0"

    def settled(self, domain: Domain) -> Target:
        return self


def _oracle(n: int = 10, **options: object) -> tuple[MeteredOracle, Counting, Tensor]:
    torch.manual_seed(0)
    target = Counting(nn.Linear(4, 3), [])
    x = torch.rand(n, 1, 2, 2)
    y = target.forward(x).labels
    target.seen.clear()
    space = Image().space("linf", DOMAIN)
    return MeteredOracle(target, Misclassify(y), space, x, 0.2, micro_batch=4, **options), target, x  # type: ignore[arg-type]


def test_counts_rows_not_calls_and_cuts_micro_batches() -> None:
    oracle, target, x = _oracle()
    rows = torch.arange(10)
    oracle.scores(x, rows)
    oracle.value_and_grad(oracle.goal.surrogate, x[:3], rows[:3])
    assert oracle.spent.queries.tolist() == [2] * 3 + [1] * 7
    assert oracle.spent.gradients.tolist() == [1] * 3 + [0] * 7
    assert sum(target.seen) == 13
    assert max(target.seen) <= 4


def test_class_slopes_are_the_rows_of_the_jacobian_and_cost_a_gradient_each() -> None:
    oracle, target, x = _oracle()
    rows = torch.tensor([7, 2, 5, 0, 9])
    true = oracle.goal.labels[rows]
    wanted = torch.stack([(true + 1) % 3, (true + 2) % 3], 1)
    found = oracle.class_slopes(x[rows], rows, wanted, true)
    weight = target.layer.weight.detach()
    assert torch.allclose(found.grad.flatten(2), weight[wanted] - weight[true][:, None])
    assert torch.allclose(found.scores, target.layer(x[rows].flatten(1)))
    assert torch.equal(found.margin, oracle.margins(x[rows], rows))
    assert oracle.spent.gradients.tolist() == [2 * (i in rows) for i in range(10)]
    assert oracle.spent.queries.tolist() == [2 * (i in rows) for i in range(10)]
    assert all(p.grad is None for p in target.layer.parameters())


def test_class_slopes_stay_within_the_budget_of_gradients() -> None:
    oracle, _, x = _oracle(budget=Budget(gradients=3))
    rows, base = torch.arange(10), torch.zeros(10, dtype=torch.int64)
    oracle.class_slopes(x, rows, torch.ones(10, 2, dtype=torch.int64), base)
    with pytest.raises(Limit):
        oracle.class_slopes(x, rows, torch.ones(10, 2, dtype=torch.int64), base)
    assert oracle.spent.gradients.max() == 2


def test_a_row_asked_twice_in_one_call_pays_twice_and_keeps_its_best() -> None:
    oracle, _, x = _oracle()
    rows = torch.tensor([5, 5, 5])
    points = (x[5] + torch.tensor([0.0, 0.1, -0.1]).reshape(3, 1, 1, 1)).clamp(0, 1)
    margin = oracle.margins(points, rows)
    assert oracle.spent.queries[5] == 3
    assert oracle.best.margin[5] == margin.max()
    assert torch.equal(oracle.best.x[5], points[margin.argmax()])


def test_a_point_outside_the_radius_or_the_box_never_counts() -> None:
    oracle, target, x = _oracle()
    weight = target.layer.weight.detach()
    y = oracle.goal.labels
    away = (weight[(y + 1) % 3] - weight[y]).reshape(10, 1, 2, 2)
    far = x + 50 * away
    assert (oracle.margins(far, torch.arange(10)) > 0).all()
    assert not oracle.best.reached.any()
    assert len(oracle.rows) == 10


def test_decided_rows_close() -> None:
    oracle, _, x = _oracle()
    goal = Misclassify((oracle.goal.labels + 1) % 3)
    other = MeteredOracle(oracle._target, goal, oracle._space, x, 0.2)
    assert (other.begin() > 0).all()
    assert len(other.rows) == 0
    assert (other.best.distance == 0).all()


def test_access_is_decided_by_the_oracle() -> None:
    oracle, _, x = _oracle(access=Access.LABELS)
    rows = torch.arange(10)
    oracle.labels(x, rows)
    for forbidden in (oracle.scores, oracle.margins):
        with pytest.raises(NotOffered, match="scores"):
            forbidden(x, rows)
    with pytest.raises(NotOffered, match="gradients"):
        oracle.value_and_grad(oracle.goal.margin, x, rows)


def test_without_logits_scores_are_probabilities() -> None:
    oracle, _, x = _oracle(access=Access.LABELS | Access.SCORES)
    assert torch.allclose(oracle.scores(x, torch.arange(10)).sum(1), torch.ones(10))


def test_a_budget_is_never_overrun() -> None:
    oracle, target, x = _oracle(budget=Budget(queries=3, gradients=1))
    rows = torch.arange(10)
    oracle.value_and_grad(oracle.goal.margin, x, rows)
    with pytest.raises(Limit):
        oracle.value_and_grad(oracle.goal.margin, x, rows)
    oracle.scores(x, rows)
    oracle.scores(x, rows)
    seen = sum(target.seen)
    with pytest.raises(Limit, match="budget"):
        oracle.labels(x[:1], rows[:1])
    assert sum(target.seen) == seen
    assert oracle.left(rows).tolist() == [0] * 10
    assert not oracle.open(rows).any()


def test_a_deadline_stops_before_anything_is_spent() -> None:
    oracle, target, x = _oracle(deadline=time.monotonic() - 1)
    with pytest.raises(Limit, match="time"):
        oracle.scores(x, torch.arange(10))
    assert not target.seen
    assert int(oracle.spent.queries.sum()) == 0


def test_no_gradient_on_weights_and_the_right_one_on_inputs() -> None:
    oracle, target, x = _oracle()
    look = oracle.value_and_grad(oracle.goal.margin, x, torch.arange(10))
    assert target.layer.weight.grad is None
    assert not x.requires_grad
    weight, y = target.layer.weight.detach(), oracle.goal.labels
    scores = target.layer(x.flatten(1)).detach()
    rival = scores.scatter(1, y[:, None], -torch.inf).argmax(1)
    assert torch.allclose(look.grad.flatten(1), weight[rival] - weight[y], atol=1e-6)
    assert torch.allclose(look.margin, scores.gather(1, rival[:, None])[:, 0] - scores.gather(1, y[:, None])[:, 0])


def test_nearest_keeps_the_smallest_success_and_stays_open() -> None:
    oracle, target, x = _oracle()
    weight, y = target.layer.weight.detach(), oracle.goal.labels
    space = Image().space("l2", Domain(kind="image", task="classification", classes=3, low=-100.0, high=100.0))
    near = MeteredOracle(target, oracle.goal, space, x, float("inf"), nearest=True)
    rows = torch.arange(10)
    away = (weight[(y + 1) % 3] - weight[y]).reshape(10, 1, 2, 2)
    for size in (40.0, 20.0, 30.0):
        near.margins(x + size * away, rows)
    assert near.best.reached.all()
    assert torch.allclose(near.best.distance, 20 * away.flatten(1).norm(dim=1).to(torch.float64), rtol=1e-5)
    assert len(near.rows) == 10


def test_a_nearest_success_exceeds_the_rounding_of_the_scores() -> None:
    """Judged by labels alone a point on the border is a success; a forward in another order may say otherwise."""
    layer = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    x, rows = torch.full((1, 1), 0.5), torch.zeros(1, dtype=torch.int64)
    space = Image().space("l2", Domain(kind="image", low=-1.0, high=1.0))
    for nearest, firm in ((True, False), (False, True)):
        oracle = MeteredOracle(
            Counting(layer, []), Misclassify(torch.tensor([0])), space, x, float("inf"), access=Access.LABELS,
            nearest=nearest,
        )  # fmt: skip
        oracle.begin()
        # scores near 100, whose float32 neighbours are 8e-6 apart: a margin of 1e-4 is no more than rounding may undo
        layer.bias = nn.Parameter(torch.tensor([100.0, 100.0 - 1e-4]), requires_grad=False)
        assert oracle.reaches(torch.full((1, 1), -1e-4), rows).tolist() == [True]
        assert bool(oracle.best.reached[0]) is firm
        assert oracle.reaches(torch.full((1, 1), -0.01), rows).tolist() == [True]
        assert bool(oracle.best.reached[0])
        layer.bias = None
