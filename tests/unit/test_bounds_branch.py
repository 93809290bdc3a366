"""The ends of a branch and bound: nothing to split, nothing left to split, no time."""

from __future__ import annotations

import torch
from torch import nn

from vauban.parts.bounds import trace
from vauban.parts.bounds.alpha import Claims
from vauban.parts.bounds.branch import Limits, Problem, search
from vauban.parts.bounds.intervals import propagate, region


def problem(weight: list[list[float]], claim: float) -> Problem:
    """One row at 0, moved by at most 1, through ReLUs; the claim is that their sum stays below `claim`."""
    model = nn.Sequential(nn.Linear(2, len(weight), bias=False), nn.ReLU(), nn.Linear(len(weight), 1, bias=False))
    model[0].weight.data, model[2].weight.data = torch.tensor(weight), torch.ones(1, len(weight))
    x = torch.zeros(1, 2, dtype=torch.float64)
    graph, area = trace(model.double(), x), region(x, "linf", 1.0, -torch.inf, torch.inf)
    claims = Claims(torch.tensor([[[-1.0]]]).double(), torch.tensor([[claim]]).double())
    return Problem(graph, area, propagate(graph, area), claims)


def test_a_claim_with_nothing_to_split_keeps_its_bound() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1, bias=False)).double()
    model[0].weight.data, model[0].bias.data = torch.ones(1, 1).double(), torch.tensor([5.0]).double()
    model[2].weight.data = torch.ones(1, 1).double()
    x = torch.zeros(1, 1, dtype=torch.float64)
    graph, area = trace(model, x), region(x, "linf", 1.0, -torch.inf, torch.inf)
    claims = Claims(torch.tensor([[[-1.0]]]).double(), torch.tensor([[3.0]]).double())
    found = search(Problem(graph, area, propagate(graph, area), claims), Limits(), lambda: False)
    # the largest value is 6, so that the claim misses by 3
    assert torch.allclose(found, torch.tensor([-3.0]).double())


def test_splitting_proves_what_no_line_does() -> None:
    # the sum is |x + y| + |x - y|, at most 2; lines around each bend on its own give more
    tight = problem([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], 2.01)
    assert float(search(tight, Limits(), lambda: False)) > 0


def test_a_false_claim_is_never_proved() -> None:
    false = problem([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], 1.99)
    assert float(search(false, Limits(cases=200), lambda: False)) <= 0


def test_without_time_the_bound_is_that_of_the_root() -> None:
    tight = problem([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], 2.01)
    assert float(search(tight, Limits(), lambda: True)) <= 0
