"""What can be proved about a target: the seam between the proofs of `parts` and the oracle."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vauban.core.goal import Goal
from vauban.core.space import Continuous
from vauban.core.target import Outputs, Target, TorchBacked
from vauban.engine.oracle import Prover, slack
from vauban.parts.bounds import Graph, Unprovable, prove, trace
from vauban.parts.exact.base import ExactModel, certify
from vauban.parts.losses import as_logits
from vauban.targets.proofs import exact_model

MOST_OPEN = 2000
"""Activations that intervals may leave open in a row that is still worth linear bounds: nets trained to be provable have
hundreds, others thousands to tens of thousands."""
MOST_SHORT = 0.25
"""Of its margin, by which a linear bound may fall short of a proof and still be worth tuning: what was won lay within 0.15."""
PATIENCE = 60.0
"""Seconds for proofs about trees and neighbours where the audit has no time limit."""
PROVABLE = ("linf", "l2", "l1")


@dataclass
class LazyProver:
    """Proves rows of `target` when asked to, and says afterwards why it could not.

    Args:
        target: the model that is judged, not a stand-in for it.
        goal: what counts as broken.
        space, radius: where the attacker may move an input.
        x: inputs like those it will be asked about, `[n, ...]`.
    """

    target: Target
    goal: Goal
    space: Continuous
    radius: float
    x: Tensor
    tried: bool = False
    reason: str = ""
    _prove: Prover | None = None

    def __call__(self, x: Tensor, labels: Tensor, effort: str, deadline: float | None) -> Tensor:
        """bool `[m]`: no other class is reached within the radius of `x` `[m, ...]`; all False where nothing can be proved."""
        try:
            self._prove = self._prove or self._found()
        except Unprovable as error:
            self.reason = str(error)
            return torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.tried = True
        return self._prove(x, labels, effort, deadline)

    def _found(self) -> Prover:
        """What proves most about this target; raises Unprovable where nothing does."""
        if self.goal.targeted or self.target.domain.task == "regression":
            raise Unprovable("proofs are made for classes that must not change, not for a wanted answer or a value")
        if self.space.name not in PROVABLE:
            raise Unprovable(f"no bound is known for the space {self.space.name}")
        known = None if isinstance(self.target, TorchBacked) else exact_model(self.target)
        return self._exactly(known) if known is not None else self._by_bounds(_graph(self.target, self.x))

    def _exactly(self, model: ExactModel) -> Prover:
        def prover(x: Tensor, labels: Tensor, effort: str, deadline: float | None) -> Tensor:
            until = time.monotonic() + PATIENCE if deadline is None else deadline
            box = self.space.low, self.space.high
            sure = certify(model, x, labels, self.space.name, self.radius, *box, until)
            return torch.from_numpy(sure).to(x.device)

        return prover

    def _by_bounds(self, graph: Graph) -> Prover:
        # as far as the oracle lets a float32 point lie outside: what is proved must never be found broken
        radius = self.radius + slack(self.radius, self.x)

        def prover(x: Tensor, labels: Tensor, effort: str, deadline: float | None) -> Tensor:
            limits: dict[str, Any] = {"deadline": deadline, "most_open": MOST_OPEN, "most_short": MOST_SHORT}
            box = self.space.low, self.space.high
            return prove(graph, x, labels, self.space.name, radius, *box, effort=effort, **limits).certified

        return prover


def _graph(target: Target, x: Tensor) -> Graph:
    if not isinstance(target, TorchBacked) or not len(x):
        raise Unprovable("the model's layers cannot be read")
    graph = trace(target.module, x[:8])
    with torch.no_grad():
        if not _same(graph.forward(x[:8]), target.forward(x[:8])):
            raise Unprovable("the model answers otherwise than its layers: something stands in front of them")
    return graph


def _same(bounded: Tensor, answered: Outputs) -> bool:
    """Whether the graph and the target rank the classes alike: the same log-probabilities, to what float32 keeps."""
    if bounded.shape[1] == 1 or answered.kind not in ("logits", "probabilities"):
        # a single score: its sign is the class only where it is a logit
        return answered.kind == "logits" and torch.allclose(
            bounded[:, 0].float(), answered.values[:, 1].float(), atol=1e-3
        )
    here, there = F.log_softmax(bounded.float(), 1), F.log_softmax(as_logits(answered).float(), 1)
    return torch.allclose(here, there, rtol=1e-3, atol=1e-3)
