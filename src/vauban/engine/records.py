"""The records of a leakage audit, and the reference models that its attacks share."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.core.target import Outputs, Recipe, Target
from vauban.engine.case import Case
from vauban.parts.membership import References, answers, complementary_splits
from vauban.schema.errors import Limit

CAPS = {"smoke": 250, "standard": 1000, "deep": 10_000}
"""Members (and as many non-members) at most, by profile."""
FEWEST = 20


@dataclass(frozen=True)
class Records:
    """As many members (training rows) as non-members (test rows), in this order."""

    x: Tensor
    y: Tensor
    member: Tensor
    """bool `[n]`."""
    rows: Tensor
    """Row numbers: within the training rows for members, within the test rows for non-members."""
    x_rest: Tensor
    y_rest: Tensor
    """All other rows, for the reference models' training sets."""
    duplicates: int
    """Test rows left out because the same input is a training row too."""


def draw_records(data: Data, cap: int, generator: np.random.Generator) -> Records:
    """At most `cap` members and as many non-members. Test rows that repeat a training row are no non-members."""
    seen = {row.numpy().tobytes() for row in data.x_train}
    fresh = np.array([row.numpy().tobytes() not in seen for row in data.x_test], dtype=bool)
    outside = np.flatnonzero(fresh)
    count = min(cap, len(data.x_train), len(outside))
    member_rows = np.sort(generator.permutation(len(data.x_train))[:count])
    other_rows = np.sort(generator.permutation(outside)[:count])
    rest_train = np.setdiff1d(np.arange(len(data.x_train)), member_rows)
    rest_test = np.setdiff1d(outside, other_rows)
    return Records(
        x=torch.cat([data.x_train[member_rows], data.x_test[other_rows]]),
        y=torch.cat([data.y_train[member_rows], data.y_test[other_rows]]),
        member=torch.arange(2 * count) < count,
        rows=torch.from_numpy(np.concatenate([member_rows, other_rows])),
        x_rest=torch.cat([data.x_train[rest_train], data.x_test[rest_test]]),
        y_rest=torch.cat([data.y_train[rest_train], data.y_test[rest_test]]),
        duplicates=int((~fresh).sum()),
    )


def records_of(case: Case) -> Records:
    """The records of this case, drawn once."""
    cap = CAPS.get(case.profile, CAPS["standard"])
    return case.share(
        "leakage.records", lambda: draw_records(case.data, cap, Rng(case.seed_for("leakage.records")).numpy())
    )


@dataclass
class ReferencePool:
    """Reference models, trained in complementary pairs when first asked for, and kept as their answers only.

    Model 2k is trained on a random half of the records (half of the members, half of the non-members), model 2k + 1
    on the other half; both on as many rows as the target, filled up from the rows that are not audited. The first
    model itself is kept as the null control: it knows a half that has nothing to do with the target's membership.
    """

    recipe: Recipe
    records: Records
    case: Case
    size: int
    """Training rows of the target."""
    inside: list[Tensor] = field(default_factory=list)
    outputs: list[Outputs] = field(default_factory=list)
    kept: list[Target] = field(default_factory=list)

    @property
    def null(self) -> Target | None:
        """The first model; None before the first training."""
        return self.kept[0] if self.kept else None

    def get(self, count: int) -> References:
        """At least `count` models; fewer (but at least 2) where the deadline comes first. Raises Limit before the first pair."""
        pairs = math.ceil(count / 2)
        while len(self.outputs) < 2 * pairs:
            if self._late():
                break
            self._train_pair(len(self.outputs) // 2, pairs)
        return References(torch.stack(self.inside[: 2 * pairs]), tuple(self.outputs[: 2 * pairs]))

    def without_null(self, count: int) -> References:
        """The same references less the pair of the null model; at least one pair."""
        found = self.get(max(count, 4))
        return References(found.inside[2:], found.outputs[2:])

    def _late(self) -> bool:
        deadline = self.case.deadline
        late = deadline is not None and time.monotonic() > deadline
        if late and len(self.outputs) < 4:
            raise Limit("the time limit was reached before there were reference models enough")
        return late

    def _train_pair(self, pair: int, pairs: int) -> None:
        splits = complementary_splits(
            self.records.member.to(torch.int64), 1, Rng(self.case.seed_for("leakage.split", pair)).torch()
        )
        for side, mask in enumerate(splits):
            self.case.progress(2 * pair + side, 2 * pairs, "reference models")
            seed = self.case.seed_for("leakage.reference", pair, side) % 2**31
            model = self.recipe.fit(*self._training_set(mask, seed), seed)
            if not self.kept:
                self.kept.append(model)
            self.inside.append(mask)
            self.outputs.append(answers(model, self.records.x))

    def _training_set(self, mask: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        records = self.records
        spare = max(0, self.size - int(mask.sum()))
        fill = torch.randperm(len(records.x_rest), generator=torch.Generator().manual_seed(seed))[:spare]
        return torch.cat([records.x[mask], records.x_rest[fill]]), torch.cat([records.y[mask], records.y_rest[fill]])


def pool_of(case: Case) -> ReferencePool | None:
    """The reference models of this case, or None where the target cannot be trained anew."""
    recipe = case.target.recipe
    if recipe is None:
        return None
    records = records_of(case)
    pool: ReferencePool = case.share(
        f"leakage.references:{case.target.id}", lambda: ReferencePool(recipe, records, case, len(case.data.x_train))
    )
    # the models are shared, deadline and progress are those of who asks: the first to ask may have had little time
    return replace(pool, case=case)
