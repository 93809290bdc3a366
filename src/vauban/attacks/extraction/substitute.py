"""Substitute model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vauban.core.attack import Price, Replica, TheftScene
from vauban.core.rng import Rng, derive_seed
from vauban.parts.substitute import imitate, mixtures, network
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source


@dataclass(frozen=True, kw_only=True)
class Substitute:
    """Trains a model of the thief's own on the answers to his queries (Papernot et al. 2017; Orekondy et al. 2019).

    Queries are rows of the same kind that the thief has, then, where those run out, mixtures of two of them with a
    little noise. Soft labels are learnt where scores are granted, class numbers otherwise. The substitute is a small
    convolutional network for pictures and a perceptron for the rest, trained anew at each of `budgets` growing
    numbers of queries.

    Departures from the sources: mixtures instead of Jacobian augmentation (Papernot) and random instead of learnt
    selection (Knockoff nets, "random" strategy); the architecture is not the victim's.
    """

    queries: int = 2000
    """Queries at most; fewer where the threat allows fewer."""
    budgets: int = 4
    """Points of the curve: each halves the queries of the next."""
    steps: int = 800
    """Training batches of 64 rows for each substitute."""
    noise: float = 0.02
    """Standard deviation of the noise on mixtures, as a share of each feature's range."""

    card: ClassVar[AttackCard] = AttackCard(
        id="extraction.substitute",
        name="Substitute model",
        summary="Trains a copy on the model's own answers, and sees how often the two agree.",
        needs=Access.LABELS,
        tasks=("classification", "regression"),
        sources=(
            Source(
                title="Practical Black-Box Attacks against Machine Learning",
                where="AsiaCCS 2017, arXiv:1602.02697, section 4",
            ),
            Source(
                title="Knockoff Nets: Stealing Functionality of Black-Box Models",
                where="CVPR 2019, arXiv:1812.02766, section 4",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"queries": 200, "steps": 150, "budgets": 2},
        "deep": {"queries": 20_000, "steps": 4000, "budgets": 6},
    }

    def __post_init__(self) -> None:
        if self.queries < 1 or self.budgets < 1 or self.steps < 1:
            raise ValueError(
                f"queries, budgets and steps must be at least 1, got {self.queries}, {self.budgets}, {self.steps}"
            )
        if not self.noise >= 0:
            raise ValueError(f"noise must be 0 or more, got {self.noise}")

    def price(self, classes: int | None) -> Price:
        return Price(queries=self.queries, trainings=self.budgets)

    def __call__(self, scene: TheftScene, rng: Rng) -> Replica:
        allowed = min(self.queries, scene.queries)
        x = self._inputs(scene, allowed, rng)
        answers, centre, spread = _learnable(scene.query(x), scene)
        low, high = _box(scene, x)
        outputs = 1 if scene.kind == "values" else scene.domain.classes or int(answers.max()) + 1
        steps = []
        for count in _growing(allowed, self.budgets):
            module = network(scene.shape, outputs, low, high, derive_seed(rng.seed, "network"))
            seed = derive_seed(rng.seed, "substitute", count)
            imitate(module, x[:count], answers[:count], seed=seed, steps=self.steps)
            steps.append((count, _predictor(module, scene.kind, centre, spread)))
        facts = {"rows": min(allowed, len(scene.pool)), "mixtures": max(0, allowed - len(scene.pool))}
        return Replica(predict=steps[-1][1], queries=allowed, steps=tuple(steps), facts=facts)

    def _inputs(self, scene: TheftScene, count: int, rng: Rng) -> Tensor:
        """`[count, ...]` float32: the thief's rows in random order, then mixtures."""
        generator = rng.torch("queries", device=scene.pool.device)
        pool = scene.pool.to(torch.float32)
        own = pool[torch.randperm(len(pool), generator=generator)[:count]]
        missing = count - len(own)
        if missing == 0:
            return own
        return torch.cat([own, mixtures(pool, missing, *_box(scene, pool), self.noise, generator)])


def _box(scene: TheftScene, like: Tensor) -> tuple[Tensor, Tensor]:
    low, high = (
        torch.as_tensor(v, dtype=torch.float32, device=like.device) for v in (scene.domain.low, scene.domain.high)
    )
    return low, high


def _learnable(answers: Tensor, scene: TheftScene) -> tuple[Tensor, float, float]:
    """Probabilities from logits, values standardised, everything else as it is; and the centre and spread of values."""
    if scene.kind == "values":
        centre, spread = float(answers.mean()), max(float(answers.std(correction=0)), 1e-12)
        return (answers - centre) / spread, centre, spread
    return torch.softmax(answers, 1) if scene.kind == "logits" else answers, 0.0, 1.0


def _growing(most: int, points: int) -> list[int]:
    return sorted({max(1, most >> power) for power in range(points)})


def _predictor(module: nn.Module, kind: str, centre: float, spread: float) -> Callable[[Tensor], Tensor]:
    @torch.no_grad()
    def predict(x: Tensor) -> Tensor:
        scores: Tensor = module(x.to(torch.float32))
        return scores[:, 0] * spread + centre if kind == "values" else scores

    return predict
