"""Bit flips on models whose worst bit is known by trying every one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from vauban.attacks.tampering.bit_flip import BitFlip
from vauban.core.attack import TamperScene
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.parts.quantize import QuantisedWeights, bit_steps, collapse_level, flip_bit, quantise
from vauban.targets.torch import TorchTarget


def _linear(seed: int) -> tuple[TorchTarget, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    module = nn.Linear(4, 3)
    with torch.no_grad():
        module.weight.copy_(torch.randn(3, 4, generator=generator))
        module.bias.zero_()
    x = torch.randn(60, 4, generator=generator)
    target = TorchTarget(module, output="logits", domain=Domain(task="classification", classes=3))
    return target, x, target.forward(x).labels


def _scene(target, x, y, edits) -> TamperScene:
    return TamperScene(target=target, x=x, y=y, edits=edits, evaluate=lambda module: 1.0)


def _brute_force(target, x, y) -> list[tuple[tuple[float, float], tuple[int, int, int]]]:
    """(accuracy lost, loss) and place of every single flip, the worst first."""
    weight = target.module.weight.detach()
    scale = float(weight.abs().max()) / 127
    codes = torch.round(weight / scale).to(torch.int8).numpy()
    found = []
    for row, column in np.ndindex(codes.shape):
        for bit in range(8):
            changed = codes.copy()
            changed.view(np.uint8)[row, column] ^= np.uint8(1 << bit)
            logits = x @ (torch.from_numpy(changed).float() * scale).T
            accuracy = float((logits.argmax(1) == y).double().mean())
            found.append(((-accuracy, float(F.cross_entropy(logits, y))), (row, column, bit)))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("seed", range(6))
def test_the_first_flip_is_the_worst_of_all_when_every_bit_is_tried(seed):
    target, x, y = _linear(seed)
    (flip,) = BitFlip(candidates=96)(_scene(target, x, y, 1), Rng(0, 60)).flips
    (accuracy, loss), _ = _brute_force(target, x, y)[0]
    # among equals the loss decides; bits whose loss is the same to rounding are all right
    own = next(score for score, place in _brute_force(target, x, y) if place == (*flip.index, flip.bit))
    assert own[0] == accuracy
    assert own[1] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_twenty_candidates_lose_little_against_trying_every_bit(seed):
    target, x, y = _linear(seed)
    patch = BitFlip(candidates=20)(_scene(target, x, y, 1), Rng(0, 60))
    assert patch.accuracy[-1] <= -_brute_force(target, x, y)[0][0][0] + 0.1


@settings(max_examples=30, deadline=None)
@given(st.integers(-128, 127), st.integers(0, 7))
def test_a_flip_is_one_bit_of_twos_complement(code, bit):
    flipped = flip_bit(code, bit)
    assert -128 <= flipped <= 127
    assert (code & 0xFF) ^ (flipped & 0xFF) == 1 << bit
    assert flip_bit(flipped, bit) == code
    assert int(bit_steps(torch.tensor([code], dtype=torch.int8))[0, bit]) == flipped - code


def test_quantising_errs_by_half_a_step_at_most():
    weights = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    stored = quantise(weights)
    assert stored.codes.dtype == torch.int8
    assert stored.scale == pytest.approx(float(weights.abs().max()) / 127)
    assert float((stored.weights - weights).abs().max()) <= stored.scale / 2 * (1 + 1e-5)
    assert quantise(torch.zeros(3)).weights.eq(0).all()
    with pytest.raises(ValueError, match="finite"):
        quantise(torch.tensor([1.0, float("nan")]))


def test_a_flip_taken_back_leaves_no_trace():
    weights = QuantisedWeights(nn.Linear(6, 5))
    before = weights.module.weight.detach().clone()
    for place in range(30):
        weights.flip("weight", place, place % 8)
        assert int((weights.module.weight != before).sum()) == 1
        weights.flip("weight", place, place % 8)
        assert torch.equal(weights.module.weight, before)


def test_weights_in_any_memory_order_are_flipped_where_they_are():
    module = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    weights = QuantisedWeights(module)
    before = module.weight.detach().clone()
    weights.flip("weight", 17, 6)
    moved = (module.weight != before).nonzero().tolist()
    assert moved == [list(np.unravel_index(17, module.weight.shape))]


@pytest.mark.parametrize("count", [0, 1, 17, 200])
def test_random_flips_are_exactly_as_many(count):
    weights = QuantisedWeights(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)))
    before = {name: s.codes.clone() for name, s in weights.stored.items()}
    weights.flip_at_random(count, np.random.default_rng(0))
    changed = sum(
        int(np.unpackbits((before[n].numpy() ^ s.codes.numpy()).view(np.uint8)).sum())
        for n, s in weights.stored.items()
    )
    assert changed == count


@pytest.mark.parametrize(("classes", "level"), [(2, 0.6), (5, 0.3), (10, 0.2), (100, 0.2)])
def test_the_level_of_collapse(classes, level):
    assert collapse_level(classes) == pytest.approx(level)
