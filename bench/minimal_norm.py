"""The nearest adversarial input: Vauban's attacks beside their peers', at equal passes.

    python bench/minimal_norm.py [--norm linf,l2,l1,l0] [--budget 200,500,2000] [--model natural,robust]
        [--only NAME,...] [--missing] [--images 100] [--threads 2] [--cost]

A pass is a forward with a backward to the input; a forward alone counts as one, too. Every point is judged anew: a fresh
forward pass, the box, its norm in float64. Optimality is AttackBench's (Cina et al. 2024, arXiv:2404.19460): the area
between an attack's curve of accuracy against radius and that of the pointwise best of all peers at the same budget,
taken from 1; so 1 is as good as all peers together, and more is better than they. Results gather in
results/minimal_norm.json, with every distance, so that parts may be run one by one and in any order. `--cost` instead
times the passes of FAB, DeepFool and FMN against bare ones, in CPU time, taking turns.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import common
import models
import nearest_peers
import ours
import peers
import torch
from torch import Tensor, nn

warnings.filterwarnings("ignore")
ORDER = {"linf": math.inf, "l2": 2.0, "l1": 1.0, "l0": 0.0}
BUDGETS = (200, 500, 2000)
COLUMNS = ["contender", "optimality", "median", "found", "passes", "seconds"]


def _led(steps: int) -> dict[str, Any]:
    """More classes where there are more steps; as in the profile `deep`."""
    return {"steps": steps, "targets": 6 if steps >= 1000 else 3}


SETTINGS: dict[str, dict[str, Callable[[int], dict[str, Any]]]] = {
    "linf": {"fmn": _led, "fab": lambda steps: {"steps": steps}},
    "l2": {"fmn": _led, "ddn": lambda steps: {"steps": steps}},
    "l1": {"fmn": _led, "pdpgd": lambda steps: {"steps": steps}},
    "l0": {"sigma_zero": lambda steps: {"steps": steps}},
}
"""Of our attacks, by norm: what to set for so many passes."""


@torch.no_grad()
def sizes(model: nn.Module, x: Tensor, y: Tensor, z: Tensor, norm: str) -> Tensor:
    """float64 `[n]`: the norm of every change that really is one, inf where there is none; 0 where nothing was needed."""
    z = torch.as_tensor(z)
    size = torch.linalg.vector_norm((z.double() - x.double()).flatten(1), ord=ORDER[norm], dim=1)
    outside = (z.flatten(1).amin(1) < 0) | (z.flatten(1).amax(1) > 1) | ~size.isfinite()
    wrong, broken = (torch.cat([model(part).argmax(1) for part in at.split(100)]) != y for at in (x, z))
    return torch.where(wrong, 0.0, torch.where(broken & ~outside, size, torch.inf))


def optimality(mine: Tensor, best: Tensor) -> float:
    """1 where `mine` is as near as `best` on average (up to the farthest of the best), 0 where nothing was found."""
    farthest = float(best.max())
    nothing = float((best > 0).double().mean()) * farthest
    ideal = float(best.mean())
    return 1 - (float(mine.clamp_max(farthest).mean()) - ideal) / (nothing - ideal)


def ours_at(id: str, how: Callable[[int], dict[str, Any]], norm: str, budget: int) -> Any:
    def attack(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, float]:
        found = ours.through_oracle(id, model, x, y, norm, math.inf, seed, **how(budget))
        return found.x, float(found.spent.queries.double().mean()) - 1

    return attack


def contenders(norm: str, budget: int) -> dict[str, Any]:
    mine = {f"vauban {name}": ours_at(f"evasion.{name}", how, norm, budget) for name, how in SETTINGS[norm].items()}
    return mine | nearest_peers.PEERS[norm](budget)


def stored(key: str) -> dict[str, Any]:
    return {row["contender"]: row for row in common.results("minimal_norm").get(key, [])}


def wanted(contender: str, only: list[str]) -> bool:
    """By its whole name, or by whose it is."""
    return not only or contender in only or contender.split()[0] in only


def run(norm: str, budget: int, name: str, only: list[str], images: int, missing: bool) -> list[dict[str, Any]]:
    model = common.freeze_trace(models.MODELS[name]())
    x, y = models.mnist("test")
    x, y = x[:images], y[:images]
    key = f"{norm}, {budget} passes, {name}, {images} images"
    rows = stored(key)
    for contender, attack in contenders(norm, budget).items():
        if not wanted(contender, only) or (missing and contender in rows):
            continue
        torch.manual_seed(0)
        started = time.perf_counter()
        try:
            z, passes = attack(model, x, y, 0)
        except Exception as error:  # a peer that fails here is a row of the table, not the end of it
            rows[contender] = {"contender": contender, "error": f"{type(error).__name__}: {error}"[:200]}
            continue
        size = sizes(model, x, y, z, norm)
        # read anew: another part may have been run meanwhile
        rows = stored(key)
        rows[contender] = {
            "contender": contender,
            "median": float(f"{float(size.median()):.5g}"),
            "found": int(size.isfinite().sum()),
            "passes": round(passes, 1),
            "seconds": round(time.perf_counter() - started, 1),
            "distances": " ".join(f"{float(value):.6g}" for value in size),
        }
        common.update("minimal_norm", key, _rated(rows))
    print(f"\n{key}")
    print(common.table(list(rows.values()), COLUMNS), flush=True)
    return list(rows.values())


def _rated(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """With each row's optimality against the peers that are there."""
    read = {name: _distances(row) for name, row in rows.items() if "distances" in row}
    theirs = [size for name, size in read.items() if not name.startswith("vauban")]
    if theirs:
        best = torch.stack(theirs).amin(0)
        for name, size in read.items():
            rows[name]["optimality"] = round(optimality(size, best), 4)
    return list(rows.values())


def _distances(row: dict[str, Any]) -> Tensor:
    return torch.tensor([float(value) for value in row["distances"].split()], dtype=torch.float64)


COSTS = {"fab": {"steps": 60, "targets": 1}, "fmn": {"steps": 60, "targets": 1}, "deep_fool": {}, "super_deep_fool": {}}


def cost(images: int, repeats: int = 5) -> None:
    """Time of a pass of each attack over that of a bare pass; queries and gradients that it took a sample."""
    model = common.freeze_trace(models.MODELS["natural"]())
    x, y = (part[:images] for part in models.mnist("test"))
    rows = []
    for name, how in COSTS.items():
        for norm in ours.ATTACKS.load(f"evasion.{name}").card.spaces:
            ratios = []
            for seed in range(repeats):
                started = time.process_time()
                peers.bare_passes(model, x, y, 10)
                bare = (time.process_time() - started) / 10
                started = time.process_time()
                spent = ours.through_oracle(f"evasion.{name}", model, x, y, norm, math.inf, seed, **how).spent
                queries = float(spent.queries.double().mean()) - 1
                ratios.append((time.process_time() - started) / queries / bare)
            gradients = round(float(spent.gradients.double().mean()), 1)
            found = {"attack": name, "norm": norm, "x_bare_pass": common.median(ratios)}
            rows.append(found | {"queries": round(queries, 1), "gradients": gradients, "runs": ratios})
    print(common.table(rows, ["attack", "norm", "x_bare_pass", "queries", "gradients"]))
    common.update("minimal_norm", f"cost of a pass, natural, {images} images", rows)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--norm", default=",".join(ORDER))
    options.add_argument("--budget", default=",".join(map(str, BUDGETS)))
    options.add_argument("--model", default="natural,robust")
    options.add_argument("--only", default="", help="contenders, or whose they are (vauban, adv_lib), comma-separated")
    options.add_argument("--missing", action="store_true", help="only who has no row yet")
    options.add_argument("--images", type=int, default=100)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--cost", action="store_true", help="time of a pass instead of strength")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    if given.cost:
        cost(given.images)
        return
    for name in given.model.split(","):
        for norm in given.norm.split(","):
            for budget in given.budget.split(","):
                run(
                    norm,
                    int(budget),
                    name,
                    [word for word in given.only.split(",") if word],
                    given.images,
                    given.missing,
                )


if __name__ == "__main__":
    main()
