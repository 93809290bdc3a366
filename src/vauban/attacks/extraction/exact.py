"""Equation solving."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.core.attack import Price, Replica, TheftScene
from vauban.core.rng import Rng
from vauban.parts.linear_recovery import Affine, deviation, log_ratios, solve, solving_steps
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source
from vauban.schema.errors import Limit

Reader = Callable[[Tensor], Tensor]
READERS: Mapping[str, Reader] = {
    "logits": lambda scores: scores,
    "probabilities": log_ratios,
    "values": lambda values: values.reshape(-1, 1),
}
"""From answers to what is affine in x."""
WRITERS: Mapping[str, Reader] = {
    "logits": lambda z: z,
    "probabilities": lambda z: torch.softmax(z, 1),
    "values": lambda z: z[:, 0],
}


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Recovers a linear, logistic or softmax model by solving for its parameters (Tramer et al. 2016, section 4.1).

    d + 1 queries for d inputs, whatever the number of classes: the middle of the input box, and the middle moved along
    one feature at a time. Logits and regression values are affine in x as they are; probabilities after taking the
    log-ratio to the last class. All in float64. A further `checks` random points decide whether the model is linear
    at all: beyond `tolerance` it is not, and nothing is claimed (`facts["linear"]` False, no `parameters`).

    Precision follows the model's: answers in float32 give parameters to about 1e-6 of their scale, answers in
    float64 to about 1e-13.

    Departures from the source: points along the axes instead of random ones (diagonal equations); the check.
    Raises Limit where d + 1 + `checks` queries are more than the threat allows.
    """

    checks: int = 8
    """Fresh points to verify on."""
    tolerance: float = 1e-3
    """Largest error on the fresh points, relative to the largest value, of a model that is still called linear."""

    card: ClassVar[AttackCard] = AttackCard(
        id="extraction.exact",
        name="Equation solving",
        summary="Copies a linear model exactly by asking it as many questions as it has inputs, plus one.",
        needs=Access.LABELS | Access.SCORES,
        tasks=("classification", "regression"),
        sources=(
            Source(
                title="Stealing Machine Learning Models via Prediction APIs",
                where="USENIX Security 2016, arXiv:1609.02943, section 4.1",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {}, "deep": {"checks": 64}}

    def __post_init__(self) -> None:
        if self.checks < 1:
            raise ValueError(f"checks must be at least 1, got {self.checks}: a copy that was not checked is not exact")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be above 0, got {self.tolerance}")

    def price(self, classes: int | None) -> Price:
        return Price(queries=self.checks + 1)

    def __call__(self, scene: TheftScene, rng: Rng) -> Replica:
        read, write = READERS[scene.kind], WRITERS[scene.kind]
        low, high = (torch.as_tensor(v, dtype=torch.float64) for v in (scene.domain.low, scene.domain.high))
        middle, steps = solving_steps(low, high, scene.shape)
        needed = len(middle) + 1 + self.checks
        if needed > scene.queries:
            raise Limit(f"solving for {len(middle)} inputs takes {needed} queries, the threat allows {scene.queries}")
        model = solve(lambda flat: read(scene.query(flat.reshape(-1, *scene.shape))), middle, steps)
        unit = torch.rand(self.checks, *scene.shape, generator=rng.torch("checks"), dtype=torch.float64)
        fresh = low + unit * (high - low)
        error = deviation(model, fresh, read(scene.query(fresh)))
        linear = error <= self.tolerance
        return Replica(
            predict=lambda x: write(model(x)),
            queries=len(middle) + 1,
            parameters=_named(model) if linear else None,
            facts={"linear": linear, "deviation": error, "verification_queries": self.checks},
        )


def _named(model: Affine) -> dict[str, Tensor]:
    return {"weight": model.weight, "bias": model.bias}
