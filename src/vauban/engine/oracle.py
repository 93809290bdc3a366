"""The metered oracle: the only way from an attack to a model."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from vauban.core.goal import Goal
from vauban.core.oracle import Best, Look, Loss, Slopes, Spent
from vauban.core.space import Continuous
from vauban.core.target import Featured, OutputKind, Outputs, Target
from vauban.engine.batching import answers, filled, grain, micro_batch, slices
from vauban.parts.frames import Render, as_is
from vauban.parts.losses import as_logits
from vauban.schema.access import EVERYTHING, Access
from vauban.schema.errors import BadTarget, Limit, NotOffered
from vauban.schema.threat import Budget

NO_LIMIT = 2**62

Prover = Callable[[Tensor, Tensor, str, float | None], Tensor]
"""(inputs, true classes, effort, deadline) -> bool `[m]`: nothing within the radius is answered otherwise."""
FIRM = 1e-5
"""Share of the largest score by which a nearest success must exceed the border, for rounding not to undo it."""


def slack(radius: float, x: Tensor) -> float:
    """How far a float32 point may lie outside its radius: rounding of the coordinates, never more."""
    return 1e-6 * radius + 4e-7 * (float(x.abs().max()) if x.numel() else 0.0)


class MeteredOracle:
    """Implements `core.oracle.Oracle` over a target.

    Counts queries and gradients per row, enforces access and budget, keeps the best admissible point of every row,
    and closes rows as soon as they are decided. Gradients are taken with respect to the input alone, so weights
    never get a `.grad`. Batches are cut into micro-batches that suit the cache.

    Args:
        target: the model; needs at least `access & target.offers`.
        goal: what counts as success.
        space: distance and box.
        x: where nothing is changed, `[n, ...]`: clean inputs, or knobs at zero.
        radius: how far points may be; inf together with `nearest=True`.
        access: what the threat model grants.
        budget: per-sample limits on queries and gradients.
        nearest: search for the nearest success instead of any within the radius.
        micro_batch: rows per forward pass; chosen from the model's activations where None.
        deadline: `time.monotonic()` after which every call raises Limit.
        progress: told (rows decided, rows) after each call.
        prover: proves rows robust, where that is possible.
        render: makes inputs of points (`Frame.render`), for they alone are shown to the target.
    """

    def __init__(
        self,
        target: Target,
        goal: Goal,
        space: Continuous,
        x: Tensor,
        radius: float,
        *,
        access: Access = EVERYTHING,
        budget: Budget | None = None,
        nearest: bool = False,
        micro_batch: int | None = None,
        deadline: float | None = None,
        progress: Callable[[int, int], None] | None = None,
        prover: Prover | None = None,
        render: Render = as_is,
    ) -> None:
        self.goal, self.nearest = goal, nearest
        self._target, self._space, self._x, self._radius = target, space, x, radius
        self.grants = access & target.offers
        self._budget = budget or Budget()
        self._render = render
        self._size = micro_batch or self._suited()
        self._grain = grain(target)
        self._deadline, self._progress, self._prover = deadline, progress, prover
        n, device = len(x), x.device
        self.spent = Spent(torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64))
        self.best = Best(
            x=x.clone(),
            margin=torch.full((n,), -torch.inf, device=device),
            distance=torch.full((n,), torch.inf, dtype=torch.float64, device=device),
        )
        self._decided = torch.zeros(n, dtype=torch.bool, device=device)
        self.certified = torch.zeros(n, dtype=torch.bool, device=device)
        """Rows closed by a proof."""
        self._slack = slack(radius, x) if radius != float("inf") else 0.0

    # What an attack may ask --------------------------------------------------------------------------------------

    def begin(self) -> Tensor:
        """Look at the clean inputs and close the rows that already reach the goal; `[n]` margins. One query a row."""
        rows = torch.arange(len(self._x), device=self._x.device)
        if Access.SCORES in self.grants:
            margin = self._scored(self.goal.margin, self._x, rows, firmly=False)
        else:
            margin = self._from_labels(self._x, rows, firmly=False)
        self.best.distance[rows] = torch.where(margin > 0, 0.0, torch.inf).to(torch.float64)
        self._decided |= margin > 0
        return margin

    @property
    def rows(self) -> Tensor:
        return self.open(torch.arange(len(self._x), device=self._x.device)).nonzero().flatten()

    def open(self, rows: Tensor, gradients: int = 1) -> Tensor:
        still = ~self._decided[rows]
        if self._budget.queries is not None or self._budget.gradients is not None:
            still &= self._within(rows, 1, gradients)
        return still

    def left(self, rows: Tensor) -> Tensor:
        if self._budget.queries is None:
            return torch.full((len(rows),), NO_LIMIT, dtype=torch.int64, device=rows.device)
        return (self._budget.queries - self.spent.queries[rows.cpu()]).clamp_min(0).to(rows.device)

    def labels(self, x: Tensor, rows: Tensor) -> Tensor:
        self._need(Access.LABELS)
        return self._forward(x, rows).labels

    def reaches(self, x: Tensor, rows: Tensor) -> Tensor:
        self._need(Access.LABELS)
        return self._from_labels(x, rows) > 0

    def scores(self, x: Tensor, rows: Tensor) -> Tensor:
        return self._scored(lambda out, _: out.values, x, rows)

    def margins(self, x: Tensor, rows: Tensor) -> Tensor:
        return self._scored(self.goal.margin, x, rows)

    def values(self, loss: Loss, x: Tensor, rows: Tensor) -> Tensor:
        return self._scored(loss, x, rows)

    def value_and_grad(self, loss: Loss, x: Tensor, rows: Tensor, keep: bool = True) -> Look:
        self._need(Access.GRADIENTS)

        def look(leaf: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
            out = self._target.forward(self._render(leaf, part))
            value = loss(out, part)
            margin = value if loss == self.goal.margin else self.goal.margin(out, part)
            return value, self._past_rounding(out, margin)

        return self._differentiate(look, x, rows, keep)

    def class_slopes(self, x: Tensor, rows: Tensor, classes: Tensor, base: Tensor) -> Slopes:
        self._need(Access.GRADIENTS)
        many = classes.shape[1]
        self._admit(rows, gradients=many)
        scores, margins = [], []
        grad = torch.empty(len(x), many, *x.shape[1:], dtype=x.dtype, device=x.device)
        for cut in slices(len(x), self._size):
            count = cut.stop - cut.start
            leaf = filled(x[cut], self._grain).detach().requires_grad_(True)
            part = filled(rows[cut], self._grain)
            with torch.enable_grad():
                out = self._target.forward(self._render(leaf, part))
                z = as_logits(out)
                gaps = z.gather(1, filled(classes[cut], self._grain)) - z.gather(
                    1, filled(base[cut, None], self._grain)
                )
                # one pass back a class over one pass forward: cheaper on a CPU than batched gradients or copied rows
                for column in range(many):
                    slope = _slope(gaps[:, column], leaf, again=column + 1 < many)
                    grad[cut, column] = 0 if slope is None else slope[:count]
                margin = self._past_rounding(out, self.goal.margin(out, part))
                margins.append(margin.detach()[:count])
            scores.append(z.detach()[:count])
        margin = torch.cat(margins).to(self.best.margin.dtype)
        self._charge(rows, queries=1, gradients=many)
        self._note(x, rows, margin)
        return Slopes(torch.cat(scores), grad, margin, self.open(rows))

    def prove(self, effort: str) -> int:
        rows = self.rows
        if self._prover is None or not len(rows) or self.nearest:
            return 0
        sure = rows[self._prover(self._x[rows], self.goal.labels.to(rows.device)[rows], effort, self._deadline)]
        self.certified[sure] = True
        self._decided[sure] = True
        return len(sure)

    def features(self, x: Tensor, rows: Tensor) -> Tensor:
        self._need(Access.FEATURES)
        target = self._featured()
        with torch.no_grad():
            found = [
                target.forward_features(self._render(filled(x[cut], self._grain), filled(rows[cut], self._grain)))[1][
                    : cut.stop - cut.start
                ]
                for cut in slices(len(x), self._size)
            ]
        self._charge(rows, queries=1)
        return torch.cat(found)

    def feature_value_and_grad(self, loss: Loss, x: Tensor, rows: Tensor) -> Look:
        self._need(Access.FEATURES | Access.GRADIENTS)
        target = self._featured()

        def look(leaf: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
            out, features = target.forward_features(self._render(leaf, part))
            return loss(Outputs(features, "values"), part), self.goal.margin(out, part)

        return self._differentiate(look, x, rows)

    # How it is done -------------------------------------------------------------------------------------------------

    def _differentiate(
        self, look: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], x: Tensor, rows: Tensor, keep: bool = True
    ) -> Look:
        self._admit(rows, gradients=1)
        values, margins, grad = [], [], torch.empty_like(x)
        for cut in slices(len(x), self._size):
            count = cut.stop - cut.start
            leaf = filled(x[cut], self._grain).detach().requires_grad_(True)
            with torch.enable_grad():
                value, margin = look(leaf, filled(rows[cut], self._grain))
                slope = _slope(value, leaf)
            grad[cut] = 0 if slope is None else slope[:count]
            values.append(value.detach()[:count])
            margins.append(margin.detach()[:count])
        margin = torch.cat(margins).to(self.best.margin.dtype)
        self._charge(rows, queries=1, gradients=1)
        if keep:
            self._note(x, rows, margin)
        return Look(torch.cat(values), grad, margin, self.open(rows))

    def _forward(self, x: Tensor, rows: Tensor) -> Outputs:
        return self._visible(self._answers(x, rows))

    def _answers(self, x: Tensor, rows: Tensor) -> Outputs:
        self._admit(rows)
        out = answers(self._target, x, self._size, self._render, rows)
        self._charge(rows, queries=1)
        return out

    def _scored(self, loss: Loss, x: Tensor, rows: Tensor, firmly: bool = True) -> Tensor:
        self._need(Access.SCORES)
        out = self._forward(x, rows)
        margin = self.goal.margin(out, rows)
        margin = (self._past_rounding(out, margin) if firmly else margin).to(self.best.margin.dtype)
        self._note(x, rows, margin)
        return margin if loss == self.goal.margin else loss(out, rows)

    def _from_labels(self, x: Tensor, rows: Tensor, firmly: bool = True) -> Tensor:
        kind: OutputKind = "values" if self._target.domain.task == "regression" else "labels"
        out = self._answers(x, rows)
        margin = self.goal.margin(Outputs(out.labels, kind), rows).to(self.best.margin.dtype)
        self._note(x, rows, self._firm(out, rows, margin) if self.nearest and firmly else margin)
        return margin

    def _firm(self, out: Outputs, rows: Tensor, margin: Tensor) -> Tensor:
        """The margin where it exceeds the rounding of the scores, minus infinity elsewhere.

        Whoever looks for the nearest success by labels ends so close to the border that a forward pass in another order
        of memory may undo it. The scores, where the target gives any, tell; the attack is not told.
        """
        if out.kind == "labels":
            return margin
        scale = out.values.reshape(len(out.values), -1).abs().amax(1)
        return torch.where(self.goal.margin(out, rows) > FIRM * scale, margin, -torch.inf)

    def _past_rounding(self, out: Outputs, margin: Tensor) -> Tensor:
        """In a search for the nearest, the margin lessened by what rounding may undo, for the attack to see it, too."""
        if not self.nearest or out.kind == "labels":
            return margin
        return margin - FIRM * out.values.detach().reshape(len(out.values), -1).abs().amax(1)

    def _visible(self, out: Outputs) -> Outputs:
        """Without LOGITS an attacker sees probabilities."""
        if out.kind == "logits" and Access.LOGITS not in self.grants:
            return Outputs(F.softmax(out.values, 1), "probabilities")
        return out

    def _note(self, x: Tensor, rows: Tensor, margin: Tensor) -> None:
        """Keep what is better than before. A row that occurs several times keeps its best occurrence."""
        distance = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=x.device)
        # a decided row changes no more, unless a nearer point is looked for: its points need no check
        hits = (margin > 0 if self.nearest else (margin > 0) & ~self._decided[rows]).nonzero().flatten()
        if len(hits):
            z, clean = x[hits], self._x[rows[hits]]
            reach = self._space.distance(z, clean)
            fit = self._space.allowed(z, clean).all & (reach <= self._radius + self._slack)
            distance[hits] = torch.where(fit, reach, torch.inf)
            margin = margin.clone()
            margin[hits[~fit]] = -torch.inf
        self._keep_nearest(x, rows, margin, distance) if self.nearest else self._keep_largest(x, rows, margin, distance)
        if self._progress is not None:
            self._progress(int(self._decided.sum()), len(self._decided))

    def _keep_largest(self, x: Tensor, rows: Tensor, margin: Tensor, distance: Tensor) -> None:
        better = margin > self.best.margin[rows]
        better &= ~self._decided[rows]
        if not better.any():
            return
        top = self.best.margin.scatter_reduce(0, rows, margin, "amax")
        win = (better & (margin == top[rows])).nonzero().flatten()
        self._store(win, x, rows, margin, distance)
        self._decided[rows[win]] |= margin[win] > 0

    def _keep_nearest(self, x: Tensor, rows: Tensor, margin: Tensor, distance: Tensor) -> None:
        best = self.best.distance.scatter_reduce(0, rows, distance, "amin")
        win = ((distance < self.best.distance[rows]) & (distance == best[rows])).nonzero().flatten()
        self._store(win, x, rows, margin, distance)

    def _store(self, win: Tensor, x: Tensor, rows: Tensor, margin: Tensor, distance: Tensor) -> None:
        at = rows[win]
        self.best.x[at] = x[win].detach()
        self.best.margin[at] = margin[win]
        self.best.distance[at] = distance[win]

    # Metering -------------------------------------------------------------------------------------------------------

    def _need(self, access: Access) -> None:
        missing = access & ~self.grants
        if missing:
            raise NotOffered(
                f"This attack asked for {', '.join(missing.words())}, which the threat model does not grant or the "
                "target does not offer: choose an attack that needs less, or grant more."
            )

    def _within(self, rows: Tensor, queries: int, gradients: int) -> Tensor:
        """Rows whose budget allows that much more."""
        at = rows.cpu()
        fine = torch.ones(len(at), dtype=torch.bool)
        if self._budget.queries is not None:
            fine &= self.spent.queries[at] + queries <= self._budget.queries
        if self._budget.gradients is not None and gradients:
            fine &= self.spent.gradients[at] + gradients <= self._budget.gradients
        return fine.to(rows.device)

    def _admit(self, rows: Tensor, gradients: int = 0) -> None:
        """Refuse a call that would overrun the budget of any row (Limit), or that comes after the deadline."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise Limit("the time limit was reached")
        if self._budget.queries is None and self._budget.gradients is None:
            return
        times = torch.bincount(rows.cpu(), minlength=len(self._x))
        over = torch.zeros(len(self._x), dtype=torch.bool)
        if self._budget.queries is not None:
            over |= self.spent.queries + times > self._budget.queries
        if self._budget.gradients is not None and gradients:
            over |= self.spent.gradients + gradients * times > self._budget.gradients
        if bool((over & (times > 0)).any()):
            raise Limit("the query budget was spent")

    def _charge(self, rows: Tensor, queries: int = 0, gradients: int = 0) -> None:
        times = torch.bincount(rows.cpu(), minlength=len(self._x))
        self.spent.queries += queries * times
        self.spent.gradients += gradients * times

    def _suited(self) -> int:
        """Rows per forward pass, by the size of an input."""
        if not len(self._x):
            return 1
        first = self._render(self._x[:1], torch.zeros(1, dtype=torch.int64, device=self._x.device))
        return micro_batch(self._target, first.expand(len(self._x), *first.shape[1:]))

    def _featured(self) -> Featured:
        if not isinstance(self._target, Featured):
            raise BadTarget("The target offers features but cannot read them: this is a defect of the target.")
        return self._target


def _slope(value: Tensor, leaf: Tensor, again: bool = False) -> Tensor | None:
    """The input gradient of `value` `[m]`; None, which `doubt` then finds, where there is no way back to the input."""
    if not value.requires_grad:
        return None
    found: Tensor | None = torch.autograd.grad(value.sum(), leaf, allow_unused=True, retain_graph=again)[0]
    return found
