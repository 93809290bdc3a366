"""Distances that people see, against published values and the formulas written out pixel by pixel."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vauban.core.data import Data
from vauban.core.target import Domain
from vauban.domains.catalog import modality
from vauban.engine.case import Case, Check
from vauban.engine.execute import execute
from vauban.parts.distances import (
    K1,
    K2,
    SCALES,
    SPREAD,
    WINDOW,
    ciede2000,
    colour_difference,
    in_parts,
    lab,
    ms_ssim,
    pictures,
    ssim,
)
from vauban.schema.threat import ThreatModel
from vauban.targets.torch import TorchTarget

SHARMA = """
50.0000 2.6772 -79.7751 50.0000 0.0000 -82.7485 2.0425
50.0000 3.1571 -77.2803 50.0000 0.0000 -82.7485 2.8615
50.0000 2.8361 -74.0200 50.0000 0.0000 -82.7485 3.4412
50.0000 -1.3802 -84.2814 50.0000 0.0000 -82.7485 1.0000
50.0000 -1.1848 -84.8006 50.0000 0.0000 -82.7485 1.0000
50.0000 -0.9009 -85.5211 50.0000 0.0000 -82.7485 1.0000
50.0000 0.0000 0.0000 50.0000 -1.0000 2.0000 2.3669
50.0000 -1.0000 2.0000 50.0000 0.0000 0.0000 2.3669
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0009 7.1792
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0010 7.1792
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0011 7.2195
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0012 7.2195
50.0000 -0.0010 2.4900 50.0000 0.0009 -2.4900 4.8045
50.0000 -0.0010 2.4900 50.0000 0.0010 -2.4900 4.8045
50.0000 -0.0010 2.4900 50.0000 0.0011 -2.4900 4.7461
50.0000 2.5000 0.0000 50.0000 0.0000 -2.5000 4.3065
50.0000 2.5000 0.0000 73.0000 25.0000 -18.0000 27.1492
50.0000 2.5000 0.0000 61.0000 -5.0000 29.0000 22.8977
50.0000 2.5000 0.0000 56.0000 -27.0000 -3.0000 31.9030
50.0000 2.5000 0.0000 58.0000 24.0000 15.0000 19.4535
50.0000 2.5000 0.0000 50.0000 3.1736 0.5854 1.0000
50.0000 2.5000 0.0000 50.0000 3.2972 0.0000 1.0000
50.0000 2.5000 0.0000 50.0000 1.8634 0.5757 1.0000
50.0000 2.5000 0.0000 50.0000 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""
"""L a b, L a b, difference: table 1 of Sharma, Wu and Dalal 2005, Color Research and Application 30(1), 21-30."""


def table() -> Tensor:
    return torch.tensor([[float(v) for v in line.split()] for line in SHARMA.split("\n") if line], dtype=torch.float64)


def test_ciede2000_gives_the_published_differences_both_ways() -> None:
    rows = table()
    assert rows.shape == (34, 7)
    for one, two in ((rows[:, :3], rows[:, 3:6]), (rows[:, 3:6], rows[:, :3])):
        assert float((ciede2000(one, two) - rows[:, 6]).abs().max()) < 5.1e-5


def test_lab_of_the_corners_of_the_colour_cube() -> None:
    """White, black and grey have no colour; red as published for sRGB under D65 (IEC 61966-2-1)."""
    rgb = torch.tensor([[1.0, 1, 1], [0, 0, 0], [0.5, 0.5, 0.5], [1, 0, 0]])
    found = lab(rgb)
    torch.testing.assert_close(found[0], torch.tensor([100.0, 0, 0], dtype=torch.float64), atol=1e-9, rtol=0)
    assert float(found[1].abs().max()) < 1e-9
    assert float(found[2, 1:].abs().max()) < 1e-9
    torch.testing.assert_close(found[3], torch.tensor([53.24, 80.09, 67.20], dtype=torch.float64), atol=0.01, rtol=0)
    assert float(ciede2000(found[0], found[1])) == pytest.approx(100.0)


def slow(z: Tensor, x: Tensor, width: int) -> tuple[float, float]:
    """(SSIM, structure alone) of two planes `[h, w]`, window by window."""
    spread = SPREAD * width / WINDOW
    line = [math.exp(-0.5 * ((i - (width - 1) / 2) / spread) ** 2) for i in range(width)]
    weights = torch.tensor([[a * b for b in line] for a in line], dtype=torch.float64)
    weights /= weights.sum()
    whole, part = [], []
    for i in range(x.shape[0] - width + 1):
        for j in range(x.shape[1] - width + 1):
            a, b = z[i : i + width, j : j + width].double(), x[i : i + width, j : j + width].double()
            ma, mb = float((weights * a).sum()), float((weights * b).sum())
            va, vb = float((weights * (a - ma) ** 2).sum()), float((weights * (b - mb) ** 2).sum())
            both = float((weights * (a - ma) * (b - mb)).sum())
            structure = (2 * both + K2**2) / (va + vb + K2**2)
            part.append(structure)
            whole.append((2 * ma * mb + K1**2) / (ma * ma + mb * mb + K1**2) * structure)
    return sum(whole) / len(whole), sum(part) / len(part)


@pytest.mark.parametrize(
    ("shape", "width"), [((2, 1, 15, 13), 11), ((1, 3, 8, 8), 7), ((1, 1, 5, 9), 5), ((1, 1, 1, 4), 1)]
)
def test_ssim_is_the_mean_over_windows(shape: tuple[int, ...], width: int) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=g)
    z = (x + 0.2 * torch.randn(shape, generator=g)).clamp(0, 1)
    expected = [sum(slow(z[n, c], x[n, c], width)[0] for c in range(shape[1])) / shape[1] for n in range(shape[0])]
    assert ssim(z, x).tolist() == pytest.approx(expected, abs=1e-9)


def test_ms_ssim_multiplies_the_scales() -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.rand(1, 1, 26, 24, generator=g).double()
    z = (x + 0.1 * torch.randn(x.shape, generator=g)).clamp(0, 1)
    small = [torch.nn.functional.avg_pool2d(side, 2) for side in (z, x)]
    first, second = SCALES[0] / (SCALES[0] + SCALES[1]), SCALES[1] / (SCALES[0] + SCALES[1])
    fine, coarse = slow(z[0, 0], x[0, 0], 11)[1], slow(small[0][0, 0], small[1][0, 0], 11)[0]
    assert float(ms_ssim(z, x)) == pytest.approx(fine**first * coarse**second, abs=1e-9)
    assert torch.equal(ms_ssim(z[..., :20, :20], x[..., :20, :20]), ssim(z[..., :20, :20], x[..., :20, :20]))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), side=st.integers(2, 40), channels=st.sampled_from([1, 3]), noise=st.floats(0.0, 0.5))
def test_a_picture_is_like_itself_and_likeness_is_symmetric(seed: int, side: int, channels: int, noise: float) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(3, channels, side, side, generator=g)
    z = (x + noise * torch.randn(x.shape, generator=g)).clamp(0, 1)
    for measure in (ssim, ms_ssim):
        assert measure(x, x).tolist() == pytest.approx([1.0] * 3, abs=1e-9)
        torch.testing.assert_close(measure(z, x), measure(x, z))
        assert bool((measure(z, x) <= 1 + 1e-9).all())
        torch.testing.assert_close(in_parts(measure, z, x)[1:2], measure(z[1:2], x[1:2]), atol=1e-12, rtol=0)
    if channels == 3:
        assert float(colour_difference(x, x).max()) < 1e-6
        assert bool((colour_difference(z, x) >= 0).all())


def test_inputs_become_pictures_between_0_and_1() -> None:
    x = torch.arange(2 * 3 * 6 * 5, dtype=torch.float32).reshape(2, 3, 6, 5)
    low, high = torch.tensor(0.0), torch.tensor(179.0)
    torch.testing.assert_close(pictures(x, low, high), x.double() / 179)
    assert torch.equal(pictures(x.movedim(1, -1), low, high), pictures(x, low, high))
    assert pictures(x[:, 0], low, high).shape == (2, 1, 6, 5)
    per_channel = torch.tensor([0.0, 20.0, 40.0])[:, None, None]
    assert float(pictures(per_channel.expand(1, 3, 2, 2), per_channel, per_channel + 1).abs().max()) == 0.0


def test_only_pictures_with_a_declared_box_are_looked_at() -> None:
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    z = x.flip(0)
    box = Domain(low=0.0, high=1.0)
    assert set(modality("image").looks(z, x, box)) == {"ssim", "ciede2000"}
    assert set(modality("image").looks(z[:, :1], x[:, :1], box)) == {"ssim"}
    assert {k: len(v) for k, v in modality("image").looks(z[:0], x[:0], box).items()} == {"ssim": 0, "ciede2000": 0}
    assert modality("image").looks(z, x, Domain()) == {}
    assert modality("tabular").looks(z.flatten(1), x.flatten(1), box) == {}


@pytest.mark.parametrize(("channels", "names"), [(1, {"evasion.ssim_median"}), (3, {"evasion.ssim_median", "evasion.ciede2000_median"})])  # fmt: skip
def test_an_evasion_check_of_pictures_tells_how_its_breaks_look(channels: int, names: set[str]) -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.rand(12, channels, 6, 6, generator=g)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36 * channels, 2)).requires_grad_(False)
    module[1].weight.copy_(torch.randn(2, 36 * channels, generator=g))
    domain = Domain(kind="image", task="classification", classes=2, low=0.0, high=1.0)
    case = Case(
        target=TorchTarget(module, "toy", domain),
        data=Data(x_test=x, y_test=module(x).argmax(1)),
        domain=domain,
        modality=modality("image"),
        profile="smoke",
    )
    outcome = execute(Check("evasion.pgd", ThreatModel.of("linf:0.3"), {}), case)
    found = {m.name: m for m in outcome.attempt.measurements if m.name in {*names, "evasion.ciede2000_median"}}
    assert set(found) == names
    rows, z = outcome.arrays["rows"], outcome.arrays["x"]
    assert len(rows) > 6
    assert found["evasion.ssim_median"].value == pytest.approx(float(ssim(z, x[rows]).quantile(0.5)))
