"""What a `standard` run of the cascade takes in memory, over one forward and backward pass at the same micro-batch.

    python bench/memory.py [--case robust,cifar] [--images 300] [--runs 3]

Each measurement is a process of its own, which loads everything, notes its resident memory, does the work, and notes the
highest resident memory that the system saw. Writes results/memory.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import cascade
import common
import torch
import zoo
from torch.nn import functional as F

from vauban.engine.batching import micro_batch

COLUMNS = [
    "case",
    "micro_batch",
    "images",
    "loaded_mb",
    "pass_mb",
    "standard_mb",
    "peak_over_peak",
    "growth_over_growth",
]


def resident() -> float:
    """Resident memory now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def work(name: str, what: str, images: int) -> None:
    """In a process of its own: prints what was resident before and at the peak."""
    torch.set_num_threads(2)
    case = zoo.CASES[name]
    model = case.model()
    x, y = (rows[:images].clone() for rows in case.test())
    with torch.no_grad():
        classes = int(model(x[:2]).shape[1])
    ours = cascade.Ours("standard", case, model, x, y, classes)
    size = min(micro_batch(ours.target, x), len(x))
    cascade.Ours("screen", case, model, x[:2], y[:2], classes)(0)
    before = resident()
    # loading a data set peaks, too: only what comes from here on counts
    Path("/proc/self/clear_refs").write_text("5")
    if what == "pass":
        leaf = x[:size].clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(leaf), y[:size]), leaf)
    else:
        ours(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    print(json.dumps({"before": before, "peak": peak, "micro_batch": size}))


def measure(name: str, what: str, images: int, runs: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--work", what, "--case", name, "--images", str(images)]
    told = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        for _ in range(runs)
    ]
    return {key: statistics.median(one[key] for one in told) for key in told[0]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--case", default="robust,cifar")
    options.add_argument("--images", type=int, default=300)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--work", choices=("pass", "standard"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.work:
        work(given.case, given.work, given.images)
        return
    rows = []
    for name in given.case.split(","):
        one, all_ = (measure(name, what, given.images, given.runs) for what in ("pass", "standard"))
        rows.append(
            {
                "case": name, "micro_batch": int(one["micro_batch"]), "images": given.images,
                "loaded_mb": round(one["before"], 1), "pass_mb": round(one["peak"], 1),
                "standard_mb": round(all_["peak"], 1), "peak_over_peak": round(all_["peak"] / one["peak"], 3),
                "growth_over_growth": round((all_["peak"] - all_["before"]) / max(one["peak"] - one["before"], 0.1), 2),
            }
        )  # fmt: skip
        common.update("memory", name, rows[-1])
    print(common.table(rows, COLUMNS))


if __name__ == "__main__":
    main()
