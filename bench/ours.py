"""Vauban's attacks at the seam where peers are called: model, inputs, labels in; changed inputs out.

Two ways. `through_oracle` is the attack alone, metered, as an audit runs it before verification; it can be told to
let no row leave early, so that as many passes are made as a peer makes. `through_api` is the call that a user makes:
with the checks of the gradient, the attack, and the fresh look at every result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import vauban
from vauban.attacks.catalog import ATTACKS
from vauban.core.attack import EvasionScene
from vauban.core.oracle import Spent
from vauban.core.registry import configure
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.domains.catalog import modality
from vauban.engine.oracle import MeteredOracle
from vauban.parts.goals import Misclassify
from vauban.targets.torch import TorchTarget

DOMAIN = Domain(kind="image", task="classification", classes=10, low=0.0, high=1.0)


class NobodyLeaves(MeteredOracle):
    """Rows stay open after they are broken: every row gets all steps, as in a peer."""

    def open(self, rows: Tensor, gradients: int = 1) -> Tensor:
        return torch.ones_like(rows, dtype=torch.bool)


@dataclass(frozen=True)
class Result:
    x: Tensor
    spent: Spent


def through_oracle(
    id: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    norm: str,
    eps: float,
    seed: int,
    leave: bool = True,
    donors: Tensor | None = None,
    **settings: Any,
) -> Result:
    target = TorchTarget(module=model, domain=DOMAIN)
    space = modality("image").space(norm, DOMAIN)
    kind = MeteredOracle if leave else NobodyLeaves
    oracle = kind(target, Misclassify(y), space, x, eps, nearest=eps == float("inf"))
    oracle.begin()
    attack = configure(ATTACKS.load(id), settings)
    attack(EvasionScene(oracle, x, space, eps, 10, donors), Rng(seed, len(x)))
    return Result(oracle.best.x, oracle.spent)


def through_api(
    id: str, model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, seed: int, **settings: Any
) -> Tensor:
    target = vauban.target(model, bounds=(0, 1), classes=10)
    return vauban.attack(id, target, x, y, threat=f"{norm}:{eps}", seed=seed, **settings).artefact.x
