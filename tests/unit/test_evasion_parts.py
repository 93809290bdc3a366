"""Losses, goals, schedules and windows."""

from __future__ import annotations

import pytest
import torch

from vauban.core.rng import Rng
from vauban.core.target import Outputs
from vauban.parts import losses
from vauban.parts.estimators import boundary_normal
from vauban.parts.goals import ClassAs, Misclassify, ReachValue, Shift
from vauban.parts.schedules import checkpoints, square_share
from vauban.parts.search import Grid, bump, dipole

ROWS = torch.arange(3)
Z = torch.tensor([[2.0, 1.0, -1.0, 0.5], [0.0, 3.0, 1.0, 2.0], [1.0, 1.0, 5.0, 0.0]], dtype=torch.float64)
Y = torch.tensor([0, 2, 2])


def test_losses_agree_for_logits_and_their_probabilities() -> None:
    logits, chances = Outputs(Z, "logits"), Outputs(Z.softmax(1), "probabilities")
    for table in (losses.UNTARGETED, losses.TARGETED):
        for name, loss in table.items():
            assert torch.allclose(loss(logits, Y), loss(chances, Y)), name


def test_losses_by_hand() -> None:
    out = Outputs(Z, "logits")
    assert torch.allclose(losses.cross_entropy(out, Y), torch.nn.functional.cross_entropy(Z, Y, reduction="none"))
    assert losses.margin(out, Y).tolist() == [-1.0, 2.0, -4.0]
    assert losses.dlr(out, Y).tolist() == pytest.approx([-1 / 1.5, 2 / 2.0, -4 / 4.0])
    wanted = torch.tensor([1, 1, 0])
    assert losses.dlr_between(out, Y, wanted).tolist() == pytest.approx([-1 / 2.25, 2 / 2.5, -4 / 4.5])


@pytest.mark.parametrize("classes", [2, 3])
def test_ratios_fall_back_to_differences_with_few_classes(classes: int) -> None:
    out, y = Outputs(Z[:, :classes], "logits"), torch.tensor([0, 1, 0])
    assert torch.equal(losses.targeted_dlr(out, y), losses.targeted_margin(out, y))
    if classes == 2:
        assert torch.equal(losses.dlr(out, y), losses.margin(out, y))


@pytest.mark.parametrize("gap", [20.0, 40.0, 80.0])
def test_cross_entropy_keeps_its_slope_where_the_probability_rounds_to_one(gap: float) -> None:
    z = torch.tensor([[gap, 0.0, -1.0]], requires_grad=True)
    value = losses.cross_entropy(Outputs(z, "logits"), torch.tensor([0]))
    (slope,) = torch.autograd.grad(value.sum(), z)
    value = value.detach()
    exact = torch.log1p(torch.exp(torch.tensor([-gap, -gap - 1.0], dtype=torch.float64)).sum())
    assert value.item() == pytest.approx(float(exact), rel=1e-4)
    assert slope[0, 0] < 0 < slope[0, 1]
    assert float(slope.sum()) == pytest.approx(0.0, abs=1e-6 * float(slope.abs().max()))


def test_labels_have_no_losses_but_a_margin() -> None:
    out = Outputs(torch.tensor([0, 1, 2]), "labels")
    with pytest.raises(ValueError, match="needs logits or probabilities"):
        losses.margin(out, Y)
    assert Misclassify(Y).margin(out, ROWS).tolist() == [-1.0, 1.0, -1.0]
    assert ClassAs(Y).margin(out, ROWS).tolist() == [1.0, -1.0, 1.0]


def test_goals_are_reached_exactly_where_the_prediction_says_so() -> None:
    out = Outputs(Z, "logits")
    assert (Misclassify(Y).margin(out, ROWS) > 0).tolist() == (out.labels != Y).tolist()
    assert (ClassAs(Y).margin(out, ROWS) > 0).tolist() == (out.labels == Y).tolist()
    back = torch.tensor([2, 0])
    assert torch.equal(Misclassify(Y).margin(out[back], back), Misclassify(Y).margin(out, ROWS)[back])


def test_regression_goals() -> None:
    out = Outputs(torch.tensor([1.0, -1.0, 0.0]), "values")
    shift, reach = Shift(torch.zeros(3), 0.75), ReachValue(torch.zeros(3), 0.75)
    assert shift.margin(out, ROWS).tolist() == [0.25, 0.25, -0.75]
    assert reach.margin(out, ROWS).tolist() == [-0.25, -0.25, 0.75]
    up, down = shift.objectives("ce")
    assert up(out, ROWS).tolist() == [1.0, -1.0, 0.0]
    assert down(out, ROWS).tolist() == [-1.0, 1.0, 0.0]
    exact = torch.zeros(1, requires_grad=True)
    (slope,) = torch.autograd.grad(shift.margin(Outputs(exact, "values"), ROWS[:1]).sum(), exact)
    assert float(slope) != 0.0, "an exact prediction must leave an attacker a direction"
    with pytest.raises(ValueError, match="above 0"):
        Shift(torch.zeros(1), 0.0)


def test_checkpoints_are_those_of_the_paper() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(2) == [1]


def test_square_share_halves_on_time() -> None:
    assert [square_share(0.8, step, 10_000) for step in (0, 10, 11, 51, 201, 9000)] == [
        0.8,
        0.8,
        0.4,
        0.2,
        0.1,
        0.8 / 512,
    ]


def test_windows_reach_every_cell_and_none_outside() -> None:
    grid, n = Grid.of((2, 5, 4)), 400
    rows = torch.arange(n)
    corner = grid.window((2, 3), Rng(0, n), rows)
    mask = grid.mask((2, 3), corner)
    assert mask.shape == (n, 1, 5, 4)
    assert mask.flatten(1).sum(1).tolist() == [6] * n
    assert bool(mask.any(0).all()), "the last row and column count, too"
    pattern = torch.rand(n, 2, 3) + 0.1
    assert torch.equal(grid.placed(pattern, corner) > 0, mask)
    assert (Grid.of((7,)).channels, Grid.of((7,)).height, Grid.of((7,)).width) == (1, 1, 7)
    assert Grid.of((7,)).sides(0.3) == (1, 2)


def test_bumps_have_norm_one_and_peak_in_the_middle() -> None:
    for sides in ((1, 1), (1, 6), (5, 5), (4, 7)):
        assert float(bump(*sides).norm()) == pytest.approx(1.0)
        assert float(dipole(*sides).norm()) == pytest.approx(1.0)
    assert int(bump(5, 5).argmax()) == 12
    assert float(dipole(4, 4).sum()) == pytest.approx(0.0, abs=1e-6)


def test_the_normal_of_a_plane_is_found_from_answers() -> None:
    n, probes, d = 2, 4000, 6
    normal = torch.nn.functional.normalize(torch.tensor([[1.0, 2, 0, 0, 0, 0], [0, 0, 0, -1, 1, 1]]), dim=1)
    noise = Rng(0, n).normal(torch.arange(n), (probes, d))
    asked = torch.ones(n, probes, dtype=torch.bool)
    asked[1, 2000:] = False
    found = boundary_normal(noise, ((noise * normal[:, None]).sum(2) > 0) & asked, asked)
    cosine = torch.nn.functional.cosine_similarity(found, normal)
    assert bool((cosine > 0.98).all())
