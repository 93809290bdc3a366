"""Saving an input: on the grid, never further from the clean input, in the box."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vauban.core.target import Domain
from vauban.domains.catalog import modality
from vauban.schema.errors import BadThreat
from vauban.schema.threat import NORMS

STEPS = st.sampled_from([1 / 255, 1 / 16, 1 / 7, 1.0])
SEEDS = st.integers(0, 10**6)


@given(STEPS, SEEDS)
@settings(max_examples=30, deadline=None)
def test_changes_only_shrink_and_land_on_the_grid(step: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    levels = round(1 / step)
    grid = torch.randint(0, levels + 1, (4, 1, 3, 3), generator=generator)
    clean = (grid.to(torch.float32) / levels).clamp(0, 1)
    x = (clean + 0.3 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)
    domain = Domain(kind="image", low=0.0, high=1.0, step=step)
    saved = modality("image").stored(x, clean, domain)
    at = saved.double() * levels
    assert torch.allclose(at, at.round(), atol=1e-4)
    assert bool(((saved - clean).abs() <= (x - clean).abs() + 1e-6).all())
    assert bool(((saved - x).abs() <= step + 1e-6).all())
    assert bool((((saved - clean) * (x - clean)) >= 0).all())
    assert torch.equal(modality("image").stored(saved, clean, domain), saved)
    assert torch.equal(modality("image").stored(clean, clean, domain), clean)
    nearest = modality("image").stored(x, None, domain)
    assert bool(((nearest - x).abs() <= step / 2 + 1e-6).all())
    assert torch.equal(modality("image").stored(nearest, None, domain), nearest)


@pytest.mark.parametrize("radius", [1 / 255, 8 / 255, 0.1, 0.3])
def test_whole_steps_survive_float32(radius: float) -> None:
    """8/255 away in float32 is eight steps, not seven."""
    clean = torch.arange(0, 150, dtype=torch.uint8).reshape(-1, 1).float() / 255
    domain = Domain(kind="tabular", low=0.0, high=1.0, step=1 / 255)
    saved = modality("tabular").stored(clean + radius, clean, domain)
    steps = int(radius * 255 + 1e-6)
    assert torch.equal(saved, (torch.arange(0, 150).reshape(-1, 1) + steps).float() / 255)


def test_real_numbers_are_stored_as_they_are() -> None:
    x = torch.rand(3, 4)
    assert torch.equal(modality("tabular").stored(x, x * 0, Domain(low=0.0, high=1.0)), x)


@pytest.mark.parametrize("kind", ["image", "tabular"])
def test_spaces(kind: str) -> None:
    found = modality(kind)
    domain = Domain(kind=kind, low=0.0, high=torch.ones(2))
    for name in found.spaces:
        space = found.space(name, domain)
        assert space.name == name
        if space.name not in NORMS:
            continue
        assert bool(space.allowed(torch.ones(1, 2), torch.zeros(1, 2)).all.all())
        assert not bool(space.allowed(torch.full((1, 2), 1.1), torch.zeros(1, 2)).all.any())
    with pytest.raises(BadThreat, match="linf, l2, l1"):
        found.space("tokens", domain)
    assert torch.isinf(found.space("linf", Domain(kind=kind)).high)
