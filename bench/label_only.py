"""Label-only attacks beside their peers: how near they come on equal queries, and what a query costs.

    python bench/label_only.py [--seeds 1] [--images 50] [--threads 2] [--only hop_skip_jump,cleverhans,...]

The undefended MNIST model, 2,400 queries an image, which is what the peers' HopSkipJump spends in 10 iterations. One
process, the same model object and images, contenders in alternating order; the floor is as many bare forward passes in
batches of all images. Every result is judged by `common.broken` (float64 norm, box, fresh forward): a row that it does
not confirm counts as infinitely far. The white box shows how near anything can come: with gradients and 1,000 steps.
Writes results/label_only.json and prints a table.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import common
import models
import numpy as np
import ours
import peers
import shims
import torch
from torch import Tensor, nn

warnings.filterwarnings("ignore")
QUERIES = 2400
ITERATIONS, EVALUATIONS = 10, 1000
OURS = {
    "l2": ("hop_skip_jump", "geoda", "surfree", "sign_opt", "boundary"),
    "linf": ("hop_skip_jump", "geoda", "rays", "adba"),
}
FLOOR, WHITE = "bare forwards", "white box (DDN, adv-lib)"
COLUMNS = ["norm", "contender", "median", "of_white_box", "missed", "queries", "seconds", "per_query", "per_query_cpu"]


class Counting(nn.Module):
    """The model, counting the inputs it answers; ART feeds float64 in places, which the model does not take."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.rows = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.model(x.float())


class Contender:
    """Remembers what each run spent on an image."""

    def __init__(self, run: Callable[[int], tuple[Any, float]]) -> None:
        self.run, self.queries = run, [0.0]

    def __call__(self, seed: int) -> Any:
        out, queries = self.run(seed)
        self.queries.append(queries)
        return out


def mine(id: str, norm: str, model: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, float]:
    found = ours.through_oracle(f"evasion.{id}", model, x, y, norm, math.inf, seed, queries=QUERIES)
    return found.x, float(found.spent.queries.double().mean())


def theirs(attack: peers.Attack, model: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, float]:
    counting = Counting(model).eval()
    out = attack(counting, x, y, math.inf, seed)
    return out, counting.rows / len(x)


def art(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    from art.attacks.evasion import HopSkipJump

    np.random.seed(seed)  # noqa: NPY002 - ART draws from the global generator
    attack = HopSkipJump(
        peers._art(model), norm=2, max_iter=ITERATIONS, max_eval=EVALUATIONS, init_eval=100, verbose=False
    )
    return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


def ddn(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    shims.install()
    from adv_lib.attacks import ddn as run

    return run(model, x, y, steps=1000, levels=None).detach()


def floor(model: nn.Module, x: Tensor, seed: int) -> tuple[None, float]:
    peers.bare_forwards(model, x, QUERIES)
    return None, QUERIES


def contenders(norm: str, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Contender]:
    found = {FLOOR: Contender(partial(floor, model, x))}
    found |= {name: Contender(partial(mine, name, norm, model, x, y)) for name in OURS[norm]}
    if norm == "l2":
        others = {**peers.hop_skip_jump(ITERATIONS, EVALUATIONS), "art": art, WHITE: ddn}
        found |= {name: Contender(partial(theirs, attack, model, x, y)) for name, attack in others.items()}
    return found


def distances(model: nn.Module, x: Tensor, y: Tensor, z: Tensor, norm: str) -> Tensor:
    """Of every row, float64; inf where a fresh look does not confirm it."""
    z = torch.as_tensor(z).float()
    apart = (z.double() - x.double()).flatten(1)
    size = apart.abs().amax(1) if norm == "linf" else apart.norm(dim=1)
    return torch.where(common.broken(model, x, y, z, norm, math.inf)[0], size, torch.inf)


def rows(norm: str, model: nn.Module, x: Tensor, y: Tensor, seeds: int, only: set[str]) -> list[dict[str, Any]]:
    field = {name: c for name, c in contenders(norm, model, x, y).items() if not only or name in only | {FLOOR}}
    runs = common.race(field, seeds)
    base = runs[FLOOR]
    found = []
    for name, run in runs.items():
        spent = field[name].queries[-1]
        row: dict[str, Any] = {
            "norm": norm, "contender": name, "error": run.error, "queries": round(spent, 1),
            "seconds": common.median(run.wall), "wall": run.wall, "cpu": run.cpu,
        }  # fmt: skip
        for key, mine_, bare in (("per_query", run.wall, base.wall), ("per_query_cpu", run.cpu, base.cpu)):
            share = common.ratio(mine_, bare)
            row[key] = None if share is None or not spent else round(share * QUERIES / spent, 3)
        if run.out and run.out[0] is not None:
            apart = [distances(model, x, y, z, norm) for z in run.out]
            row["medians"] = [round(float(part.median()), 4) for part in apart]
            row["median"] = common.median(row["medians"])
            row["missed"] = sum(int(part.isinf().sum()) for part in apart)
        found.append(row)
    white = next((row.get("median") for row in found if row["contender"] == WHITE), None)
    for row in found:
        row["of_white_box"] = round(row["median"] / white, 3) if white and row.get("median") else None
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--images", type=int, default=50)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--only", default="", help="contenders, comma-separated; nothing is written then")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    model = models.natural()
    x, y = models.mnist("test")
    x, y = x[: given.images], y[: given.images]
    only = {name for name in given.only.split(",") if name}
    for norm in OURS:
        found = rows(norm, model, x, y, given.seeds, only)
        print(f"\n{norm}, {QUERIES} queries, natural, {given.images} images, {given.seeds} seeds")
        print(common.table(found, COLUMNS))
        for row in found:
            if row["error"]:
                print(f"  {row['contender']}: {row['error']}")
        if not only:
            common.update("label_only", f"{norm}, {QUERIES} queries, natural, {given.images} images", found)


if __name__ == "__main__":
    main()
