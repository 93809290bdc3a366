"""Attributions of models whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vauban.core.rng import Rng
from vauban.parts.attribution import (
    METHODS,
    GradCam,
    IntegratedGradients,
    Means,
    Occlusion,
    SmoothGrad,
    completeness_gap,
)
from vauban.schema.errors import NotOffered


def means(x: Tensor, baseline: float | Tensor = 0.0, **more: object) -> Means:
    start = baseline if isinstance(baseline, Tensor) else torch.full_like(x, baseline)
    return Means(baseline=start, rng=Rng(0, len(x)), **more)  # type: ignore[arg-type]


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


WEIGHT = torch.tensor([1.0, -2.0, 0.5, 3.0])


def linear(z: Tensor, rows: Tensor) -> Tensor:
    return z @ WEIGHT + 7


@pytest.mark.parametrize("rule", ["gauss_legendre", "midpoint"])
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_a_linear_score_is_shared_out_by_weight_times_distance(rule: str, steps: int) -> None:
    x = inputs(5, 4)
    found = IntegratedGradients(steps=steps, rule=rule)(linear, x, means(x, 0.25))
    assert torch.allclose(found, WEIGHT * (x - 0.25), atol=1e-6)


def test_occluding_one_feature_of_a_linear_score_is_the_same() -> None:
    x = inputs(5, 4)
    assert torch.allclose(Occlusion()(linear, x, means(x, 0.25)), WEIGHT * (x - 0.25), atol=1e-5)


def test_noise_does_not_change_the_slope_of_a_linear_score() -> None:
    x = inputs(5, 4)
    found = SmoothGrad(samples=7, noise=0.3)(linear, x, means(x))
    assert torch.allclose(found, WEIGHT.expand(5, 4), atol=1e-6)


def test_a_quadratic_form() -> None:
    x = inputs(5, 4)

    def square(z: Tensor, rows: Tensor) -> Tensor:
        return (WEIGHT * z * z).sum(1)

    found = IntegratedGradients(steps=1)(square, x, means(x))  # one Gauss point is exact up to degree 1
    assert torch.allclose(found, WEIGHT * x * x, atol=1e-5)
    # the mean slope over noise is the slope plus 2 w times the mean noise
    draws = torch.stack([Rng(0, 5).child("smooth_grad", s).normal(torch.arange(5), (4,)) for s in range(3)])
    smooth = SmoothGrad(samples=3, noise=0.1)(square, x, means(x, width=2.0))
    assert torch.allclose(smooth, 2 * WEIGHT * (x + 0.2 * draws.mean(0)), atol=1e-5)


def test_gauss_points_are_exact_for_polynomials() -> None:
    x = inputs(6, 1).abs() + 0.5
    found = IntegratedGradients(steps=3)(lambda z, rows: z[:, 0] ** 6, x, means(x))  # its slope has degree 5
    assert torch.allclose(found, x**6, rtol=1e-5)
    rough = IntegratedGradients(steps=3, rule="midpoint")(lambda z, rows: z[:, 0] ** 6, x, means(x))
    assert not torch.allclose(rough, x**6, rtol=1e-2)


def test_the_score_is_told_which_row_it_scores() -> None:
    x = inputs(5, 4)
    signs = torch.tensor([1.0, -1.0, 2.0, 0.0, 3.0])

    def scaled(z: Tensor, rows: Tensor) -> Tensor:
        return signs[rows] * (z @ WEIGHT)

    wanted = signs[:, None] * WEIGHT
    for batch in (1, 3, 64):
        how = means(x, batch=batch)
        assert torch.allclose(IntegratedGradients(steps=5)(scaled, x, how), wanted * x, atol=1e-5)
        assert torch.allclose(SmoothGrad(samples=5)(scaled, x, how), wanted, atol=1e-5)
        assert torch.allclose(Occlusion()(scaled, x, how), wanted * x, atol=1e-5)


def test_a_window_takes_the_mean_fall_of_what_covers_a_pixel() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    found = Occlusion(window=2, stride=2)(lambda z, rows: z.flatten(1).sum(1), x, means(x))
    blocks = nn.functional.avg_pool2d(x, 2) * 4
    assert torch.equal(found, blocks.repeat_interleave(2, 2).repeat_interleave(2, 3))
    whole = Occlusion(window=4, stride=1)(lambda z, rows: z.flatten(1).sum(1), x, means(x))
    assert torch.equal(whole, torch.full_like(x, 120.0))


def test_pictures_in_any_order_of_axes() -> None:
    first = inputs(2, 3, 8, 8)
    last = first.movedim(1, -1).contiguous()
    mass = Occlusion(window=3)
    usual = mass(lambda z, rows: z.square().flatten(1).sum(1), first, means(first))
    other = mass(lambda z, rows: z.square().flatten(1).sum(1), last, means(last))
    assert torch.allclose(usual.movedim(1, -1), other, atol=1e-5)
    grey = first[:, 0].contiguous()
    assert mass(lambda z, rows: z.flatten(1).sum(1), grey, means(grey)).shape == grey.shape


def test_grad_cam_of_one_convolution() -> None:
    """Maps A_k = w_k x, score = sum_k v_k mean(A_k): the map is relu(sum_k v_k w_k x / size)."""
    x = inputs(3, 1, 4, 4)
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, -3.0]).reshape(2, 1, 1, 1))
        net[3].weight.copy_(torch.tensor([[2.0, 0.5]]))
    wanted = (2.0 * 1.0 + 0.5 * -3.0) / 16 * x
    how = means(x, module=net)

    def score(z: Tensor, rows: Tensor) -> Tensor:
        return net(z)[:, 0]

    assert torch.allclose(GradCam(positive=False)(score, x, how), wanted, atol=1e-6)
    assert torch.allclose(GradCam()(score, x, how), wanted.relu(), atol=1e-6)


def test_grad_cam_needs_a_convolution() -> None:
    x = inputs(2, 1, 4, 4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    with pytest.raises(NotOffered, match="integrated_gradients, smooth_grad or occlusion"):
        GradCam()(lambda z, rows: net(z)[:, 0], x, means(x, module=net))
    with pytest.raises(NotOffered, match="no"):
        GradCam()(lambda z, rows: z.flatten(1).sum(1), x, means(x))


def test_a_score_without_a_slope_has_no_slopes() -> None:
    x = inputs(3, 4)

    def flat(z: Tensor, rows: Tensor) -> Tensor:
        return z.argmax(1).float()

    assert not IntegratedGradients()(flat, x, means(x)).any()
    assert not SmoothGrad()(flat, x, means(x)).any()


def test_the_gap_of_completeness() -> None:
    x = inputs(3, 4)
    halves = IntegratedGradients()(linear, x, means(x)) / 2
    gap, change = completeness_gap(linear, x, halves, means(x))
    assert torch.allclose(change, (x @ WEIGHT).double(), atol=1e-5)
    assert torch.allclose(gap, change.abs() / 2, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_no_rows_are_no_trouble(name: str) -> None:
    x = torch.zeros(0, 1, 4, 4)
    assert METHODS[name]()(lambda z, rows: z.flatten(1).sum(1), x, means(x)).shape == x.shape


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (IntegratedGradients, {"steps": 0}),
        (IntegratedGradients, {"rule": "simpson"}),
        (SmoothGrad, {"samples": 0}),
        (SmoothGrad, {"noise": -0.1}),
        (SmoothGrad, {"noise": float("nan")}),
        (Occlusion, {"window": -1}),
        (Occlusion, {"window": 2, "stride": 3}),
    ],
)
def test_settings_that_mean_nothing(method: type, settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        method(**settings)
