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


def defences() -> Results:
    """results/defences.json, an entry a defence; nothing where it was not made."""
    path = RESULTS / "defences.json"
    return json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}


def before_after(name: str, row: Mapping[str, Any]) -> Bars:
    """A defence's shares before and after."""
    told = [key for key in SHARES if row.get(key)]
    return Bars(
        title=f"{name} on {row['model']}, {row['threat']}: per cent of {row['samples']} samples",
        labels=[SHARES[key] for key in told],
        series=["before", "after"],
        values=[[100 * row[key][when] for key in told] for when in ("before", "after")],
    )


def compared(results: Results) -> Bars:
    """The model that most defences were shown on, as it was and after each of them, the most robust first."""
    cases = {name: (row["model"], row["threat"], row["samples"]) for name, row in results.items()}
    usual = max(cases.values(), key=[*cases.values()].count)
    ranked = sorted((n for n in cases if cases[n] == usual), key=lambda n: -results[n]["robust"]["after"])
    model, threat, samples = usual
    return Bars(
        title=f"{model}, {threat}, {samples} samples: per cent right",
        labels=["no defence", *ranked],
        series=[SHARES["clean"], SHARES["robust"]],
        values=[
            [100 * results[ranked[0]][key]["before"], *(100 * results[name][key]["after"] for name in ranked)]
            for key in ("clean", "robust")
        ],
    )


def defence_bars() -> dict[str, Bars]:
    """Name of a picture -> one for each defence that was measured, and `defences` for all."""
    results = defences()
    each = {f"defence-{name}": before_after(name, row) for name, row in results.items()}
    return {**each, "defences": compared(results)} if results else {}


def pictures() -> dict[str, str]:
    """File name under docs/plots -> SVG."""
    drawn = {curve.id: chart(curve, standalone=True) for file in DRAWN for curve in curves(file)}
    drawn |= {name: bar_chart(bars, standalone=True) for name, bars in defence_bars().items()}
    return {f"{name}.svg": svg + "\n" for name, svg in drawn.items()}
