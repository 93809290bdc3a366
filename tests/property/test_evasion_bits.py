"""Losses and draws round a row alike in eights and among hundreds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vauban.core.rng import Rng
from vauban.core.target import Outputs
from vauban.parts.losses import cross_entropy
from vauban.parts.projections import SPACES


def _in_eights(work: Callable[[slice], Tensor]) -> Tensor:
    return torch.cat([work(slice(i, i + 8)) for i in range(0, 256, 8)])


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_cross_entropy(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores, y = 5 * torch.randn(256, 10, generator=generator), torch.randint(10, (256,), generator=generator)
    values = scores if kind == "logits" else scores.softmax(1)
    whole = cross_entropy(Outputs(values, kind), y)  # type: ignore[arg-type]
    assert torch.equal(whole, _in_eights(lambda cut: cross_entropy(Outputs(values[cut], kind), y[cut])))  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", sorted(SPACES))
def test_samples_of_the_ball(norm: str) -> None:
    x, space = torch.rand(256, 12, generator=torch.Generator().manual_seed(1)), SPACES[norm](0.0, 1.0)
    radius = 3.0 if norm == "l0" else 0.5
    whole = space.sample(x, radius, Rng(3, 256), torch.arange(256))
    ids = torch.arange(256).numpy()
    assert torch.equal(whole, _in_eights(lambda cut: space.sample(x[cut], radius, Rng(3, ids[cut]), torch.arange(8))))
