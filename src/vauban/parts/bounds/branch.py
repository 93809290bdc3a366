"""A small branch and bound: what one linear bound leaves open is split at a bend into two cases, each bounded anew."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vauban.parts.bounds.alpha import Claims, Never, Settings, tune
from vauban.parts.bounds.crown import Context, Slopes, lines, lower
from vauban.parts.bounds.graph import Graph
from vauban.parts.bounds.intervals import Bounds, Region, propagate
from vauban.parts.bounds.ops import Bend

Signs = dict[int, Tensor]


@dataclass(frozen=True, eq=False)
class Limits:
    """`cases` a claim, `batch` cases at once, `candidates` tried before each split, settings of the ascent."""

    cases: int = 400
    batch: int = 48
    candidates: int = 3
    ascent: Settings = field(default_factory=lambda: Settings(steps=12, rate=0.15, beta_rate=0.1))


@dataclass(frozen=True, eq=False)
class Case:
    """Part of a claim's region: the signs of the bends split so far, the best bound, and where its ascent ended."""

    claim: int
    value: float
    signs: Signs
    slopes: dict[int, Slopes]
    multipliers: Signs


@dataclass(frozen=True, eq=False)
class Problem:
    """Claims (one function a row) with the regions and bounds of their rows."""

    graph: Graph
    area: Region
    bounds: Bounds
    claims: Claims

    def __getitem__(self, rows: Tensor) -> Problem:
        return replace(self, area=self.area[rows], bounds=self.bounds[rows], claims=self.claims[rows])


def search(problem: Problem, limits: Limits, stop: Never) -> Tensor:
    """The best lower bound `[n]` of each claim that was reached: above 0 only once every case is.

    Cases of the claims that are nearest to their end go first, so that a time limit leaves whole answers.
    """
    n = len(problem.claims.a)
    least = problem.claims.a.new_full((n,), torch.inf)
    spent = [0] * n
    open_ = []
    for root in _roots(problem, limits):
        if _splittable(problem, root):
            open_.append(root)
        else:
            least[root.claim] = root.value
    while open_ and not stop():
        worst: dict[int, float] = {}
        for case in open_:
            worst[case.claim] = min(worst.get(case.claim, torch.inf), case.value)
        open_.sort(key=lambda d: (-worst[d.claim], d.claim, d.value))
        batch, open_ = open_[: limits.batch], open_[limits.batch :]
        for case in batch:
            spent[case.claim] += 2
        for child in _split(problem, batch, limits):
            if not child.value > 0:
                # a claim that has had its share, or has nothing left to split, keeps its bound
                done = spent[child.claim] >= limits.cases or not _splittable(problem, child)
                if done:
                    least[child.claim] = min(float(least[child.claim]), child.value)
                else:
                    open_.append(child)
        given_up = {i for i in range(n) if spent[i] >= limits.cases and float(least[i]) <= 0}
        for case in [d for d in open_ if d.claim in given_up]:
            least[case.claim] = min(float(least[case.claim]), case.value)
        open_ = [d for d in open_ if d.claim not in given_up]
    for case in open_:
        least[case.claim] = min(float(least[case.claim]), case.value)
    # all cases of the others are above 0, by amounts that are not kept
    return torch.where(least == torch.inf, torch.full_like(least, torch.finfo(least.dtype).tiny), least)


def _roots(problem: Problem, limits: Limits) -> list[Case]:
    graph, roots = problem.graph, []
    for rows in torch.arange(len(problem.claims.a), device=problem.claims.a.device).split(limits.batch):
        part = problem[rows]
        tuned = tune(graph, part.area, part.bounds, part.claims, limits.ascent)
        signs = {i: torch.zeros_like(part.bounds.low[graph.nodes[i].inputs[0]]) for i in graph.bends}
        for k, row in enumerate(rows.tolist()):
            if not float(tuned.value[k]) > 0:
                roots.append(_case(row, float(tuned.value[k]), k, signs, tuned.slopes, signs))
    return roots


def _case(claim: int, value: float, k: int, signs: Signs, slopes: dict[int, Slopes], betas: Signs) -> Case:
    return Case(
        claim,
        value,
        {i: s[k].clone() for i, s in signs.items()},
        {i: (u[k].clone(), o[k].clone()) for i, (u, o) in slopes.items()},
        {i: b[k].clone() for i, b in betas.items()},
    )


def _splittable(problem: Problem, case: Case) -> bool:
    for i in problem.graph.bends:
        j = problem.graph.nodes[i].inputs[0]
        low, high = problem.bounds.low[j][case.claim], problem.bounds.high[j][case.claim]
        if bool(((low < 0) & (high > 0) & (case.signs[i] == 0)).any()):
            return True
    return False


def narrowed(graph: Graph, area: Region, bounds: Bounds, signs: Signs) -> tuple[Bounds, Tensor]:
    """Bounds where the bends' inputs have the given signs, and which rows have no input left, bool `[n]`."""
    low, high = list(bounds.low), list(bounds.high)
    for i, sign in signs.items():
        j = graph.nodes[i].inputs[0]
        low[j] = torch.where(sign > 0, low[j].clamp_min(0), low[j])
        high[j] = torch.where(sign < 0, high[j].clamp_max(0), high[j])
    first = min((graph.nodes[i].inputs[0] for i in signs), default=0)
    tight = propagate(graph, area, replace(bounds, low=low, high=high), first)
    empty = torch.zeros(len(area), dtype=torch.bool, device=area.x.device)
    for least, most in zip(tight.low, tight.high, strict=True):
        empty |= (least > most).flatten(1).any(1)
    # an empty row's numbers mean nothing: those of before keep the arithmetic finite
    for side, old in ((tight.low, bounds.low), (tight.high, bounds.high)):
        for at, values in enumerate(side):
            side[at] = torch.where(empty.reshape(-1, *(1,) * (values.dim() - 1)), old[at], values)
    return tight, empty


def _stack(cases: list[Case]) -> tuple[Signs, dict[int, Slopes], Signs]:
    first = cases[0]
    signs = {i: torch.stack([d.signs[i] for d in cases]) for i in first.signs}
    slopes = {
        i: (torch.stack([d.slopes[i][0] for d in cases]), torch.stack([d.slopes[i][1] for d in cases]))
        for i in first.slopes
    }
    return signs, slopes, {i: torch.stack([d.multipliers[i] for d in cases]) for i in first.multipliers}


def _split(problem: Problem, batch: list[Case], limits: Limits) -> list[Case]:
    """Both halves of every case, bounded."""
    graph = problem.graph
    claims = torch.tensor([d.claim for d in batch], device=problem.claims.a.device)
    part = problem[claims]
    signs, slopes, betas = _stack(batch)
    bounds, _ = narrowed(graph, part.area, part.bounds, signs)
    part = replace(part, bounds=bounds)
    chosen = _choose(part, signs, slopes, betas, limits.candidates)
    twice = torch.arange(len(batch), device=claims.device).repeat(2)
    both = part[twice]
    side = torch.ones_like(twice)
    side[len(batch) :] = -1
    signs = _with(graph, {i: s[twice] for i, s in signs.items()}, chosen[twice], side)
    slopes = {i: (u[twice], o[twice]) for i, (u, o) in slopes.items()}
    betas = {i: b[twice] for i, b in betas.items()}
    tight, empty = narrowed(graph, both.area, both.bounds, signs)
    tuned = tune(graph, both.area, tight, both.claims, limits.ascent, slopes, signs, betas)
    parents = torch.tensor([d.value for d in batch], dtype=tuned.value.dtype, device=claims.device)[twice]
    value = torch.where(empty, torch.inf, torch.maximum(tuned.value, parents))
    return [
        _case(int(claims[twice[k]]), float(value[k]), k, signs, tuned.slopes, tuned.multipliers)
        for k in range(len(twice))
    ]


def _choose(part: Problem, signs: Signs, slopes: dict[int, Slopes], betas: Signs, tried: int) -> Tensor:
    """The bend of every case (a number among all bends laid side by side) whose split helps the worse half most.

    The candidates are those whose line is paid most for; each is tried with the slopes as they are.
    """
    graph, score = part.graph, _scores(part, signs, slopes, betas)
    tried = min(tried, score.shape[1])
    top = score.topk(tried, 1)
    gains = []
    for c in range(tried):
        worse: Tensor | None = None
        for side in (1, -1):
            half = _with(graph, signs, top.indices[:, c], torch.full_like(top.indices[:, c], side))
            tight, empty = narrowed(graph, part.area, part.bounds, half)
            made = {i: lines(graph, i, tight, slopes[i]) for i in graph.bends}
            split = {i: (betas[i] * half[i])[:, None] for i in betas}
            value = lower(Context(graph, part.area, made), part.claims.a, graph.last, split).value[:, 0]
            value = torch.where(empty, torch.inf, value)
            worse = value if worse is None else torch.minimum(worse, value)
        assert worse is not None
        # one with nothing to split is no candidate
        gains.append(torch.where(top.values[:, c] > 0, worse, -torch.inf))
    best = torch.stack(gains, 1).argmax(1, keepdim=True)
    return top.indices.gather(1, best)[:, 0]


def _scores(part: Problem, signs: Signs, slopes: dict[int, Slopes], betas: Signs) -> Tensor:
    graph = part.graph
    watch: dict[int, Tensor] = {}
    made = {i: lines(graph, i, part.bounds, slopes[i]) for i in graph.bends}
    split = {i: (betas[i] * signs[i])[:, None] for i in betas}
    lower(Context(graph, part.area, made), part.claims.a, graph.last, split, watch)
    scores = []
    for i in graph.bends:
        j, op = graph.nodes[i].inputs[0], graph.nodes[i].op
        assert isinstance(op, Bend)
        low, high = part.bounds.low[j], part.bounds.high[j]
        c, line = watch[i][:, 0], made[i]
        ends = [(side, op.forward(side)) for side in (low, high)]
        # how far the line that is used lies from the bend, where they are furthest apart
        under = torch.maximum(*(f - line.low_slope * t - line.low_offset for t, f in ends)).maximum(-line.low_offset)
        over = torch.maximum(*(line.high_slope * t + line.high_offset - f for t, f in ends)).maximum(line.high_offset)
        paid = c.clamp_min(0) * under + c.clamp_max(0).neg() * over
        free = (low < 0) & (high > 0) & (signs[i] == 0)
        scores.append(torch.where(free, paid + 1e-12, torch.zeros_like(paid)).flatten(1))
    return torch.cat(scores, 1)


def _with(graph: Graph, signs: Signs, chosen: Tensor, side: Tensor) -> Signs:
    """`signs` with the chosen bend of every row set to `side`."""
    made, start = {}, 0
    for i in graph.bends:
        flat = signs[i].flatten(1).clone()
        mine = (chosen >= start) & (chosen < start + flat.shape[1])
        rows = mine.nonzero().flatten()
        flat[rows, chosen[rows] - start] = side[rows].to(flat)
        made[i], start = flat.reshape(signs[i].shape), start + flat.shape[1]
    return made
