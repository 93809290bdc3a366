"""A linear target is learnt from its answers, and what breaks the copy breaks the target, at about the known radius."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linear import Linear
from torch import Tensor, nn

from vauban.attacks.evasion.rehearsal import Stage, rivals, trust
from vauban.attacks.evasion.substitutes import Ensemble, payers
from vauban.attacks.evasion.transfer import Transfer
from vauban.core.attack import EvasionScene
from vauban.core.rng import Rng
from vauban.core.target import Outputs
from vauban.engine.oracle import MeteredOracle
from vauban.parts.goals import ClassAs, Misclassify, Shift
from vauban.parts.projections import SPACES
from vauban.schema.access import EVERYTHING, Access
from vauban.schema.threat import Budget

DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}
D, N = 16, 12


def plane(classes: int, seed: int = 0) -> tuple[Linear, Tensor, Tensor]:
    """A target, inputs to attack, and inputs of the same kind."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(classes, D, generator=g)
    return Linear(w, torch.zeros(classes)), torch.randn(N, D, generator=g), torch.randn(5000, D, generator=g)


def nearest(target: Linear, x: Tensor, norm: str) -> Tensor:
    """The distance to the nearest other class, `[n]`."""
    z = target.forward(x).values
    y = z.argmax(1)
    size = torch.linalg.vector_norm(target.w[None] - target.w[y][:, None], ord=DUAL[norm], dim=2)
    return torch.where(size > 0, (z.amax(1, keepdim=True) - z) / size, torch.inf).amin(1)


def attack(
    made: Transfer,
    target: Linear,
    goal: Any,
    norm: str,
    x: Tensor,
    donors: Tensor,
    radius: float,
    access: Access = EVERYTHING,
    budget: Budget | None = None,
) -> tuple[MeteredOracle, dict[str, Any]]:
    space = SPACES[norm]()
    oracle = MeteredOracle(target, goal, space, x, radius, access=access, budget=budget)
    oracle.begin()
    classes = None if target.kind == "values" else len(target.w)
    found = made(EvasionScene(oracle, x, space, radius, classes, donors), Rng(0, len(x)))
    return oracle, found.facts


SMALL: dict[str, Any] = {"queries": 120, "candidates": 2, "members": 3, "training": 400, "steps": 10, "neighbours": 2}


@pytest.mark.parametrize("access", [Access.LABELS, Access.LABELS | Access.SCORES], ids=["labels", "scores"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_two_classes_are_broken_at_the_known_radius(norm: str, access: Access) -> None:
    """To five percent, as by every attack that only asks; labels tell less, so it takes more of them."""
    target, x, donors = plane(2)
    x = x / nearest(target, x, norm)[:, None]
    goal = Misclassify(target.forward(x).labels)
    made = Transfer(**SMALL | {"queries": 120 if Access.SCORES in access else 420})
    for factor, wanted in ((0.99, False), (1.05, True)):
        oracle, facts = attack(made, target, goal, norm, x, donors, factor, access)
        assert oracle.best.reached.tolist() == [wanted] * N, factor
    assert facts["agreement"] > 0.95


def test_queries_are_what_was_really_asked_and_nobody_pays_twice() -> None:
    """Answers and candidates together, counted at the target itself; and no gradient of the target."""
    target, x, donors = plane(3)
    x = 3 * x
    asked: list[int] = []

    class Counting(Linear):
        def forward(self, x: Tensor) -> Outputs:
            asked.append(len(x))
            assert not torch.is_grad_enabled()
            return super().forward(x)

    counting = Counting(target.w, target.b)
    goal = Misclassify(target.forward(x).labels)
    quick = SMALL | {"training": 20, "members": 2}
    made = Transfer(**quick)
    oracle, facts = attack(made, counting, goal, "l2", x, donors, 1e-3)
    assert sum(asked) == int(oracle.spent.queries.sum())
    assert facts["answers"] == N * (120 - 2)
    assert oracle.spent.queries.tolist() == [120 + 1] * N
    assert facts["carried_over"] == [0, 0]
    assert int(oracle.spent.gradients.sum()) == 0
    # the threat allows less, and answers are bounded
    oracle, facts = attack(made, target, goal, "l2", x, donors, 1e-3, budget=Budget(queries=31))
    assert (facts["answers"], oracle.spent.queries.tolist()) == (N * 28, [31] * N)
    oracle, facts = attack(Transfer(**quick, answers=100), target, goal, "l2", x, donors, 1e-3)
    assert facts["answers"] == 100
    assert int(oracle.spent.queries.max() - oracle.spent.queries.min()) <= 1


def test_payers_take_turns() -> None:
    assert payers(torch.tensor([2, 0, 3]), 100).tolist() == [0, 2, 0, 2, 2]
    assert payers(torch.tensor([2, 0, 3]), 3).tolist() == [0, 2, 0]
    assert payers(torch.tensor([2**60, 1]), 4).tolist() == [0, 1, 0, 0]
    assert payers(torch.zeros(0, dtype=torch.int64), 3).tolist() == []


@pytest.mark.parametrize("residual", [0.4, -0.4])
def test_a_regression_is_shifted_the_nearer_way(residual: float) -> None:
    target, x, donors = plane(2)
    target = Linear(target.w, target.b, "values")
    value = target.forward(x).values
    unit = 1 / float(torch.linalg.vector_norm(target.w[0]))
    goal = Shift(value - residual, 1.0)
    for factor, wanted in ((0.99, False), (1.05, True)):
        oracle, _ = attack(Transfer(**SMALL), target, goal, "l2", x, donors, 0.6 * unit * factor)
        assert oracle.best.reached.tolist() == [wanted] * N


def linear(w: Tensor, b: Tensor) -> nn.Module:
    layer = nn.Linear(w.shape[1], w.shape[0])
    layer.weight.data, layer.bias.data = w.clone(), b.clone()
    return layer


@pytest.mark.parametrize("norm", sorted(DUAL))
def test_substitutes_that_are_brought_along_are_asked_alone(norm: str) -> None:
    """The target itself as a substitute: the optimum to a percent (more in L1, whose steps are sparse), one query a candidate."""
    target, x, donors = plane(2)
    x = x / nearest(target, x, norm)[:, None]
    y = target.forward(x).labels
    module = linear(target.w, target.b)
    before = [p.clone() for p in module.parameters()]
    made = Transfer(substitutes=[module], steps=20 if norm == "l1" else 10)
    for goal in (Misclassify(y), ClassAs(1 - y)):
        for factor, wanted in ((0.99, False), (1.01, True)):
            oracle, facts = attack(made, target, goal, norm, x, donors, factor)
            assert oracle.best.reached.tolist() == [wanted] * N, factor
    assert oracle.spent.queries.tolist() == [2] * N
    assert "answers" not in facts
    assert made.price(2).queries == 4
    assert made.price(2).trainings == 0
    assert all(torch.equal(p, q) and p.requires_grad for p, q in zip(module.parameters(), before, strict=True))


def test_points_that_fool_more_substitutes_are_tried_first() -> None:
    """Each of three substitutes looks at one feature; the target at all."""
    w = torch.eye(3)
    members = tuple((linear(torch.stack([-row, row]), torch.tensor([1.0, -1.0])),) for row in w)
    ensemble = Ensemble(members, "logits")
    goal, rows = Misclassify(torch.zeros(4, dtype=torch.int64)), torch.arange(4)
    points = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0], [1.5, 1.5, 0.0], [1.1, 1.1, 1.1]])
    found = trust(ensemble, goal, points, rows)
    assert found.floor().tolist() == [0, 1, 2, 3]


def test_networks_of_a_walk_take_turns_look_by_look() -> None:
    members = (
        (linear(torch.tensor([[1.0], [0.0]]), torch.zeros(2)), linear(torch.tensor([[0.0], [3.0]]), torch.zeros(2))),
    )
    goal, rows = Misclassify(torch.zeros(2, dtype=torch.int64)), torch.arange(2)
    stage, x = Stage(Ensemble(members, "logits"), goal, torch.zeros(2, 1), rows), torch.ones(2, 1)
    slopes = [stage.value_and_grad(goal.margin, x, rows).grad.flatten().tolist() for _ in range(3)]
    assert slopes == [[-1.0, -1.0], [3.0, 3.0], [-1.0, -1.0]]


def test_each_candidate_goes_to_a_class_of_its_own() -> None:
    """The likeliest first, and neither the true one nor where the first candidate went."""
    w = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    target = Linear(w, torch.tensor([1.0, 0.0, 0.0, 0.0]))
    x = torch.zeros(2, 2)
    space, goal = SPACES["l2"](), Misclassify(torch.zeros(2, dtype=torch.int64))
    oracle = MeteredOracle(target, goal, space, x, 1.0)
    scene, ensemble = EvasionScene(oracle, x, space, 1.0, 4), Ensemble(((linear(w, target.b),),), "logits")
    # row 1 alone is still open: its first candidate is taken for class 1, and class 2 comes next
    first, rows = torch.tensor([[0.9, 0.2]]), torch.tensor([1])
    found = rivals(scene, ensemble, first, rows, 5)
    points = torch.tensor([[0.3, 0.5]])
    z = target.forward(points).values[0]
    leads = [float(loss(ensemble.outputs(points, 0), rows).detach()) for loss in found]
    assert leads == pytest.approx([float(z[2] - z[0]), float(z[3] - z[0])])
    assert rivals(scene, ensemble, first, rows, 0) == []
