"""Linear models that are best in the worst case: the attacker's best move has a closed form, and the rest is convex."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["softmax", "sigmoids", "values"]
"""What scores mean: classes against each other; each class (or the second of two) against the rest; a value."""
STAGES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
"""How far corners are rounded off, from stage to stage: in scores, together."""
STEPS = 2000
"""Of L-BFGS, a stage."""


def _tall(change: Tensor, round_: float) -> Tensor:
    return (change.square() + round_**2).sqrt().sum(-1)


def _long(change: Tensor, round_: float) -> Tensor:
    return (change.square().sum(-1) + round_**2).sqrt()


def _most(change: Tensor, round_: float) -> Tensor:
    if round_ == 0:
        return change.abs().amax(-1)
    return round_ * torch.cat([change, -change], -1).div(round_).logsumexp(-1)


ROUNDED: Mapping[str, Callable[[Tensor, float], Tensor]] = {"linf": _tall, "l2": _long, "l1": _most}
"""Name of a space -> the dual norm over the last axis, with its corners rounded off; exactly, at 0."""


class Solved(NamedTuple):
    """For inputs in the data's own units."""

    weights: Tensor
    """`[outputs, d]` float64."""
    bias: Tensor
    loss: float
    """The worst case's mean on the training rows, corners and all, penalty included."""
    steps: int


@dataclass(frozen=True, kw_only=True)
class MinMax:
    """A loss in the worst case within `radius` in a space, and what it is least at.

    With w the weights and |.| the dual norm, a change of size r moves a difference of scores by r |w1 - w2| at most, and some
    change does. So the worst case of a logistic loss is that of the margin less r |w|; of a squared error (e, in size), that of
    |e| + r |w|. Both are convex in the weights. With three classes or more no one change need be the worst against every other
    class: the loss is an upper bound there, in which each is at its worst; whether a row can be brought over is exact.

    `penalty` is L2, half of it times the squared weights for features of deviation 1, added to the mean over the rows.
    """

    kind: Kind
    space: str
    radius: float
    penalty: float

    def loss(self, weights: Tensor, bias: Tensor, x: Tensor, y: Tensor, round_: float = 0.0) -> Tensor:
        """`[n]` float64: the worst case of each row, for inputs `[n, d]`, classes or values `[n]`, weights `[outputs, d]`."""
        scores = x @ weights.T + bias
        return LOSSES[self.kind](self, scores, weights, y, round_)

    def reach(self, weights: Tensor, round_: float) -> Tensor:
        """What a change within the radius moves scores by at most; the last axis is that of the features."""
        return ROUNDED[self.space](self.radius * weights, round_)

    def solve(
        self, x: Tensor, y: Tensor, outputs: int, biased: bool, progress: Callable[[int], None] = lambda done: None
    ) -> Solved:
        """The best weights for `x` `[n, d]`, `y` `[n]`. The same whatever they are begun from, for there is one optimum.

        L-BFGS on losses with their corners rounded off, less and less: what is best at the end is best but for 1e-7 in scores.
        """
        x = x.double()
        middle = x.mean(0) if biased else torch.zeros_like(x[0])
        spread = (x - middle).square().mean(0).sqrt()
        spread = torch.where(spread > 0, spread, 1.0)
        flat, unit, steps = np.zeros(outputs * (x.shape[1] + 1)), _unit(self.kind, y), 0
        plain = (x - middle) / spread

        def at(flat: np.ndarray) -> tuple[Tensor, Tensor]:
            own = torch.from_numpy(flat.reshape(outputs, -1))
            return own[:, :-1], own[:, -1]

        def told(flat: np.ndarray, round_: float) -> tuple[float, np.ndarray]:
            weights, bias = (part.clone().requires_grad_() for part in at(flat))
            bias_ = bias if biased else bias * 0
            # scores of the standardised rows, reach in the units of the data
            scores = plain @ weights.T + bias_
            loss = LOSSES[self.kind](self, scores, weights / spread, y, round_).mean()
            loss = loss + self.penalty / 2 * weights.square().sum()
            slopes = torch.autograd.grad(loss, (weights, bias))
            return float(loss.detach()), torch.cat([slopes[0], slopes[1][:, None]], 1).numpy().reshape(-1)

        best = (told(flat, 0.0)[0], flat)
        for number, share in enumerate(STAGES):
            round_ = share * unit / x.shape[1]
            found: Any = minimize(
                told,
                flat,
                args=(round_,),
                jac=True,
                method="L-BFGS-B",
                options={"maxiter": STEPS, "maxfun": 2 * STEPS, "maxcor": 30, "ftol": 1e-15, "gtol": 1e-10},
            )
            flat, steps = found.x, steps + int(found.nit)
            best = min(best, (told(flat, 0.0)[0], flat), key=lambda pair: pair[0])
            progress(number + 1)
        weights, bias = at(best[1])
        weights = weights / spread
        return Solved(weights.clone(), (bias if biased else bias * 0) - weights @ middle, best[0], steps)


Loss = Callable[[MinMax, Tensor, Tensor, Tensor, float], Tensor]


def _softmax(how: MinMax, scores: Tensor, weights: Tensor, y: Tensor, round_: float) -> Tensor:
    apart = how.reach(weights[:, None] - weights[None], round_)
    apart = apart * (1 - torch.eye(len(weights), dtype=apart.dtype))
    return (scores + apart[y]).logsumexp(1) - scores.gather(1, y[:, None])[:, 0]


def _sigmoids(how: MinMax, scores: Tensor, weights: Tensor, y: Tensor, round_: float) -> Tensor:
    own = y[:, None] == (torch.arange(len(weights)) if len(weights) > 1 else 1)
    margin = torch.where(own, scores, -scores) - how.reach(weights, round_)
    return F.softplus(-margin, threshold=50.0).sum(1)


def _values(how: MinMax, scores: Tensor, weights: Tensor, y: Tensor, round_: float) -> Tensor:
    error = ((scores[:, 0] - y).square() + round_**2).sqrt()
    return (error + how.reach(weights, round_)[0]).square()


LOSSES: Mapping[Kind, Loss] = {"softmax": _softmax, "sigmoids": _sigmoids, "values": _values}


def _unit(kind: Kind, y: Tensor) -> float:
    """What scores are measured in."""
    spread = float(y.double().std()) if kind == "values" and len(y) > 1 else 1.0
    return spread if spread > 0 else 1.0
