"""What the oracle costs, and which micro-batch and order of memory are fast.

    python bench/oracle.py [--quick] [--threads 2]

Bars: PGD through the oracle takes at most 1.05 times the same passes made bare, at the same micro-batch and order of
memory, and at most 1.05 times plain eager passes at batch 250. Writes results/oracle.json.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import common
import models
import ours
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.attacks.evasion.pgd import PGD
from vauban.core.attack import EvasionScene
from vauban.core.rng import Rng
from vauban.domains.catalog import modality
from vauban.engine.batching import micro_batch
from vauban.parts.goals import Misclassify
from vauban.parts.layout import memory_format
from vauban.targets.torch import TorchTarget

SIZES = (16, 32, 64, 128, 250, 500)
ORDERS = {"usual": torch.contiguous_format, "channels-last": torch.channels_last}


def passes(model: nn.Module, x: Tensor, y: Tensor, size: int, order: torch.memory_format, steps: int) -> None:
    """Forward and backward to the input, nothing else."""
    for a, b in zip(x.split(size), y.split(size), strict=True):
        for _ in range(steps):
            leaf = a.clone(memory_format=order).requires_grad_(True)
            torch.autograd.grad(F.cross_entropy(model(leaf), b, reduction="sum"), leaf)


def overhead(model: nn.Module, x: Tensor, y: Tensor, steps: int, seeds: int) -> list[dict[str, Any]]:
    """PGD in which every row makes all steps, against bare passes."""
    target = TorchTarget(module=model, domain=ours.DOMAIN)
    size, order = micro_batch(target, x), memory_format(model, x)
    space, goal = modality("image").space("linf", ours.DOMAIN), Misclassify(y)
    rows = torch.arange(len(x))

    def oracle() -> ours.NobodyLeaves:
        return ours.NobodyLeaves(target, goal, space, x, models.EPS)

    def looks(_: int) -> None:
        asked = oracle()
        for _ in range(steps):
            asked.value_and_grad(goal.surrogate, x, rows)

    def pgd(seed: int) -> None:
        PGD(steps=steps)(EvasionScene(oracle(), x, space, models.EPS, 10), Rng(seed, len(x)))

    contenders: dict[str, Callable[[int], None]] = {
        "bare, same micro-batch and order": lambda _: passes(model, x, y, size, order, steps),
        "bare, batch 250, usual order": lambda _: passes(model, x, y, 250, torch.contiguous_format, steps),
        "looks through the oracle": looks,
        "PGD through the oracle": pgd,
    }
    runs = common.race(contenders, seeds)
    same, plain = (runs[name] for name in list(contenders)[:2])
    return [
        {
            "contender": name, "micro_batch": size, "order": str(order), "seconds": common.median(r.wall),
            "x_same": common.ratio(r.wall, same.wall), "x_batch_250": common.ratio(r.wall, plain.wall),
            "x_same_cpu": common.ratio(r.cpu, same.cpu), "wall": r.wall, "cpu": r.cpu, "error": r.error,
        }
        for name, r in runs.items()
    ]  # fmt: skip


def grid(model: nn.Module, x: Tensor, y: Tensor, seeds: int) -> list[dict[str, Any]]:
    """Bare passes at every size and order, against batch 250 in the usual order."""
    contenders = {
        f"{size}, {name}": (lambda _, s=size, o=order: passes(model, x, y, s, o, 2))
        for size in SIZES
        for name, order in ORDERS.items()
    }
    runs = common.race(contenders, seeds)
    base = runs["250, usual"]
    return [
        {
            "batch": name, "ms_per_1000_and_step": round(1000 * 1000 * (common.median(r.wall) or math.nan) / len(x) / 2),
            "x_batch_250": common.ratio(r.wall, base.wall), "x_batch_250_cpu": common.ratio(r.cpu, base.cpu),
        }
        for name, r in runs.items()
    ]  # fmt: skip


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


def small_residual() -> nn.Module:
    """Colour pictures, batch normalisation, sums: to see that the rule is not made for one model. Untrained."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), Residual(32), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), Residual(64),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ).eval()  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="250 images, 10 steps, three rounds")
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    images, steps, seeds = (250, 10, 3) if given.quick else (1000, 40, 7)
    x, y = models.mnist("test")
    cases = {
        "small CNN, 1 x 28 x 28": (models.robust(), x[:images], y[:images]),
        "residual, 3 x 32 x 32": (small_residual(), torch.rand(images // 2, 3, 32, 32), y[: images // 2]),
    }
    results: dict[str, Any] = {}
    for name, (model, a, b) in cases.items():
        results[name] = {"overhead": overhead(model, a, b, steps, seeds), "grid": grid(model, a, b, seeds)}
        print(f"\n{name}")
        columns = ["contender", "micro_batch", "seconds", "x_same", "x_same_cpu", "x_batch_250"]
        print(common.table(results[name]["overhead"], columns))
        print(common.table(results[name]["grid"], list(results[name]["grid"][0])))
    common.write("oracle_quick" if given.quick else "oracle", {"results": results})


if __name__ == "__main__":
    main()
