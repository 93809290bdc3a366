"""Which rows no change of their input within a radius can bring to another answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vauban.parts.bounds import cones as local
from vauban.parts.bounds.alpha import Claims, Settings, settle, tune
from vauban.parts.bounds.branch import Limits, Problem, search
from vauban.parts.bounds.counter import counter
from vauban.parts.bounds.crown import PAIRS, before_bends, context, refine, stopped, undecided
from vauban.parts.bounds.graph import Graph, Unprovable
from vauban.parts.bounds.intervals import ORDERS, Bounds, Region, propagate, region
from vauban.parts.bounds.ops import Smooth

EFFORTS = ("ibp", "crown-ibp", "crown", "alpha", "branch")
"""From cheap to dear: intervals; linear bounds over intervals; linear bounds throughout; tuned slopes; splitting."""

_MEMORY = 32 * 2**20
"""Bytes of bounds held at once."""
_TUNING = Settings(trial=6)
_PROBE = 16
"""Rows on which a cheap stage is tried before all the others get it."""


@dataclass(frozen=True, eq=False)
class Proof:
    """`certified` bool `[n]`. `bound` float64 `[n]`: the smallest difference that was proved, `certified` where above 0.

    `broken` bool `[n]`: an input inside the region was met that changes the answer (in float64; verify it before
    claiming it); `counter` `[n, ...]` holds it, and the row's own input elsewhere. `stage` int64 `[n]`: the number in
    EFFORTS of the stage that certified a row, -1 for none. `seconds`: spent, by stage.
    """

    certified: Tensor
    bound: Tensor
    broken: Tensor
    counter: Tensor
    stage: Tensor
    seconds: dict[str, float] = field(default_factory=dict)


def prove(
    graph: Graph,
    x: Tensor,
    labels: Tensor,
    space_name: str,
    radius: float | Tensor,
    low: Any = -torch.inf,
    high: Any = torch.inf,
    *,
    effort: str = "crown",
    deadline: float | None = None,
    most_open: int | None = None,
    most_short: float | None = None,
) -> Proof:
    """Proofs that the class of `labels` `[n]` keeps the largest score everywhere within `radius` of `x` `[n, ...]`.

    Every stage up to `effort` works on the rows that those before it left; `deadline` is a time of `time.monotonic`.
    Rows of which intervals leave more than `most_open` activations open get no linear bounds: these cost a pass back
    for every one of them, and where most are open they prove nothing. Rows whose linear bound falls short of 0 by more than
    `most_short` times what they have at `x` get no tuned slopes, which hardly ever gain more; effort `branch` heeds it not.
    The proof holds for the model as it is computed in its own floating-point type, with sums taken in any order: the
    bounds are computed in float64 (in float32 for some inner ones), and what rounding may change there or in the model
    is bounded and taken off. For a linear model the answer is exact up to that rounding. A graph with one score is one
    of two classes, the second where the score is above 0.
    """
    claims = _against(graph, labels.to(x.device))
    return _Work(graph, region(x, space_name, radius, low, high), claims, effort, deadline, most_open, most_short).run()


def prove_value(
    graph: Graph,
    x: Tensor,
    tolerance: float | Tensor,
    space_name: str,
    radius: float | Tensor,
    low: Any = -torch.inf,
    high: Any = torch.inf,
    *,
    effort: str = "crown",
    deadline: float | None = None,
) -> Proof:
    """Proofs that the value of a regression stays within `tolerance` of what it is at `x`; `bound` is what is left of
    the tolerance."""
    if graph.nodes[-1].shape != (1,):
        raise Unprovable(f"the model gives {graph.nodes[-1].shape[0]} values for a row: this proof is about one")
    now = graph.forward(x.detach())
    signs = torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64, device=x.device).expand(len(x), 2, 1)
    room = torch.as_tensor(tolerance, dtype=torch.float64, device=x.device).reshape(-1, 1)
    claims = Claims(signs, room - signs[:, :, 0] * now)
    return _Work(graph, region(x, space_name, radius, low, high), claims, effort, deadline).run()


def _against(graph: Graph, labels: Tensor) -> Claims:
    """The score of the label minus every other."""
    classes = graph.nodes[-1].shape[0]
    n, device = len(labels), labels.device
    if classes == 1:
        a = torch.where(labels > 0, 1.0, -1.0).double().reshape(-1, 1, 1)
        return Claims(a, torch.zeros(n, 1, dtype=torch.float64, device=device))
    each = torch.arange(classes - 1, device=device).expand(n, -1)
    others = each + (each >= labels[:, None])
    a = torch.zeros(n, classes - 1, classes, dtype=torch.float64, device=device)
    a.scatter_(2, others[:, :, None], -1.0)
    a.scatter_(2, labels[:, None, None].expand(-1, classes - 1, 1), 1.0)
    return Claims(a, torch.zeros(n, classes - 1, dtype=torch.float64, device=device))


class _Work:
    """One call: what is known of every claim of every row, and the stages that improve on it."""

    def __init__(
        self,
        graph: Graph,
        area: Region,
        claims: Claims,
        effort: str,
        deadline: float | None,
        most_open: int | None = None,
        most_short: float | None = None,
    ) -> None:
        if effort not in EFFORTS:
            raise ValueError(f"effort is one of {', '.join(EFFORTS)}, not {effort!r}")
        if area.order not in ORDERS:
            raise Unprovable(f"no bound is known for the space {area.order}")
        self.graph, self.area, self.claims = graph, area, claims
        self.depth, self.deadline = EFFORTS.index(effort), deadline
        self.most_open = most_open
        # splitting starts from the tuned bounds of every row, and from the counterexamples that come before them
        self.most_short = most_short if self.depth == 3 else None
        n = len(area)
        self.known = torch.full(claims.rest.shape, -torch.inf, dtype=torch.float64, device=area.x.device)
        self.at_x = torch.zeros_like(self.known)
        self.stage = torch.full((n,), -1, dtype=torch.long, device=area.x.device)
        self.broken = torch.zeros(n, dtype=torch.bool, device=area.x.device)
        self.counter = area.x.clone()
        self.hopeless = torch.zeros(n, dtype=torch.bool, device=area.x.device)
        self.seconds = dict.fromkeys(EFFORTS, 0.0)
        self.clock = time.monotonic()
        self.cones: dict[int, local.Cones | None] = {}
        self.worth: dict[int, bool] = {}

    def late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def run(self) -> Proof:
        with torch.no_grad():
            if len(self.area):
                self._stages()
        bound = self.known.amin(1) if self.known.shape[1] else self.known.new_full((len(self.area),), torch.inf)
        return Proof(bound > 0, bound, self.broken, self.counter, self.stage, self.seconds)

    def _stages(self) -> None:
        every = torch.arange(len(self.area), device=self.area.x.device)
        now = torch.cat([self.graph.forward(self.area.x[rows]) for rows in self._parts(every)])
        self.at_x = (self.claims.a @ now[:, :, None])[:, :, 0] + self.claims.rest
        self.broken |= (self.at_x <= 0).any(1)
        for rows in self._parts(every):
            self._cheap(rows)
        if self.depth >= 4 and self.graph.bends and not self.late():
            self._dear()
            self._spent(4)

    def _parts(self, rows: Tensor) -> Iterator[Tensor]:
        values = 3 * sum(int(torch.Size(node.shape).numel()) for node in self.graph.nodes)
        yield from rows.split(max(1, min(1024, _MEMORY // (8 * values))))

    def _spent(self, stage: int) -> None:
        now = time.monotonic()
        self.seconds[EFFORTS[stage]] += now - self.clock
        self.clock = now

    def _learn(self, rows: Tensor, bound: Tensor, stage: int) -> None:
        """New bounds `[len(rows), k]` of all claims of some rows."""
        bound = torch.where(bound.isnan(), -torch.inf, bound)
        before = (self.known[rows] > 0).all(1)
        self.known[rows] = torch.maximum(self.known[rows], bound)
        fresh = (self.known[rows] > 0).all(1) & ~before
        self.stage[rows[fresh]] = stage

    def _left(self, rows: Tensor) -> Tensor:
        """Which of the rows are worth more work: not proved, and not known to be broken (bool)."""
        return ~((self.known[rows] > 0).all(1) | self.broken[rows])

    def _settle(self, rows: Tensor, bounds: Bounds, stage: int, relaxed: bool = True) -> None:
        graph, area = self.graph, self.area[rows]
        where = context(graph, area, bounds) if relaxed else stopped(graph, area, bounds)
        noise = bounds.noise[graph.last]
        count = max(1, PAIRS // max(1, self.known.shape[1]))
        for part in torch.arange(len(rows), device=rows.device).split(count):
            for which in torch.arange(self.known.shape[1], device=rows.device).split(PAIRS):
                claims = Claims(self.claims.a[rows[part]][:, which], self.claims.rest[rows[part]][:, which])
                found = settle(where[part], claims, noise[part])
                whole = torch.full_like(self.known[rows[part]], -torch.inf)
                whole[:, which] = found
                self._learn(rows[part], whole, stage)
        self._spent(stage)

    def _cheap(self, rows: Tensor) -> None:
        """Everything but splitting, for as many rows as fit into memory."""
        bounds = propagate(self.graph, self.area[rows])
        self._settle(rows, bounds, 0, relaxed=False)
        if not self.graph.bends:
            return
        rows, bounds = self._hopeful(*self._drop(rows, bounds))
        for stage, step in ((1, self._linear), (2, self._thorough), (3, self._tuned)):
            if self.depth >= stage and len(rows) and not self.late():
                rows, bounds = step(rows, bounds)
                self._spent(stage)

    def _drop(self, rows: Tensor, bounds: Bounds) -> tuple[Tensor, Bounds]:
        left = self._left(rows)
        return (rows, bounds) if bool(left.all()) else (rows[left], bounds[left])

    def _hopeful(self, rows: Tensor, bounds: Bounds) -> tuple[Tensor, Bounds]:
        if self.most_open is None:
            return rows, bounds
        counts = [undecided(self.graph, at, bounds).flatten(1).sum(1) for at in before_bends(self.graph)]
        few = torch.stack(counts).sum(0) <= self.most_open
        self.hopeless[rows[~few]] = True
        return rows[few], bounds[few]

    def _linear(self, rows: Tensor, bounds: Bounds) -> tuple[Tensor, Bounds]:
        """Linear bounds over intervals; only some rows where that proves nothing."""
        every = torch.arange(len(rows), device=rows.device)
        if 1 not in self.worth:
            first, every = every[:_PROBE], every[_PROBE:]
            self._settle(rows[first], bounds[first], 1)
            self.worth[1] = not bool(self._left(rows[first]).all())
        if self.worth[1] and len(every):
            self._settle(rows[every], bounds[every], 1)
        return self._drop(rows, bounds)

    def _thorough(self, rows: Tensor, bounds: Bounds) -> tuple[Tensor, Bounds]:
        """Linear bounds throughout; only some rows where that proves nothing and no stage follows that needs them."""
        if self.depth > 2 and self.most_short is None:
            return self._throughout(rows, bounds)
        if 3 not in self.worth:
            every = torch.arange(len(rows), device=rows.device)
            first, every = every[:_PROBE], every[_PROBE:]
            self.worth[3] = len(self._throughout(rows[first], bounds[first])[0]) < len(first)
            rows, bounds = rows[every], bounds[every]
        return self._throughout(rows, bounds) if self.worth[3] and len(rows) else (rows, bounds)

    def _throughout(self, rows: Tensor, bounds: Bounds) -> tuple[Tensor, Bounds]:
        """Linear bounds of every activation's input that is open, then of the scores; rows leave as they are proved."""
        for step, at in enumerate(before_bends(self.graph)):
            if not len(rows) or self.late():
                break
            if step >= 2 and self.worth.get(2, True):
                before = len(rows)
                self._settle(rows, bounds, 2)
                rows, bounds = self._drop(rows, bounds)
                self.worth[2] = len(rows) < before
            bounds = self._tighter(rows, bounds, at)
        if len(rows):
            self._settle(rows, bounds, 2)
        return self._drop(rows, bounds)

    def _tighter(self, rows: Tensor, bounds: Bounds, at: int) -> Bounds:
        if not len(rows):
            return bounds
        if at not in self.cones:
            self.cones[at] = local.find(self.graph, at, self.area.x)
        cones = self.cones[at]
        if cones is not None:
            return local.tighten(self.graph, self.area[rows], bounds, cones)
        if self.area.order == "linf" and local.straight(self.graph, at):
            return bounds
        return refine(self.graph, self.area[rows], bounds, at, parallel=True)

    def _open(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The claims of the rows that are not proved: (place in rows, number of the claim)."""
        at, which = (self.known[rows] <= 0).nonzero(as_tuple=True)
        return at, which

    def _tuned(self, rows: Tensor, bounds: Bounds) -> tuple[Tensor, Bounds]:
        if self.most_short is not None:
            near = self.known[rows].amin(1) > -self.most_short * self.at_x[rows].amin(1)
            rows, bounds = rows[near], bounds[near]
        else:
            # a counterexample is cheaper than a long attempt at a proof
            self._refute(rows)
            rows, bounds = self._drop(rows, bounds)
        at, which = self._open(rows)
        for part in torch.arange(len(at), device=at.device).split(PAIRS // 4):
            if self.late():
                break
            i, k = at[part], which[part]
            claims = self.claims.singly(rows[i], k)
            tuned = tune(self.graph, self.area[rows[i]], bounds[i], claims, _TUNING, stop=self.late)
            self._learn_singly(rows[i], k, tuned.value, 3)
        return self._drop(rows, bounds)

    def _learn_singly(self, rows: Tensor, which: Tensor, value: Tensor, stage: int) -> None:
        whole = torch.full_like(self.known, -torch.inf)
        whole[rows, which] = value
        touched = rows.unique()
        self._learn(touched, whole[touched], stage)

    def _dear(self) -> None:
        """Splitting, for what is left of all rows."""
        every = torch.arange(len(self.area), device=self.area.x.device)
        rows = (self._left(every) & ~self.hopeless).nonzero().flatten()
        if not len(rows) or any(isinstance(self.graph.nodes[i].op, Smooth) for i in self.graph.bends):
            return
        # the nearest to a proof first: a deadline then leaves as many whole answers as can be
        rows = rows[self.known[rows].amin(1).argsort(descending=True)]
        for part in self._parts(rows):
            if self.late():
                break
            bounds = propagate(self.graph, self.area[part])
            for at in before_bends(self.graph):
                bounds = self._tighter(part, bounds, at)
            i, k = self._open(part)
            problem = Problem(self.graph, self.area[part[i]], bounds[i], self.claims.singly(part[i], k))
            self._learn_singly(part[i], k, search(problem, Limits(), self.late), 4)

    def _refute(self, rows: Tensor) -> None:
        found = counter(self.graph, self.area[rows], self.claims[rows], self.late)
        hit = found.margin <= 0
        self.broken[rows[hit]] = True
        self.counter[rows[hit]] = found.x[hit]
