"""The vote over bands: counted by hand, and its certificates against patches that are tried."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.defences.certify.bands import BandSmoothing
from vauban.schema.errors import NotOffered
from vauban.targets.torch import TorchTarget

WIDE = 12


def pictures(seed: int) -> Tensor:
    """Most columns tell the class, so that many votes are far ahead."""
    g = torch.Generator().manual_seed(seed)
    told = torch.randn(30, 1, 3, 1, generator=g)
    return (told + 0.7 * torch.randn(30, 1, 3, WIDE, generator=g)).sigmoid()


def target(seed: int) -> TorchTarget:
    """Answers with the brightest of three lines, so that the columns in sight decide."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * WIDE, 3))
    weights = torch.eye(3).repeat_interleave(WIDE, 1) + 0.1 * torch.randn(
        3, 3 * WIDE, generator=torch.Generator().manual_seed(seed)
    )
    net[1].weight.data, net[1].bias.data = 10 * weights, torch.zeros(3)
    return TorchTarget(net, "m", Domain(kind="image", task="classification", classes=3, low=0.0, high=1.0), "logits")


def voting(seed: int, band: int):  # type: ignore[no-untyped-def]
    x = pictures(seed)
    how = BandSmoothing(band=band, epochs=0, patch=1)
    return how(target(seed), Data(x, torch.arange(30) % 3, x, torch.arange(30) % 3), Rng(0), None).target, x


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 500), band=st.integers(1, 3), patch=st.integers(1, 3))
def test_no_patch_turns_a_certified_answer(seed: int, band: int, patch: int) -> None:
    made, x = voting(seed, band)
    sure = made.certify(x, patch)
    with torch.no_grad():
        answers = made.forward(x).labels
        g = torch.Generator().manual_seed(seed)
        for start in range(WIDE):
            columns = (torch.arange(WIDE) - start) % WIDE < patch
            for fill in (0.0, 1.0, torch.rand(30, 1, 3, WIDE, generator=g)):
                changed = torch.where(columns, torch.as_tensor(fill).expand_as(x), x)
                assert bool((made.forward(changed).labels == answers)[sure].all())


def test_certificates_are_there_and_not_everywhere() -> None:
    shares = [float(voting(seed, 2)[0].certify(pictures(seed), 1).double().mean()) for seed in range(5)]
    assert 0.1 < sum(shares) / 5 < 0.95
    made, x = voting(0, 2)
    narrow, wide = (made.certify(x, patch) for patch in (1, 4))
    assert bool((narrow | ~wide).all())
    assert not bool(made.certify(x, WIDE).any())


def test_votes_are_those_of_single_bands() -> None:
    made, x = voting(3, 4)
    base, blank = made.base, x.mean(0)
    votes = torch.zeros(30, 3)
    for start in range(WIDE):
        seen = [(start + k) % WIDE for k in range(4)]
        copy = blank.expand_as(x).clone()
        copy[..., seen] = x[..., seen]
        votes[torch.arange(30), base.forward(copy).labels] += 1
    assert torch.equal(made.module.counts(x).float(), votes)


def test_a_band_as_wide_as_the_picture_is_refused() -> None:
    with pytest.raises(NotOffered, match="hides nothing of pictures 12 wide"):
        voting(0, WIDE)
