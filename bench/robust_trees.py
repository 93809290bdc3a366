"""Robust boosted trees beside an ordinary booster of equal size: how often each is wrong, unmoved and moved.

    python bench/robust_trees.py [--quick] [--seeds 3] [--rows 6000] [--judged 200] [--seconds 1]

Breast cancer (scikit-learn's, 569 rows, 30 features, a quarter of them judged) and Adult (numbers as they are, categories as 0 or 1;
`--rows` of the training file, `--judged` of the test file), every feature scaled to 0 to 1 by the training rows, linf, the box 0 to 1.
`plain` is scikit-learn's GradientBoostingClassifier with its own settings (100 trees of depth 3); `robust` is `train.robust_trees`
with as many trees of that depth, `half` the same trained against half of the radius that it is judged at. A row counts as broken where a point within the radius is answered wrongly (3,000 random points,
then the exact search), as proved where the exact search finds none; the rest, for which it had not `--seconds`, is told as the width
of an interval. Seeds draw the rows. Writes results/robust_trees.json and prints a table.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import time
from pathlib import Path
from typing import Any, NamedTuple

import common
import models
import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.model_selection import train_test_split

from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.defences.train.robust_trees import RobustTrees
from vauban.engine.context import HouseContext
from vauban.parts.exact.base import ExactModel
from vauban.parts.projections import Linf
from vauban.targets.load import target
from vauban.targets.proofs import estimator_model

TREES, DEPTH, DRAWS = 100, 3, 3000
RADII = {"breast cancer": (0.05, 0.1, 0.3), "adult": (0.05, 0.1)}
SHARES = {"robust": 1.0, "half": 0.5}
NUMBERS = (0, 2, 4, 10, 11, 12)
"""Columns of Adult that are numbers; the last is the answer."""
COLUMNS = [
    "data", "radius", "model", "clean_error", "robust_error_least", "robust_error_most", "x_plain", "seconds"
]  # fmt: skip


class Split(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def scaled(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> Split:
    """From 0 to 1 by the training rows, as float32, which is what trees read."""
    low, high = x.min(0), x.max(0)
    width = np.where(high > low, high - low, 1.0)
    x, x_test = (((part - low) / width).clip(0, 1).astype(np.float32) for part in (x, x_test))
    return Split(x, y, x_test, y_test)


def breast_cancer(seed: int, asked: argparse.Namespace) -> Split:
    x, y = load_breast_cancer(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.25, random_state=seed, stratify=y)
    return scaled(x, y, x_test, y_test)


def adult(seed: int, asked: argparse.Namespace) -> Split:
    folder = models.data_folder() / "adult"
    taught, judged = (_rows(folder / f"adult.{part}.gz") for part in ("data", "test"))
    draw = np.random.default_rng(seed)
    taught = [taught[i] for i in draw.permutation(len(taught))[: asked.rows]]
    judged = [judged[i] for i in draw.permutation(len(judged))[: asked.judged]]
    words = [sorted({row[c] for row in taught}) for c in range(14)]

    def table(rows: list[list[str]]) -> np.ndarray:
        parts = []
        for c in range(14):
            column = np.array([row[c] for row in rows])
            parts.append(column[:, None].astype(float) if c in NUMBERS else (column[:, None] == words[c]).astype(float))
        return np.concatenate(parts, 1)

    truth = [np.array([int(row[14].startswith(">")) for row in rows]) for rows in (taught, judged)]
    return scaled(table(taught), truth[0], table(judged), truth[1])


def _rows(path: Path) -> list[list[str]]:
    with gzip.open(path, "rt") as file:
        return [[cell.strip() for cell in row] for row in csv.reader(file) if len(row) == 15]


def robust(split: Split, plain: Any, radius: float, share: float) -> tuple[Any, float]:
    """The robust booster, and the seconds that it took."""
    data = Data(split.x, split.y, split.x_test, split.y_test)
    started = time.process_time()
    method = RobustTrees(trees=TREES, depth=DEPTH, share=share)
    made = method(target(plain, bounds=(0, 1)), data, Rng(0), HouseContext(radius, Linf(0.0, 1.0))).target
    return made.estimator, time.process_time() - started  # type: ignore[attr-defined]


def judged(estimator: Any, split: Split, radius: float, seconds: float) -> dict[str, float]:
    """Clean error, and the robust error from below and from above."""
    x, y = split.x_test.astype(np.float64), split.y_test
    wrong = estimator.predict(split.x_test) != y
    broken = wrong | drawn(estimator, split, radius)
    model = estimator_model(estimator)
    assert model is not None
    undecided = 0
    for i in np.flatnonzero(~broken):
        sure, found = proved(model, x[i : i + 1], y[i : i + 1], radius, seconds)
        broken[i] = found
        undecided += not (sure or found)
    return {
        "clean_error": float(wrong.mean()),
        "robust_error_least": float(broken.mean()),
        "robust_error_most": float(broken.mean() + undecided / len(y)),
    }


def drawn(estimator: Any, split: Split, radius: float) -> np.ndarray:
    """bool `[n]`: some random point within the radius is answered wrongly, each feature at an end or where it was."""
    draw = np.random.default_rng(0)
    found = np.zeros(len(split.y_test), dtype=bool)
    for i, (row, label) in enumerate(zip(split.x_test, split.y_test, strict=True)):
        moves = draw.integers(-1, 2, (DRAWS, len(row))) * np.float32(radius * (1 - 1e-5))
        found[i] = (estimator.predict((row + moves).clip(0, 1).astype(np.float32)) != label).any()
    return found


def proved(model: ExactModel, x: np.ndarray, y: np.ndarray, radius: float, seconds: float) -> tuple[bool, bool]:
    """Whether no point within the radius is answered otherwise, and whether one is."""
    walls = np.zeros(x.shape[1]), np.ones(x.shape[1])
    far = model.nearest(x, y, "linf", *walls, within=radius, deadline=time.monotonic() + seconds)
    return bool(far.distance[0] > radius), bool(far.exact[0] and far.distance[0] <= radius)


def run(asked: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for name, load in (("breast cancer", breast_cancer), ("adult", adult)):
        for seed in range(asked.seeds):
            split = load(seed, asked)
            started = time.process_time()
            plain = GradientBoostingClassifier(n_estimators=TREES, max_depth=DEPTH, random_state=seed)
            plain.fit(split.x, split.y)
            spent = time.process_time() - started
            for radius in RADII[name]:
                made = {"plain": (plain, spent)}
                made |= {told: robust(split, plain, radius, share) for told, share in SHARES.items()}
                for told, (estimator, seconds) in made.items():
                    found = judged(estimator, split, radius, asked.seconds)
                    rows.append(
                        {"data": name, "radius": radius, "seed": seed, "model": told, **found, "seconds": seconds}
                    )
                    print(rows[-1], flush=True)
    return rows


def summed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds; `x_plain` is the most that the robust error can be against the least that the plain one can be."""
    out: list[dict[str, Any]] = []
    for key in dict.fromkeys((row["data"], row["radius"], row["model"]) for row in rows):
        own = [row for row in rows if (row["data"], row["radius"], row["model"]) == key]
        means = {name: round(float(np.mean([row[name] for row in own])), 4) for name in [*COLUMNS[3:6], "seconds"]}
        out.append({"data": key[0], "radius": key[1], "model": key[2], **means})
    for row in out:
        plain = next(r for r in out if (r["data"], r["radius"], r["model"]) == (row["data"], row["radius"], "plain"))
        row["x_plain"] = round(row["robust_error_most"] / plain["robust_error_least"], 3)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--judged", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1.0)
    asked = parser.parse_args()
    if asked.quick:
        asked.seeds, asked.rows, asked.judged, asked.seconds = 1, 2000, 60, 0.5
    torch.set_num_threads(1)
    rows = run(asked)
    means = summed(rows)
    path = common.write("robust_trees", {"setting": vars(asked), "results": means, "runs": rows})
    print(common.table(means, COLUMNS))
    print(f"wrote {path.relative_to(common.RESULTS.parents[1])}")


if __name__ == "__main__":
    main()
