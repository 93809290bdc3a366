"""What the benchmarks share: fair timing, independent checking, what the machine is, where results go."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = (
    "torch", "numpy", "vauban", "foolbox", "torchattacks", "adversarial-robustness-toolbox", "cleverhans", "adv-lib"
)  # fmt: skip
SLACK = 1e-6
"""A float32 point may lie this far outside its radius: the rounding of its coordinates in [0, 1]."""

Contender = Callable[[int], Tensor | None]
"""seed -> changed inputs (None for a floor that only does the passes)."""


@dataclass
class Runs:
    """What one contender did, one entry a seed."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    out: list[Tensor | None] = field(default_factory=list)
    error: str = ""


def turns(contenders: Iterable[str], seed: int) -> list[str]:
    """The order of a seed: turned round with every seed."""
    return list(contenders)[:: 1 if seed % 2 == 0 else -1]


def race(contenders: Mapping[str, Contender], seeds: int) -> dict[str, Runs]:
    """Each contender once a seed, in alternating order (A B C, C B A, ...), in this process.

    A contender that raises is reported with its error and does not run again.
    """
    runs = {name: Runs() for name in contenders}
    for seed in range(seeds):
        for name in turns(contenders, seed):
            if runs[name].error:
                continue
            gc.collect()
            torch.manual_seed(seed)
            cpu, wall = time.process_time(), time.perf_counter()
            try:
                out = contenders[name](seed)
            except Exception as error:  # a peer that fails here is a row of the table, not the end of it
                runs[name].error = f"{type(error).__name__}: {error}"[:200]
                continue
            runs[name].wall.append(time.perf_counter() - wall)
            runs[name].cpu.append(time.process_time() - cpu)
            runs[name].out.append(out)
    return runs


def median(values: list[float]) -> float | None:
    return round(statistics.median(values), 4) if values else None


def ratio(times: list[float], against: list[float]) -> float | None:
    """Median over seeds of the ratio of neighbours in time."""
    pairs = [a / b for a, b in zip(times, against, strict=False)]
    return round(statistics.median(pairs), 3) if pairs else None


@torch.no_grad()
def broken(model: nn.Module, x: Tensor, y: Tensor, z: Tensor, norm: str, eps: float) -> tuple[Tensor, Tensor]:
    """(bool [n] really broken, bool [n] outside radius or box), judged in float64 and by a fresh forward pass."""
    z = torch.as_tensor(z)
    apart = (z.double() - x.double()).flatten(1)
    size = apart.abs().amax(1) if norm == "linf" else apart.norm(dim=1)
    outside = (size > eps + SLACK) | (z.flatten(1).amin(1) < 0) | (z.flatten(1).amax(1) > 1) | ~size.isfinite()
    answers = torch.cat([model(part.float()).argmax(1) for part in z.split(250)])
    return (answers != y) & ~outside, outside


def freeze_trace(model: nn.Module) -> nn.Module:
    """The same object for everybody: evaluation mode, no gradients left over from the contender before."""
    model.zero_grad(set_to_none=True)
    return model.eval()


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def machine() -> dict[str, Any]:
    """The class of machine; neither its name nor its paths."""
    load = os.getloadavg()[0]
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "architecture": platform.machine(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "load_at_end": round(load, 1),
    }


def write(name: str, body: Mapping[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"versions": versions(), "machine": machine(), **body}, indent=1) + "\n")
    return path


def results(name: str) -> dict[str, Any]:
    """What earlier runs found, by key."""
    path = RESULTS / f"{name}.json"
    return dict(json.loads(path.read_text())["results"]) if path.exists() else {}


def stored(name: str, key: str) -> dict[str, Any]:
    """What earlier runs found under `key`, where that is a table with its parts."""
    found = results(name).get(key, {})
    return found if isinstance(found, dict) else {}


def update(name: str, key: str, rows: Any) -> Path:
    """As `write`, keeping what earlier runs found under other keys."""
    return write(name, {"results": results(name) | {key: rows}})


def table(rows: list[Mapping[str, Any]], columns: list[str]) -> str:
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(column), *(len(row[i]) for row in cells)) for i, column in enumerate(columns)]
    lines = [columns, ["-" * w for w in widths], *cells]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
