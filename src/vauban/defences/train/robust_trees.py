"""Boosted trees that are grown against the worst case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vauban.core.data import Data
from vauban.core.defence import Context, Hardened
from vauban.core.rng import Rng
from vauban.core.target import EstimatorBacked, Target
from vauban.defences.common import Redone
from vauban.defences.train.grafts import Booster, Grown, Stub, grafted, plant
from vauban.parts.boosting import Boosting, Rows, boosted, reached, worst
from vauban.parts.exact.base import Floats
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source
from vauban.schema.errors import BadData, BadThreat, NotOffered

TREES = frozenset(
    {
        "DecisionTreeClassifier",
        "ExtraTreeClassifier",
        "ExtraTreesClassifier",
        "GradientBoostingClassifier",
        "HistGradientBoostingClassifier",
        "RandomForestClassifier",
    }
)
"""Classes of scikit-learn in whose place boosted trees may stand."""


@dataclass(frozen=True, kw_only=True)
class RobustTrees:
    """Grows boosted trees anew, so that each split and each leaf is right for a row wherever within the threat it may stand.

    A row stands for the whole box around it: where its box is cut by a threshold, the split is judged as if the row took the side
    that is worse for it, and a leaf's value counts for a row that may come to it where it is the worst that the row may come to. So
    an upper bound of the loss in the worst case is trained on, and no tree makes it larger. What comes out is a genuine
    `GradientBoostingClassifier` of scikit-learn, whatever trees were given, for inputs in the data's own units: scalers in front are
    left out, for trees do not need them.

    Source: Andriushchenko and Hein 2019 (arXiv:1906.03526, sections 3 and 4).
    Departures: the logistic loss to the second order in the place of the exponential, so that the best split is that of an
    ordinary booster on rows moved to an end of their box; the leaves of each tree are corrected together, for that is a convex
    problem; several classes, each bounded by itself; thresholds are `bins` quantiles a feature; the box of valid inputs cuts the box
    around a row.

    Args:
        trees: rounds, each a tree (of several classes, a tree a class).
        depth: splits between root and leaf, at most; 1 for stumps.
        rate: share of each tree that is added, in (0, 1].
        penalty: L2 penalty on the values of the leaves, at least 0.
        bins: thresholds a feature that are tried.
        share: of the threat's radius that is trained against, in [0, 1]; less keeps more accuracy on clean inputs.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="train.robust_trees",
        name="Robust boosted trees",
        summary="Grows the trees anew so that small changes of an input lead to no other answer.",
        needs=Access.TRAINING | Access.DATA_READ,
        tasks=("classification",),
        adaptive=("evasion.cascade", "evasion.square", "evasion.rays"),
        threats=("evasion",),
        sources=(
            Source(
                title="Provably robust boosted decision stumps and trees against adversarial attacks",
                where="Andriushchenko, Hein, NeurIPS 2019, arXiv:1906.03526, sections 3 and 4",
            ),
            Source(
                title="Robust decision trees against adversarial examples",
                where="Chen, Zhang, Boning, Hsieh, ICML 2019, arXiv:1902.10660",
            ),
        ),
    )

    trees: int = 100
    depth: int = 4
    rate: float = 0.3
    penalty: float = 1.0
    bins: int = 128
    share: float = 1.0

    def __post_init__(self) -> None:
        for name in ("trees", "depth", "bins"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate is a share in (0, 1], got {self.rate}")
        if not 0 <= self.penalty < float("inf"):
            raise ValueError(f"penalty must be at least 0, got {self.penalty}")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is a part of the radius in [0, 1], got {self.share}")

    @classmethod
    def unfit(cls, target: Target) -> str:
        steps = getattr(target.estimator, "steps", None) if isinstance(target, EstimatorBacked) else ()
        last = steps[-1][1] if steps else getattr(target, "estimator", None)
        return "" if type(last).__name__ in TREES else "grows trees in the place of a tree model of scikit-learn"

    def __call__(self, target: Target, data: Data, rng: Rng, context: Context) -> Hardened:
        model = self._trees(target)
        space, radius = context.space, context.radius
        if space is None or radius is None or space.name != "linf":
            given = "none was given" if space is None else f"this one is in {space.name}"
            raise BadThreat(f"{self.card.id} trains against one threat in linf, and {given}: say --threat linf:0.1.")
        box = Box(torch.as_tensor(space.low), torch.as_tensor(space.high), self.share * radius)
        stub = self._stub(model, data.x_train, data.y_train)
        grown, facts = self._grown(stub, data.x_train, data.y_train, box, context.progress)
        made = self._around(model, grafted(stub, grown, self.depth), box)
        told = {"space": "linf", "radius": radius, "share": self.share, "trees": self.trees, "depth": self.depth}
        return Hardened(made, {**told, **facts}, state={**grown.state(), **box.state()})

    def restore(self, target: Target, data: Data, state: Mapping[str, Tensor]) -> Target:
        model, grown = self._trees(target), Grown.of(state)
        stub = self._stub(model, data.x_train, data.y_train)
        return self._around(model, grafted(stub, grown, self.depth), Box.of(state))

    def _trees(self, target: Target) -> EstimatorBacked:
        why = self.unfit(target)
        if why or not isinstance(target, EstimatorBacked):
            raise NotOffered(
                f"{self.card.id} {why}, and {target.id} is none: give a fitted tree, forest or booster, or choose another "
                "defence."
            )
        if target.domain.task == "regression":
            raise NotOffered(f"{self.card.id} is made for classification, and this is a regression.")
        return target

    def _grown(
        self, stub: Stub, x: Tensor, y: Tensor, box: Box, progress: Callable[..., None] = lambda done, total, text: None
    ) -> tuple[Grown, dict[str, Any]]:
        low, high = box.around(x)
        rows, truth = Rows.of(low, high, self.bins), y.detach().cpu().numpy().astype(np.int64)
        how = Boosting(trees=self.trees, depth=self.depth, rate=self.rate, penalty=self.penalty, bins=self.bins)
        found = boosted(rows, truth, stub.start, how, lambda done: progress(done, self.trees, "growing trees"))
        # the booster adds a share of each tree, by its own rate
        grown = Grown([[tree._replace(value=tree.value / self.rate) for tree in stage] for stage in found])
        return grown, {"training_error_bound": _bound(grown, self.rate, stub.start, low, high, truth)}

    def _around(self, model: EstimatorBacked, booster: Booster, box: Box) -> Target:
        def again(x: Tensor, y: Tensor, seed: int) -> Target:
            stub = self._stub(model, x, y)
            fresh = grafted(stub, self._grown(stub, x, y, box)[0], self.depth)
            return model.refitted(fresh, f"+{self.card.id}+seed{seed}", None)

        return model.refitted(booster, f"+{self.card.id}", Redone(again) if model.recipe else None)

    def _stub(self, model: EstimatorBacked, x: Tensor | None, y: Tensor | None) -> Stub:
        if x is None or y is None or not len(x):
            raise BadData(f"{self.card.id} trains the model, and there are no training rows: give x_train and y_train.")
        last = getattr(model.estimator, "steps", [("", model.estimator)])[-1][1]
        known = np.asarray(last.classes_)
        truth = y.detach().cpu().numpy().astype(np.int64)
        missing = sorted(set(range(len(known))) - set(truth.tolist()))
        if missing:
            raise BadData(
                f"The training rows lack class {known[missing[0]]}, which the model knows: give rows of each."
            )
        return plant(known[truth], int(np.prod(x.shape[1:])), self.trees, self.depth, self.rate)


@dataclass(frozen=True, eq=False)
class Box:
    """The box of valid inputs, and how far within it a row may be moved."""

    low: Tensor
    high: Tensor
    radius: float

    def state(self) -> dict[str, Tensor]:
        return {
            "low": self.low.cpu(),
            "high": self.high.cpu(),
            "radius": torch.tensor(self.radius, dtype=torch.float64),
        }

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Box:
        return cls(state["low"], state["high"], float(state["radius"]))

    def around(self, x: Tensor) -> tuple[Floats, Floats]:
        """Ends `[n, d]` of the intervals around rows `x` `[n, ...]`, which trees read as float32."""
        rows = x.detach().cpu().float().double()
        ends = []
        for side, sign, cut in ((self.low, -1, torch.maximum), (self.high, 1, torch.minimum)):
            wall = side.detach().cpu().double().expand_as(rows)
            # a row that lies outside of the box may stay where it is
            moved = cut(rows + sign * self.radius, wall)
            ends.append(torch.minimum(moved, rows) if sign < 0 else torch.maximum(moved, rows))
        return ends[0].flatten(1).numpy(), ends[1].flatten(1).numpy()


def _bound(grown: Grown, rate: float, start: Floats, low: Floats, high: Floats, y: Any) -> float:
    """Share of rows that no sum over each tree's own worst case shows to be answered right everywhere in their box."""
    columns = len(start)
    signs = np.where(y[:, None] == (np.arange(columns) if columns > 1 else 1), 1.0, -1.0)
    scores = np.tile(start, (len(y), 1))
    for stage in grown.stages:
        for column, tree in enumerate(stage):
            leaves = reached(tree, low, high) & (tree.left < 0)
            scores[:, column] += rate * worst(tree.value, leaves, signs[:, column])[0]
    if columns == 1:
        return float((signs[:, 0] * scores[:, 0] <= 0).mean())
    own = np.take_along_axis(scores, y[:, None], 1)[:, 0]
    np.put_along_axis(scores, y[:, None], -np.inf, 1)
    return float((own <= scores.max(1)).mean())
