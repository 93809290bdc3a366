"""docs/plots: strength against passes and success against queries, drawn from bench/results alone."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vauban.reports.charts import bar_chart, chart
from vauban.schema.log import Bars, Curve, Series

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


SHARES = {"clean": "clean", "robust": "under attack", "certified": "proved"}
"""Name in results/defences.json -> words; each is a share of the test rows."""


def before_after() -> dict[str, Bars]:
    """Name of a picture -> a defence's shares before and after, and under `defences` those of all that were shown on the same model."""
    path = RESULTS / "defences.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}
    found = {}
    for name, row in results.items():
        told = [key for key in SHARES if row.get(key)]
        found[f"defence-{name}"] = Bars(
            title=f"{name} on {row['model']}, {row['threat']}: per cent of {row['samples']} samples",
            labels=[SHARES[key] for key in told],
            series=["before", "after"],
            values=[[100 * row[key][when] for key in told] for when in ("before", "after")],
        )
    cases = {name: (row["model"], row["threat"], row["samples"]) for name, row in results.items()}
    for usual in {max(cases.values(), key=[*cases.values()].count)} if cases else ():
        found["defences"] = _all([row for name, row in results.items() if cases[name] == usual], results, usual)
    return found


def _all(rows: list[Any], results: Results, usual: tuple[str, str, int]) -> Bars:
    """The model as it was, and after each defence, the most robust first."""
    names = {id(row): name for name, row in results.items()}
    ranked = sorted(rows, key=lambda row: -row["robust"]["after"])
    return Bars(
        title=f"{usual[0]}, {usual[1]}, {usual[2]} samples: per cent right",
        labels=["no defence", *(names[id(row)] for row in ranked)],
        series=[SHARES["clean"], SHARES["robust"]],
        values=[
            [100 * ranked[0][key]["before"], *(100 * row[key]["after"] for row in ranked)]
            for key in ("clean", "robust")
        ],
    )


def pictures() -> dict[str, str]:
    """File name under docs/plots -> SVG."""
    drawn = {curve.id: chart(curve, standalone=True) for file in DRAWN for curve in curves(file)}
    drawn |= {name: bar_chart(bars, standalone=True) for name, bars in before_after().items()}
    return {f"{name}.svg": svg + "\n" for name, svg in drawn.items()}
