"""What holds for every attribution method, on networks: the same in any batch, complete, no traces, Captum's numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients as CaptumIntegrated
from captum.attr import LayerAttribution, LayerGradCam
from captum.attr import Occlusion as CaptumOcclusion
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vauban.core.rng import Rng
from vauban.parts.attribution import METHODS, GradCam, IntegratedGradients, Means, Occlusion, Score, completeness_gap


def picture_net(seed: int = 0, inplace: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(inplace), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(inplace), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 3 * 3, 5),
        )  # fmt: skip


def row_net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def of(net: nn.Module, classes: Tensor) -> Score:
    return lambda z, rows: net(z).gather(1, classes[rows, None])[:, 0]


def means(x: Tensor, net: nn.Module, **more: Any) -> Means:
    return Means(**{"baseline": torch.zeros_like(x), "rng": Rng(0, len(x)), "module": net, "batch": 32, **more})


@pytest.mark.parametrize("name", METHODS)
def test_rows_do_not_depend_on_the_batch(name: str) -> None:
    net, x = picture_net(), random(5, 1, 12, 12)
    classes = net(x).argmax(1)
    method = METHODS[name]()
    whole = method(of(net, classes), x, means(x, net))
    for batch in (16, 200):
        assert torch.equal(method(of(net, classes), x, means(x, net, batch=batch)), whole)
    for row in range(5):
        one = slice(row, row + 1)
        alone = method(of(net, classes[one]), x[one], means(x[one], net, rng=Rng(0, [row])))
        assert torch.equal(alone, whole[one])


@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_left_behind(name: str) -> None:
    net, x = picture_net().train(), random(3, 1, 12, 12)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    kept, state = x.clone(), torch.get_rng_state()
    METHODS[name]()(of(net, torch.zeros(3, dtype=torch.int64)), x, means(x, net))
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in net.modules())
    assert all(part.training for part in net.modules())
    assert torch.equal(x, kept)
    assert not x.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["integrated_gradients", "smooth_grad", "grad_cam"])
def test_hooks_go_when_the_model_fails(name: str) -> None:
    net, x = picture_net(), random(3, 1, 12, 12)

    def failing(z: Tensor, rows: Tensor) -> Tensor:
        if z.requires_grad:
            net(z)
            raise RuntimeError("broken")
        return net(z)[:, 0]

    with pytest.raises(RuntimeError, match="broken"):
        METHODS[name]()(failing, x, means(x, net))
    assert not any(part._forward_hooks for part in net.modules())


@pytest.mark.parametrize("name", METHODS)
def test_frozen_weights_change_nothing(name: str) -> None:
    net, x = picture_net(), random(2, 1, 12, 12)
    classes = torch.tensor([1, 3])
    usual = METHODS[name]()(of(net, classes), x, means(x, net))
    assert torch.equal(METHODS[name]()(of(net.requires_grad_(False), classes), x, means(x, net)), usual)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 3), start=st.floats(-1, 1))
def test_integrated_gradients_are_complete(seed: int, scale: float, start: float) -> None:
    net, x = row_net(seed), scale * random(4, 6, seed=seed)
    score, how = of(net, torch.tensor([0, 1, 2, 0])), means(x, net, baseline=torch.full_like(x, start))
    found = IntegratedGradients()(score, x, how)
    gap, change = completeness_gap(score, x, found, how)
    assert bool((gap <= 1e-4 * (1 + change.abs())).all())
    assert torch.allclose(found.double().sum(1), change, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_other_weights_other_attributions(name: str) -> None:
    """Randomised parameters: a method that does not notice shows the picture, not the model (Adebayo et al. 2018)."""
    x, classes = random(8, 1, 12, 12), torch.arange(8) % 5
    maps = [METHODS[name]()(of(net, classes), x, means(x, net)) for net in (picture_net(0), picture_net(0))]
    assert torch.equal(*maps)
    last = picture_net(0)
    last[7].load_state_dict(picture_net(1)[7].state_dict())  # the last layer alone
    for other in (last, picture_net(1)):
        changed = METHODS[name]()(of(other, classes), x, means(x, other))
        alike = nn.functional.cosine_similarity(maps[0].flatten(1), changed.flatten(1))
        assert float(alike.abs().mean()) < 0.8


@pytest.mark.parametrize("rule", [("gauss_legendre", "gausslegendre"), ("midpoint", "riemann_middle")])
@pytest.mark.parametrize("rows", [False, True])
def test_integrated_gradients_are_those_of_captum(rule: tuple[str, str], rows: bool) -> None:
    net, x = (row_net(), random(7, 6)) if rows else (picture_net(), random(7, 1, 12, 12))
    classes, start = net(x).argmax(1), 0.3 * torch.ones_like(x)
    ours = IntegratedGradients(rule=rule[0])(of(net, classes), x, means(x, net, baseline=start))
    theirs = CaptumIntegrated(net).attribute(x, start, target=classes, n_steps=50, method=rule[1])
    assert float(ours.abs().max()) > 5e-3
    assert float((ours - theirs).abs().max()) <= 2e-6


@pytest.mark.parametrize(("window", "stride"), [(3, 2), (4, 4), (5, 1), (12, 12)])
def test_occlusion_is_that_of_captum(window: int, stride: int) -> None:
    net, x = picture_net(), random(3, 1, 12, 12)
    classes, start = net(x).argmax(1), 0.3 * torch.ones_like(x)
    ours = Occlusion(window=window, stride=stride)(of(net, classes), x, means(x, net, baseline=start))
    theirs = CaptumOcclusion(net).attribute(
        x, (1, window, window), strides=(1, stride, stride), baselines=start, target=classes
    )
    assert float((ours - theirs).abs().max()) <= 2e-6


def test_occlusion_of_features_is_that_of_captum() -> None:
    net, x = row_net(), random(7, 6)
    classes = net(x).argmax(1)
    theirs = CaptumOcclusion(net).attribute(x, (1,), target=classes)
    assert float((Occlusion()(of(net, classes), x, means(x, net)) - theirs).abs().max()) <= 2e-6


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
def test_grad_cam_is_that_of_captum(positive: bool, inplace: bool) -> None:
    net, x = picture_net(inplace=inplace), random(4, 1, 12, 12)
    classes = picture_net()(x).argmax(1)
    ours = GradCam(positive=positive)(of(net, classes), x, means(x, net))
    plain = picture_net()
    theirs = LayerGradCam(plain, plain[3]).attribute(x, target=classes, relu_attributions=positive).detach()
    theirs = LayerAttribution.interpolate(theirs, (12, 12), "bilinear")
    assert float(ours.abs().max()) > 1e-3
    assert float((ours - theirs).abs().max()) <= 2e-6
