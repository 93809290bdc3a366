"""Going against a model and its detector in turns, where a linear programme says what can be reached."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import vauban
from vauban.attacks.evasion.selective import Selective
from vauban.core.target import Domain
from vauban.defences.refusal import refusing
from vauban.targets.torch import TorchTarget

FEATURES, ROWS = 30, 80


class Guarded(nn.Module):
    """Class 1 where `w x` is above 0, refused where `v x` is above 0: what leads to the wrong class raises the alarm."""

    def __init__(self, seed: int, refuses: bool = True) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        w = torch.randn(FEATURES, generator=g)
        self.w, self.refuses = nn.Parameter(w), refuses
        self.v = nn.Parameter(0.6 * w + 0.8 * torch.randn(FEATURES, generator=g))

    def forward(self, x: Tensor) -> Tensor:
        real = x @ self.w
        logits = torch.stack([torch.zeros_like(real), real], 1)
        zero = torch.zeros(1)
        return refusing(logits, x @ self.v, zero, zero + 1) if self.refuses else logits


def room(module: Guarded, row: Tensor, radius: float) -> float:
    """The largest t with w z >= t and v z <= -t for some z within `radius` of the row."""
    w, v, x = (part.detach().double().numpy() for part in (module.w, module.v, row))
    found = linprog(
        np.r_[np.zeros(FEATURES), -1.0],
        A_ub=np.array([np.r_[-w, 1.0], np.r_[v, 1.0]]),
        b_ub=np.zeros(2),
        bounds=[*zip(x - radius, x + radius, strict=True), (None, None)],
    )
    return float(-found.fun)


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_way_wherever_there_is_one(seed: int) -> None:
    module = Guarded(seed)
    x = 2 * torch.randn(4000, FEATURES, generator=torch.Generator().manual_seed(seed))
    x = x[((x @ module.w) < 0) & ((x @ module.v) < 0)][:ROWS]
    target = TorchTarget(
        module, "guarded", Domain(task="classification", classes=3, low=-50.0, high=50.0, refusal=2), "logits"
    )
    result = vauban.attack("evasion.selective", target, x, torch.zeros(ROWS, dtype=torch.int64), threat="linf:0.5")
    most = torch.tensor([room(module, row, 0.5) for row in x])
    found = torch.tensor([letter == "b" for letter in result.outcomes])
    assert int((most > 0.01).sum()) > 15
    assert int((most < 0).sum()) > 15
    assert bool(found[most > 0.01].all())
    assert not bool(found[most < 0].any())


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_without_a_refusal_it_climbs_the_margin(norm: str, dual: int) -> None:
    """Of a linear model the nearest other class is the margin over the dual norm away."""
    module = Guarded(0, refuses=False)
    x = torch.randn(20, FEATURES, generator=torch.Generator().manual_seed(0))
    y = torch.arange(20) % 2
    w = module.w.detach()
    away = torch.linalg.vector_norm(w, dual) * (2 * y - 1) - x @ w
    x = x + away[:, None] * w / w.square().sum()
    target = TorchTarget(module, "plain", Domain(task="classification", classes=2, low=-50.0, high=50.0), "logits")
    short, long = (vauban.attack("evasion.selective", target, x, y, threat=f"{norm}:{r}") for r in (0.99, 1.01))
    assert short.outcomes == "h" * 20
    assert long.outcomes == "b" * 20


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"restarts": 0}, {"step": 0.0}, {"lead": -1.0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Selective(**wrong)  # type: ignore[arg-type]
