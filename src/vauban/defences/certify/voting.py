"""The vote of a model over changed copies of an input: what smoothing by noise and by bands share."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vauban.core.target import Outputs
from vauban.defences.common import Defended, Reader, TorchModel, around


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
        logs = torch.stack([self._logs(x, k) for k in range(self.copies)])
        mean = logs.logsumexp(0) - math.log(len(logs))
        soft = mean.exp()
        counts = counted(logs.detach()).to(mean)
        mixed = (counts + soft.detach()) / (len(logs) + 1)
        kept = mixed if self.read.kind == "probabilities" else mixed.log()
        slope = soft if self.read.kind == "probabilities" else mean
        return (kept + (slope - slope.detach())).to(x.dtype)

    def counts(self, x: Tensor) -> Tensor:
        """Votes of each class `[n, classes]`, int64."""
        with torch.no_grad():
            return counted(torch.stack([self._logs(x, k) for k in range(self.copies)]))

    def _logs(self, x: Tensor, k: int) -> Tensor:
        """Logarithms `[n, classes]` of the probabilities that one copy is given."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self._one(x, k)
        # activations of one copy at a time are kept, however many copies there are
        logs: Tensor = checkpoint(self._one, x, k, use_reentrant=False, preserve_rng_state=False)
        return logs

    def _one(self, x: Tensor, k: int) -> Tensor:
        outputs = self.read(self.model(self.copy(x, k)))
        # in float64, whose last bits do not depend on a row's place in the batch once they are rounded away
        values = outputs.values.double()
        return values.clamp_min(1e-12).log() if outputs.kind == "probabilities" else values.log_softmax(1)


@dataclass(frozen=True, eq=False)
class VotingTarget(Defended):
    """A target that votes."""

    @property
    def base(self) -> TorchModel:
        """The model that votes, asked once."""
        return around(self.inner, cast(Voting, self.module).model, "")

    def forward_features(self, x: Tensor) -> tuple[Outputs, Tensor]:
        """The vote, and the base model's features averaged over the copies."""
        voting, base = cast(Voting, self.module), cast(Any, self.base)
        total = sum(base.forward_features(voting.copy(x, k))[1] for k in range(voting.copies))
        return self.forward(x), cast(Tensor, total) / voting.copies


def counted(logs: Tensor) -> Tensor:
    """Votes `[n, classes]` of copies `[copies, n, classes]`."""
    votes = logs.argmax(2).T
    counts = torch.zeros(logs.shape[1:], dtype=torch.int64, device=logs.device)
    return counts.scatter_add_(1, votes, torch.ones_like(votes))


def reader(model: TorchModel, x: Tensor) -> Reader:
    """Of that model's answers to inputs like `x`."""
    with torch.no_grad():
        return Reader(model, model.forward(x).kind)
