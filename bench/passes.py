"""What a forward and backward pass to the input costs in each way there is: which of them pay, and which do not.

    python bench/passes.py [--case robust,natural,...] [--images 256] [--repeats 7] [--no-compiled]

`plain`: one batch, in the order of memory that the data has. `micro`: micro-batches as the engine makes them. `ordered`: these
in channels-last order, for pictures. `bfloat16`: these with weights and inputs in bfloat16, one forward in float32 for each row
on top, as a scout would need for its successes. `compiled`: forwards alone, by torch.compile, with the seconds that it takes to
compile, beside eager forwards. All take turns in one process; medians of ratios. Writes results/passes.json.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable
from typing import Any

import common
import torch
import zoo
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.target import Domain
from vauban.engine.batching import micro_batch
from vauban.targets.torch import TorchTarget

warnings.filterwarnings("ignore")
COLUMNS = ["case", "contender", "x_plain", "x_ordered", "x_eager", "compile_seconds", "error"]


def passes(model: nn.Module, x: Tensor, y: Tensor, size: int) -> None:
    """A gradient to the input for every row."""
    for part, wanted in zip(x.split(size), y.split(size), strict=True):
        leaf = part.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(leaf), wanted), leaf)


def forwards(model: nn.Module, x: Tensor, size: int) -> None:
    with torch.no_grad():
        for part in x.split(size):
            model(part)


def ways(case: zoo.Case, images: int) -> tuple[dict[str, Callable[[], None]], nn.Module, Tensor, int]:
    model = case.model().requires_grad_(False)
    x, y = (rows[:images] for rows in case.test())
    domain = Domain(kind="image" if x.dim() == 4 else "tabular", task="classification", classes=10)
    size = min(micro_batch(TorchTarget(module=model, domain=domain), x), len(x))
    made: dict[str, Callable[[], None]] = {
        "plain": lambda: passes(model, x, y, len(x)),
        "micro": lambda: passes(model, x, y, size),
    }
    swift, laid = model, x
    if x.dim() == 4:
        swift = copy.deepcopy(model).to(memory_format=torch.channels_last)
        laid = x.contiguous(memory_format=torch.channels_last)
    made["ordered"] = lambda: passes(swift, laid, y, size)
    half, low = copy.deepcopy(swift).bfloat16(), laid.bfloat16()

    def scout() -> None:
        passes(half, low, y, size)
        forwards(swift, laid, size)

    made["bfloat16 alone"] = lambda: passes(half, low, y, size)
    made["bfloat16"] = scout
    return made, swift, laid, size


def timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def taken(made: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, taking turns; the first round does not count."""
    found: dict[str, list[float]] = {name: [] for name in made}
    for number in range(repeats + 1):
        for name in list(made) if number % 2 else list(made)[::-1]:
            found[name].append(timed(made[name]))
    return {name: times[1:] for name, times in found.items()}


def compiled(model: nn.Module, x: Tensor, size: int, repeats: int) -> dict[str, Any]:
    quick = torch.compile(model, dynamic=False)
    try:
        first = timed(lambda: forwards(quick, x, size))
    except Exception as error:  # no compiler: a row of the table, not the end of it
        return {"error": f"{type(error).__name__}: {error}"[:120]}
    times = taken({"eager": lambda: forwards(model, x, size), "compiled": lambda: forwards(quick, x, size)}, repeats)
    return {"x_eager": common.ratio(times["compiled"], times["eager"]), "compile_seconds": round(first, 1)}


def run(name: str, images: int, repeats: int, with_compiled: bool) -> list[dict[str, Any]]:
    made, swift, laid, size = ways(zoo.CASES[name], images)
    times = taken(made, repeats)
    rows: list[dict[str, Any]] = [
        {
            "case": name, "contender": way, "micro_batch": size,
            "x_plain": common.ratio(t, times["plain"]), "x_ordered": common.ratio(t, times["ordered"]),
        }
        for way, t in times.items()
    ]  # fmt: skip
    if with_compiled:
        rows.append({"case": name, "contender": "compiled forward", **compiled(swift, laid, size, repeats)})
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--case", default=",".join(zoo.CASES))
    options.add_argument("--images", type=int, default=256)
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--no-compiled", action="store_true")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.case.split(","):
        rows = run(name, given.images, given.repeats, not given.no_compiled)
        print(common.table(rows, COLUMNS), flush=True)
        common.update("passes", name, rows)


if __name__ == "__main__":
    main()
