"""docs/plots: strength against passes and success against queries, drawn from bench/results alone."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vauban.reports.charts import chart
from vauban.schema.log import Curve, Series

RESULTS = Path(__file__).resolve().parent.parent / "bench" / "results"
FOLDER = "plots"
PEERS = 4
"""Drawn at most, the best first."""
Results = Mapping[str, Any]


def _mine(contender: str) -> bool:
    return contender.startswith("vauban")


def _cascade(results: Results) -> Iterator[Curve]:
    """What is left against forwards a sample, a point a tier."""
    for name, part in results.items():
        rows = {row["contender"]: row for row in part["rows"] if "accuracy" in row}
        ours = [row for who, row in rows.items() if _mine(who)]
        both = (("vauban: screen, standard", ours), ("AutoAttack standard", [rows["autoattack"]]))
        yield Curve(
            id=f"cascade-{name}",
            title=f"{name}: accuracy left against passes",
            x_label="inputs pushed forward, a sample",
            y_label="accuracy left",
            x_scale="log",
            series=[_points(who, [(row["forwards"], row["accuracy"]) for row in found]) for who, found in both],
        )


def optimalities(results: Results) -> Iterator[tuple[str, str, int, float, dict[str, float]]]:
    """(model, norm, passes, ours at its best, each peer's) of every table of nearest successes."""
    for title, rows in results.items():
        found = {row["contender"]: row["optimality"] for row in rows if "optimality" in row}
        if found:
            norm, passes, model, _ = title.split(", ")
            best = max(value for who, value in found.items() if _mine(who))
            yield model, norm, int(passes.split()[0]), best, {w: v for w, v in found.items() if not _mine(w)}


def _nearest(results: Results) -> Iterator[Curve]:
    """Optimality against passes: ours at its best, and the best peers at the largest budget."""
    told: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for model, norm, passes, best, theirs in optimalities(results):
        for who, value in {"vauban": best, **theirs}.items():
            told.setdefault((model, norm), {}).setdefault(who, {})[passes] = value
    for (model, norm), each in sorted(told.items()):
        peers = sorted((who for who in each if not _mine(who)), key=lambda who: -each[who][max(each[who])])
        yield Curve(
            id=f"nearest-{model}-{norm}",
            title=f"{model}, {norm}: how near the nearest success comes against passes",
            x_label="passes",
            y_label="optimality",
            x_scale="log",
            series=[_points(who.replace("_", "-"), sorted(each[who].items())) for who in ["vauban", *peers[:PEERS]]],
        )


def _success(results: Results) -> Iterator[Curve]:
    """Share of the images broken against queries, the median of the seeds."""
    for title, part in results.items():
        if not isinstance(part, dict):
            continue
        rows = part["rows"]
        seeds = list(part["parts"].values())
        marks = sorted({round(10 ** (step / 20)) for step in range(61)})
        yield Curve(
            id=f"success-{title.replace(' ', '-')}",
            title=f"{title}: images broken against queries",
            x_label="queries",
            y_label="share broken",
            x_scale="log",
            series=[
                _points(row["contender"], [(mark, _share(seeds, row["contender"], mark)) for mark in marks])
                for row in rows
            ],
        )


def _share(seeds: list[Mapping[str, str]], contender: str, mark: int) -> float:
    firsts = [[math.inf if q == "-" else float(q) for q in seed[contender].split()] for seed in seeds]
    return statistics.median(sum(q <= mark for q in first) / len(first) for first in firsts)


def _points(label: str, points: list[tuple[float, float]]) -> Series:
    x, y = zip(*sorted(points), strict=True)
    return Series(label=label, x=list(x), y=list(y))


DRAWN: Mapping[str, Callable[[Results], Iterator[Curve]]] = {
    "cascade": _cascade,
    "minimal_norm": _nearest,
    "score_based": _success,
}
"""Results file -> its curves."""


def curves(file: str) -> list[Curve]:
    """Those of one results file."""
    path = RESULTS / f"{file}.json"
    if file not in DRAWN or not path.exists():
        return []
    return list(DRAWN[file](json.loads(path.read_text(encoding="utf-8"))["results"]))


def pictures() -> dict[str, str]:
    """File name under docs/plots -> SVG."""
    return {f"{curve.id}.svg": chart(curve, standalone=True) + "\n" for file in DRAWN for curve in curves(file)}
