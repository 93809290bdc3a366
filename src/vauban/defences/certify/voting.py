"""The vote of a model over changed copies of an input: what smoothing by noise and by bands share."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vauban.core.target import OutputKind, Outputs
from vauban.defences.common import Reader, TorchModel, around
from vauban.defences.refusal import RefusingTarget


class Voting(nn.Module):
    """The vote of a model over copies of an input; its gradient is that of the mean softmax.

    Shares of the votes are mixed with the mean softmax at one part in copies + 1: too little to overturn a vote, enough to
    break ties and to keep every logarithm finite. Subclasses say how the copies are made.
    """

    def __init__(self, model: nn.Module, read: Reader) -> None:
        super().__init__()
        self.model, self.read = model, read

    @property
    @abstractmethod
    def copies(self) -> int:
        """How many there are."""

    @abstractmethod
    def copy(self, x: Tensor, k: int) -> Tensor:
        """Number `k` of the copies of `x` `[n, ...]`."""

    def forward(self, x: Tensor) -> Tensor:
        return shares(self.logs(x), self.read.kind).to(x.dtype)

    def counts(self, x: Tensor) -> Tensor:
        """Votes of each class `[n, classes]`, int64."""
        with torch.no_grad():
            return counted(self.logs(x))

    def logs(self, x: Tensor) -> Tensor:
        """Logarithms `[copies, n, classes]` of the probabilities that the copies are given."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return torch.stack([self._one(x, k) for k in range(self.copies)])
        # activations of one copy at a time are kept, however many copies there are
        kept = [checkpoint(self._one, x, k, use_reentrant=False, preserve_rng_state=False) for k in range(self.copies)]
        return torch.stack(cast(list[Tensor], kept))

    def _one(self, x: Tensor, k: int) -> Tensor:
        outputs = self.read(self.model(self.copy(x, k)))
        # in float64, whose last bits do not depend on a row's place in the batch once they are rounded away
        values = outputs.values.double()
        return values.clamp_min(1e-12).log() if outputs.kind == "probabilities" else values.log_softmax(1)


@dataclass(frozen=True, eq=False)
class VotingTarget(RefusingTarget):
    """A target that votes."""

    @property
    def refusal(self) -> int | None:
        return None

    @property
    def base(self) -> TorchModel:
        """The model that votes, asked once."""
        return around(self.inner, cast(Voting, self.module).model, "")

    def forward_features(self, x: Tensor) -> tuple[Outputs, Tensor]:
        """The vote, and the base model's features averaged over the copies."""
        voting, base = cast(Voting, self.module), cast(Any, self.base)
        total = sum(base.forward_features(voting.copy(x, k))[1] for k in range(voting.copies))
        return self.forward(x), cast(Tensor, total) / voting.copies


def soft(logs: Tensor) -> Tensor:
    """Logarithms `[n, classes]` of the mean softmax of copies `[copies, n, classes]`."""
    return logs.logsumexp(0) - math.log(len(logs))


def shares(logs: Tensor, kind: OutputKind) -> Tensor:
    """Of the votes `[n, classes]`, or their logarithms where the kind is logits; with the gradient of the mean softmax."""
    mean = soft(logs)
    mixed = (counted(logs.detach()).to(mean) + mean.detach().exp()) / (len(logs) + 1)
    kept, slope = (mixed, mean.exp()) if kind == "probabilities" else (mixed.log(), mean)
    return kept + (slope - slope.detach())


def counted(logs: Tensor) -> Tensor:
    """Votes `[n, classes]` of copies `[copies, n, classes]`."""
    votes = logs.argmax(2).T
    counts = torch.zeros(logs.shape[1:], dtype=torch.int64, device=logs.device)
    return counts.scatter_add_(1, votes, torch.ones_like(votes))
