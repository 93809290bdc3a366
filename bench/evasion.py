"""Evasion attacks beside their peers: time against bare passes, and strength on the same samples.

    python bench/evasion.py [--quick] [--seeds 5] [--images 1000] [--threads 2]
        [--only pgd,apgd,square,hop_skip_jump] [--steps 100] [--model robust,natural]

One process, two threads, the same model object and samples, contenders in alternating order. Every result is judged
by `common.broken` (float64 norm, box, fresh forward). Writes results/evasion.json and prints a table.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import common
import models
import ours
import peers
import torch
from torch import Tensor, nn

warnings.filterwarnings("ignore")
COLUMNS = [
    "model", "contender", "seconds", "x_floor", "x_floor_cpu", "passes", "accuracy", "median", "outside", "only_them"
]  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One attack, on one model, by everybody."""

    attack: str
    model: str
    images: int
    steps: int
    norm: str = "linf"
    eps: float = models.EPS

    @property
    def title(self) -> str:
        return f"{self.attack} {self.steps}, {self.norm} {self.eps:g}, {self.model}, {self.images} images"


class Ours:
    """A contender that remembers how many passes it made."""

    def __init__(self, attack: Callable[[int], ours.Result]) -> None:
        self.attack, self.passes = attack, 0.0

    def __call__(self, seed: int) -> Tensor:
        result = self.attack(seed)
        self.passes = float(result.spent.queries.double().mean())
        return result.x


def gradient_contenders(job: Job, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, common.Contender]:
    settings: dict[str, dict[str, Any]] = {
        # the same steps and loss as the peers': constant steps, 2.5 radii in all
        "pgd": {"steps": job.steps, "step": 2.5 / job.steps, "decay": False, "loss": "ce"},
        "apgd": {"steps": job.steps, "loss": "ce"},
    }
    theirs = {"pgd": peers.pgd, "apgd": peers.apgd}[job.attack](job.steps)
    name_of = f"evasion.{job.attack}"

    def oracle(leave: bool, **how: Any) -> Ours:
        return Ours(lambda seed: ours.through_oracle(name_of, model, x, y, job.norm, job.eps, seed, leave, **how))

    extra = {"vauban, its defaults": oracle(True, steps=job.steps)} if job.attack == "pgd" else {}
    return {
        "bare passes": lambda seed: peers.bare_passes(model, x, y, job.steps),
        "vauban": oracle(True, **settings[job.attack]),
        "vauban, nobody leaves": oracle(False, **settings[job.attack]),
        **extra,
        "vauban, public call": lambda seed: ours.through_api(
            name_of, model, x, y, job.norm, job.eps, seed, **settings[job.attack]
        ),
        **{name: _bound(attack, model, x, y, job.eps) for name, attack in theirs.items()},
    }


def square_contenders(job: Job, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, common.Contender]:
    mine = Ours(
        lambda seed: ours.through_oracle("evasion.square", model, x, y, job.norm, job.eps, seed, queries=job.steps)
    )
    return {
        "bare forwards": lambda seed: peers.bare_forwards(model, x, job.steps),
        "vauban": mine,
        **{name: _bound(attack, model, x, y, job.eps) for name, attack in peers.square(job.steps).items()},
    }


def nearest_contenders(job: Job, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, common.Contender]:
    mine = Ours(
        lambda seed: ours.through_oracle(
            "evasion.hop_skip_jump", model, x, y, job.norm, math.inf, seed, queries=NEAREST_QUERIES
        )
    )
    theirs = peers.hop_skip_jump(job.steps, 1000)
    return {
        "bare forwards": lambda seed: peers.bare_forwards(model, x, NEAREST_QUERIES),
        "vauban": mine,
        **{name: _bound(attack, model, x, y, job.eps) for name, attack in theirs.items()},
    }


NEAREST_QUERIES = 2400
"""What the peers spend on an image in 10 iterations."""
CONTENDERS = {
    "pgd": gradient_contenders,
    "apgd": gradient_contenders,
    "square": square_contenders,
    "hop_skip_jump": nearest_contenders,
}


def _bound(attack: peers.Attack, model: nn.Module, x: Tensor, y: Tensor, eps: float) -> common.Contender:
    return lambda seed: attack(common.freeze_trace(model), x, y, eps, seed)


def run(job: Job, seeds: int) -> list[dict[str, Any]]:
    model = models.MODELS[job.model]()
    x, y = models.mnist("test")
    x, y = x[: job.images], y[: job.images]
    contenders = CONTENDERS[job.attack](job, model, x, y)
    runs = common.race(contenders, seeds)
    floor = next(iter(runs.values()))
    hits = {name: _hits(job, model, x, y, r.out) for name, r in runs.items() if r.out and r.out[0] is not None}
    mine = hits.get("vauban")
    rows = []
    for name, r in runs.items():
        row = {
            "attack": job.attack, "model": job.model, "contender": name, "error": r.error,
            "seconds": common.median(r.wall), "wall": r.wall, "cpu": r.cpu,
            "x_floor": common.ratio(r.wall, floor.wall), "x_floor_cpu": common.ratio(r.cpu, floor.cpu),
        }  # fmt: skip
        if isinstance(contenders[name], Ours):
            row["passes"] = round(contenders[name].passes, 1)
        if name in hits:
            row |= _strength(job, x, r.out, hits[name], mine)
        rows.append(row)
    return rows


def _hits(job: Job, model: nn.Module, x: Tensor, y: Tensor, out: list[Any]) -> list[tuple[Tensor, Tensor]]:
    return [common.broken(model, x, y, z, job.norm, job.eps) for z in out]


def _strength(job: Job, x: Tensor, out: list[Any], hits: Any, mine: Any) -> dict[str, Any]:
    """Accuracy under attack by seed, and over seeds what they break and we do not (in the worst case of each)."""
    found: dict[str, Any] = {
        "accuracies": [round(1 - float(broken.double().mean()), 4) for broken, _ in hits],
        "outside": sum(int(outside.sum()) for _, outside in hits),
    }
    found["accuracy"] = common.median(found["accuracies"])
    if mine is not None:
        them, us = (torch.stack([b for b, _ in h]).any(0) for h in (hits, mine))
        found["only_them"] = int((them & ~us).sum())
        found["only_us"] = int((us & ~them).sum())
        found["samples_only_them"] = (them & ~us).nonzero().flatten().tolist()
    if math.isinf(job.eps):
        sizes = [(torch.as_tensor(z).double() - x.double()).flatten(1).norm(dim=1) for z in out]
        reached = [torch.where(broken, size, torch.inf) for size, (broken, _) in zip(sizes, hits, strict=True)]
        found["median"] = common.median([float(size.median()) for size in reached])
    return found


def plan(quick: bool, images: int | None, steps: int | None) -> list[Job]:
    few = images or (250 if quick else 1000)
    return [
        Job("pgd", "robust", few, steps or 40),
        Job("pgd", "natural", few, steps or 40),
        Job("apgd", "robust", few, steps or (50 if quick else 100)),
        Job("square", "robust", 250, 200 if quick else 1000),
        Job("hop_skip_jump", "natural", 10 if quick else 20, 10, "l2", math.inf),
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="250 images, two seeds")
    options.add_argument("--seeds", type=int, help="5; 2 with --quick")
    options.add_argument("--only", default=",".join(CONTENDERS), help="attacks, comma-separated")
    options.add_argument("--images", type=int, help="for the gradient attacks; 1000, or 250 with --quick")
    options.add_argument("--steps", type=int, help="for the gradient attacks; 40 for PGD, 100 for APGD")
    options.add_argument("--model", default="robust,natural", help="models, comma-separated")
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    results: dict[str, Any] = {}
    for job in plan(given.quick, given.images, given.steps):
        if job.attack not in given.only.split(",") or job.model not in given.model.split(","):
            continue
        rows = run(job, given.seeds or (2 if given.quick else 5))
        results[job.title] = rows
        print(f"\n{job.title}")
        print(common.table(rows, COLUMNS))
        for row in rows:
            if row["error"]:
                print(f"  {row['contender']}: {row['error']}")
        common.update("evasion_quick" if given.quick else "evasion", job.title, rows)


if __name__ == "__main__":
    main()
