"""Linear bounds with slopes found by gradient ascent (alpha-CROWN), and with multipliers of splits (beta-CROWN)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vauban.parts.bounds.crown import Context, Slopes, charge, lines, lower
from vauban.parts.bounds.graph import Graph
from vauban.parts.bounds.intervals import Bounds, Region
from vauban.parts.bounds.ops import Bend

Never = Callable[[], bool]


@dataclass(frozen=True, eq=False)
class Claims:
    """Lower bounds wanted of `a . scores + rest`: `a` `[n, k, scores]`, `rest` `[n, k]`, for k functions of each row."""

    a: Tensor
    rest: Tensor

    def __getitem__(self, rows: Tensor) -> Claims:
        return Claims(self.a[rows], self.rest[rows])

    def singly(self, rows: Tensor, which: Tensor) -> Claims:
        """Chosen functions, each as a row of its own."""
        return Claims(self.a[rows, which][:, None], self.rest[rows, which][:, None])


def settle(where: Context, claims: Claims, noise: Tensor) -> Tensor:
    """Lower bounds `[n, k]`, with the scores' rounding `noise` `[n, scores]` charged."""
    return lower(where, claims.a, where.graph.last).value + claims.rest - charge(claims.a, noise)


@dataclass(frozen=True, eq=False)
class Settings:
    """Of the ascent: `steps`, the first step size `rate` (slopes are between 0 and 1) and by what it shrinks a step;
    multipliers of splits move `beta_rate` a step. From step `trial` on, rows that would not get above 0 even if they
    went on at their pace are given up."""

    steps: int = 20
    rate: float = 0.2
    shrink: float = 0.95
    beta_rate: float = 0.1
    trial: int | None = None


@dataclass(frozen=True, eq=False)
class Tuned:
    """`value` `[n]`: the best bound; the slopes and multipliers that gave the last one, to go on from."""

    value: Tensor
    slopes: dict[int, Slopes]
    multipliers: dict[int, Tensor] = field(default_factory=dict)


def default_slopes(graph: Graph, bounds: Bounds) -> dict[int, Slopes]:
    """Those that `lines` takes by itself."""
    made = {i: lines(graph, i, bounds) for i in graph.bends}
    return {i: (each.low_slope, each.high_slope) for i, each in made.items()}


def tune(
    graph: Graph,
    area: Region,
    bounds: Bounds,
    claims: Claims,
    settings: Settings,
    start: Mapping[int, Slopes] | None = None,
    signs: Mapping[int, Tensor] | None = None,
    multipliers: Mapping[int, Tensor] | None = None,
    stop: Never | None = None,
) -> Tuned:
    """The best lower bound of one function a row (`claims` with k = 1) over the free slopes of all lines.

    Every row has its own slopes, and its own Adam (Kingma and Ba 2015): rows do not depend on each other. `signs`
    `[n, *shape]` by activation: +1 where the input of the activation is split off as positive, -1 as negative, whose
    multipliers are then tuned too; the bound holds for inputs that agree with the signs. Ends early once all rows are
    above 0 or given up.
    """
    slopes = {i: (u.clone(), o.clone()) for i, (u, o) in (start or default_slopes(graph, bounds)).items()}
    betas = {i: multipliers[i].clone() if multipliers else torch.zeros_like(s) for i, s in (signs or {}).items()}
    leaves = [t for pair in slopes.values() for t in pair] + list(betas.values())
    rates = [1.0] * (2 * len(slopes)) + [settings.beta_rate / settings.rate] * len(betas)
    moments = [(torch.zeros_like(t), torch.zeros_like(t)) for t in leaves]
    best = first = torch.full((len(claims.a),), -torch.inf, dtype=claims.a.dtype, device=claims.a.device)
    given_up = torch.zeros_like(best, dtype=torch.bool)
    rate, trial = settings.rate, settings.trial or settings.steps
    for step in range(1, settings.steps + 1):
        with torch.enable_grad():
            for leaf in leaves:
                leaf.requires_grad_()
            value = _value(graph, area, bounds, claims, slopes, signs, betas)
            wanted = step < settings.steps
            grads = torch.autograd.grad(value.sum(), leaves, allow_unused=True) if wanted else ()
        with torch.no_grad():
            for leaf in leaves:
                leaf.requires_grad_(False)
            now = value.detach()
            # what a row gets must not hang on how long others go on
            better = (now > best) & ~given_up
            best = torch.where(better, now, best)
            first = best if step == 1 else first
            if step >= trial:
                given_up |= best + (best - first) / (step - 1) * (settings.steps - step) <= 0
            if not wanted or bool(((best > 0) | given_up).all()) or (stop is not None and stop()):
                break
            _adam(leaves, grads, moments, rates, rate, step)
            _project(graph, slopes, betas)
        rate *= settings.shrink
    return Tuned(best, slopes, betas)


def _value(
    graph: Graph,
    area: Region,
    bounds: Bounds,
    claims: Claims,
    slopes: Mapping[int, Slopes],
    signs: Mapping[int, Tensor] | None,
    betas: Mapping[int, Tensor],
) -> Tensor:
    where = Context(graph, area, {i: lines(graph, i, bounds, slopes[i]) for i in graph.bends})
    split = None if signs is None else {i: (betas[i] * signs[i])[:, None] for i in betas}
    found = lower(where, claims.a, graph.last, split).value + claims.rest - charge(claims.a, bounds.noise[graph.last])
    found = found[:, 0]
    if signs is None:
        return found
    # the split value z is only known up to the noise of the model: a multiplier pays for it
    for i, beta in betas.items():
        found = found - (beta * signs[i].abs() * bounds.noise[graph.nodes[i].inputs[0]]).flatten(1).sum(1)
    return found


def _adam(
    leaves: list[Tensor],
    grads: tuple[Tensor | None, ...],
    moments: list[tuple[Tensor, Tensor]],
    rates: list[float],
    rate: float,
    step: int,
) -> None:
    for leaf, grad, (mean, square), share in zip(leaves, grads, moments, rates, strict=True):
        if grad is None:
            continue
        mean.mul_(0.9).add_(grad, alpha=0.1)
        square.mul_(0.999).addcmul_(grad, grad, value=0.001)
        pace = mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-12)
        leaf.add_(pace, alpha=rate * share)


def _project(graph: Graph, slopes: Mapping[int, Slopes], betas: Mapping[int, Tensor]) -> None:
    for i, pair in slopes.items():
        op = graph.nodes[i].op
        if isinstance(op, Bend):
            least, most = torch.minimum(op.above, op.below), torch.maximum(op.above, op.below)
            for leaf in pair:
                leaf.copy_(leaf.maximum(least.to(leaf)).minimum(most.to(leaf)))
    for beta in betas.values():
        beta.clamp_min_(0)
