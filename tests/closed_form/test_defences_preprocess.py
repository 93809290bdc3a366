"""What stands in front of a model: against another library, and against optima that are known."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vauban.defences.preprocess.front import Cleansed
from vauban.defences.preprocess.jpeg import Compressor
from vauban.defences.preprocess.resize import Placement
from vauban.defences.preprocess.variation import Smoother, divergence, slopes

ZERO, ONE = torch.tensor(0.0), torch.tensor(1.0)


def picture(channels: int, height: int = 24, width: int = 29) -> Tensor:
    """Smooth, with an edge and some noise; in whole grey levels."""
    g = torch.Generator().manual_seed(channels)
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    planes = torch.stack(
        [0.5 + 0.3 * torch.sin(5 * x + c) * torch.cos(4 * y) + 0.2 * (x > 0.6) for c in range(channels)]
    )
    return ((planes + 0.03 * torch.randn(planes.shape, generator=g)).clamp(0, 1) * 255).round() / 255


def by_pillow(x: Tensor, quality: int) -> Tensor:
    levels = (x * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    with io.BytesIO() as file:
        Image.fromarray(levels.squeeze(-1) if len(x) == 1 else levels).save(
            file, "JPEG", quality=quality, subsampling=0
        )
        back = np.asarray(Image.open(file)).astype(np.float32) / 255
    return torch.from_numpy(back.reshape(*x.shape[1:], len(x))).permute(2, 0, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [10, 50, 75, 95])
def test_pictures_come_out_as_a_jpeg_library_has_them(channels: int, quality: int) -> None:
    x = picture(channels)
    mine, theirs = Compressor(ZERO, ONE, quality)(x[None])[0], by_pillow(x, quality)
    apart = 255 * (mine - theirs).abs()
    # the library computes cosines in whole numbers: a wave halfway between two levels may be rounded to the other side
    assert float(apart.mean()) < 1
    assert float((apart <= 1).double().mean()) > (0.95 if quality in (10, 75) else 0.7)
    assert float((mine - x).abs().mean()) > 0


def test_coarser_tables_change_more_and_a_plain_picture_not_at_all() -> None:
    x = picture(1)[None]
    changes = [float((Compressor(ZERO, ONE, quality)(x) - x).abs().mean()) for quality in (95, 50, 10)]
    assert changes == sorted(changes)
    plain = torch.full((1, 1, 8, 8), 128 / 255)
    torch.testing.assert_close(Compressor(ZERO, ONE, 10)(plain), plain)


def test_pictures_without_channels_and_other_ranges() -> None:
    x = picture(1)
    whole = Compressor(ZERO, ONE, 50)(x[None])
    torch.testing.assert_close(Compressor(ZERO, ONE, 50)(x), whole[0])
    shifted = Compressor(torch.tensor(-2.0), torch.tensor(6.0), 50)(8 * x[None] - 2)
    torch.testing.assert_close(shifted, 8 * whole - 2, rtol=1e-4, atol=1e-4)


def test_smoothing_comes_to_the_minimum() -> None:
    """The dual is a lower bound of the primal: where they meet, both are optimal."""
    x, weight = picture(1)[None].double(), 0.08
    low, high = ZERO.double(), ONE.double()

    def cost(z: Tensor) -> float:
        right, below = slopes(z)
        return float((z - x).square().sum() / 2 + weight * (right.square() + below.square()).sqrt().sum())

    costs = [cost(Smoother(low, high, weight, steps)(x)) for steps in (1, 20, 400)]
    assert costs == sorted(costs, reverse=True)
    best = cost(Smoother(low, high, weight, 4000)(x))
    # any field of vectors no longer than 1 bounds the minimum from below
    across, down = torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(4000):
        right, below = slopes(divergence(across, down) - x / weight)
        length = 1 + 0.125 * (right.square() + below.square()).sqrt()
        across, down = (across + 0.125 * right) / length, (down + 0.125 * below) / length
    pulled = weight * divergence(across, down)
    bound = float(x.square().sum() / 2 - (x - pulled).square().sum() / 2)
    assert bound <= best + 1e-9
    assert best - bound < 1e-3 * best
    assert costs[1] < 1.05 * best


def test_slopes_and_divergence_are_adjoint() -> None:
    g = torch.Generator().manual_seed(0)
    x, across, down = (torch.randn(2, 3, 5, 6, generator=g) for _ in range(3))
    right, below = slopes(x)
    assert float((right * across + below * down).sum()) == pytest.approx(
        -float((x * divergence(across, down)).sum()), rel=1e-4
    )


def test_edges_stay_and_noise_goes() -> None:
    g = torch.Generator().manual_seed(1)
    edge = torch.zeros(1, 1, 16, 16)
    edge[..., 8:] = 1
    noisy = (edge + 0.05 * torch.randn(edge.shape, generator=g)).clamp(0, 1)
    smooth = Smoother(ZERO, ONE, 0.1, 200)(noisy)
    for half in (slice(0, 8), slice(8, 16)):
        assert float(smooth[..., half].std()) < 0.3 * float(noisy[..., half].std())
    assert float((smooth[..., 8] - smooth[..., 7]).min()) > 0.8


def placement() -> Placement:
    return Placement(torch.tensor([[6, 5, 2, 1], [8, 8, 0, 0], [7, 8, 0, 0], [5, 5, 3, 3]]), torch.tensor(-1.0))


def test_a_picture_is_laid_where_its_pattern_says() -> None:
    plain = torch.full((1, 2, 8, 8), 0.5)
    room, whole, *_ = placement().views(plain)
    assert torch.equal(whole, plain)
    assert torch.equal(room[0, :, 2:8, 1:6], plain[0, :, :6, :5])
    assert int((room == -1).sum()) == 2 * (64 - 30)
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    small = list(placement().views(ramp))[3][0, 0, 3:8, 3:8]
    torch.testing.assert_close(small[0], (torch.arange(5) + 0.5) * 8 / 5 - 0.5)


def test_pictures_pick_their_pattern_alone_and_all_are_picked() -> None:
    g = torch.Generator().manual_seed(0)
    x, cleanser = torch.rand(400, 1, 8, 8, generator=g), placement()
    together = cleanser(x)
    assert torch.equal(together[37:38], cleanser(x[37:38]))
    views = torch.stack(list(cleanser.views(x)))
    which = (views == together).flatten(2).all(2).double().argmax(0)
    assert torch.equal(views[which, torch.arange(400)], together)
    assert bool((which.bincount(minlength=4) > 60).all())
    nudged = cleanser(x + 1e-6)
    moved = ((nudged - together).abs().flatten(1).amax(1) > 0.01).double().mean()
    assert 0.5 < float(moved) < 0.95


def test_the_soft_slope_of_a_random_placement_is_the_mean_over_all() -> None:
    g = torch.Generator().manual_seed(0)
    x, cleanser = torch.rand(3, 1, 8, 8, generator=g), placement()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    leaf = x.clone().requires_grad_(True)
    answer = Cleansed(cleanser, model, soft=True)(leaf)
    assert torch.equal(answer, Cleansed(cleanser, model)(x))
    (slope,) = torch.autograd.grad(answer[:, 0].sum(), leaf)
    mean = torch.stack([model(z)[:, 0] for z in cleanser.views(leaf)]).mean(0)
    (expected,) = torch.autograd.grad(mean.sum(), leaf)
    torch.testing.assert_close(slope, expected)
