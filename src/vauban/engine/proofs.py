"""What can be proved about a target: the seam between `parts.bounds` and the oracle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vauban.core.goal import Goal
from vauban.core.space import Continuous
from vauban.core.target import Outputs, Target, TorchBacked
from vauban.engine.oracle import slack
from vauban.parts.bounds import Graph, Unprovable, prove, trace
from vauban.parts.losses import as_logits

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
    _graph: Graph | None = None

    def __call__(self, x: Tensor, labels: Tensor, effort: str, deadline: float | None) -> Tensor:
        """bool `[m]`: no other class is reached within the radius of `x` `[m, ...]`; all False where nothing can be proved."""
        try:
            self._graph = self._graph or _graph(self.target, self.goal, self.space, self.x)
        except Unprovable as error:
            self.reason = str(error)
            return torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.tried = True
        box = self.space.low, self.space.high
        # as far as the oracle lets a float32 point lie outside: what is proved must never be found broken
        radius = self.radius + slack(self.radius, self.x)
        return prove(self._graph, x, labels, self.space.name, radius, *box, effort=effort, deadline=deadline).certified


def _graph(target: Target, goal: Goal, space: Continuous, x: Tensor) -> Graph:
    if goal.targeted or target.domain.task == "regression":
        raise Unprovable("proofs are made for classes that must not change, not for a wanted answer or a value")
    if space.name not in PROVABLE:
        raise Unprovable(f"no bound is known for the space {space.name}")
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
        return answered.kind == "logits" and torch.allclose(bounded[:, 0].float(), answered.values[:, 1], atol=1e-3)
    here, there = F.log_softmax(bounded.float(), 1), F.log_softmax(as_logits(answered).float(), 1)
    return torch.allclose(here, there, rtol=1e-3, atol=1e-3)
