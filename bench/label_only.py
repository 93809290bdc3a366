"""Label-only attacks beside their peers: how near they come on equal queries, and what a query costs.

    python bench/label_only.py [--norm l2,linf] [--seeds 0,1,2,3,4] [--images 50] [--threads 2]
        [--only hop_skip_jump,cleverhans,...]

The undefended MNIST model, 2,400 queries an image, which is what the peers' HopSkipJump spends in 10 iterations. One
process, the same model object and images, contenders in alternating order; the floor is as many bare forward passes in
batches of all images. Every result is judged by `common.broken` (float64 norm, box, fresh forward): a row that it does
not confirm counts as infinitely far. The white box shows how near anything can come: with gradients and 1,000 steps.
Results gather in results/label_only.json, a part a norm and seed; a table is printed.
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
    """Remembers what its last run spent on an image."""

    def __init__(self, run: Callable[[int], tuple[Any, float]]) -> None:
        self.run, self.queries = run, 0.0

    def __call__(self, seed: int) -> Any:
        out, self.queries = self.run(seed)
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


def part(norm: str, seed: int, model: nn.Module, x: Tensor, y: Tensor, only: set[str]) -> dict[str, dict[str, Any]]:
    """Everybody once: what is kept of each contender."""
    field = {name: c for name, c in contenders(norm, model, x, y).items() if not only or name in only | {FLOOR}}
    kept: dict[str, dict[str, Any]] = {}
    for name in common.turns(field, seed):
        # one at a time: the race counts its seeds from zero
        run = common.race({name: lambda _, name=name: field[name](seed)}, 1)[name]
        kept[name] = {"error": run.error}
        if not run.error:
            kept[name] |= {"wall": run.wall[0], "cpu": run.cpu[0], "queries": round(field[name].queries, 1)}
            if run.out[0] is not None:
                apart = distances(model, x, y, run.out[0], norm)
                kept[name] |= {"median": round(float(apart.median()), 4), "missed": int(apart.isinf().sum())}
    return kept


def summary(norm: str, parts: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a contender over the seeds that were run."""
    found = []
    for name in next(iter(parts.values())):
        runs = [(p[name], p[FLOOR]) for p in parts.values() if "wall" in p.get(name, {})]
        row: dict[str, Any] = {
            "norm": norm, "contender": name, "seeds": len(runs),
            "error": "; ".join(p[name]["error"] for p in parts.values() if p.get(name, {}).get("error")),
        }  # fmt: skip
        if runs:
            row |= {"queries": common.median([r["queries"] for r, _ in runs])}
            row |= {"seconds": common.median([r["wall"] for r, _ in runs])}
            for key, time in (("per_query", "wall"), ("per_query_cpu", "cpu")):
                row[key] = common.median([r[time] / b[time] * QUERIES / r["queries"] for r, b in runs])
            if "median" in runs[0][0]:
                row |= {"median": common.median([r["median"] for r, _ in runs])}
                row |= {"missed": sum(r["missed"] for r, _ in runs)}
        found.append(row)
    white = next((row.get("median") for row in found if row["contender"] == WHITE), None)
    for row in found:
        row["of_white_box"] = round(row["median"] / white, 3) if white and row.get("median") else None
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--norm", default=",".join(OURS))
    options.add_argument("--seeds", default="0,1,2,3,4")
    options.add_argument("--images", type=int, default=50)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--only", default="", help="contenders, comma-separated; nothing is written then")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    model = models.natural()
    x, y = models.mnist("test")
    x, y = x[: given.images], y[: given.images]
    only = {name for name in given.only.split(",") if name}
    for norm in given.norm.split(","):
        key = f"{norm}, {QUERIES} queries, natural, {given.images} images"
        for seed in given.seeds.split(","):
            before = {} if only else common.stored("label_only", key).get("parts", {})
            parts = before | {seed: part(norm, int(seed), model, x, y, only)}
            found = summary(norm, parts)
            if not only:
                common.update("label_only", key, {"rows": found, "parts": parts})
            print(f"\n{key}, seeds {', '.join(sorted(parts))}", flush=True)
            print(common.table(found, COLUMNS), flush=True)
            for row in found:
                if row["error"]:
                    print(f"  {row['contender']}: {row['error']}")


if __name__ == "__main__":
    main()
