"""Curves as SVG: drawn here, so that a page needs no script, no network and no fonts of its own.

Colours come from CSS classes (`s0` to `s5`), so that one drawing serves light, dark and print; lines also differ in
dashes and markers, for eyes and printers that see no colour. The same curve always gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from vauban.schema.log import Bars, Curve, Series

WIDTH, PLOT = 440, 236
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 40
MOST_POINTS = 240
MOST_SERIES = 6
MOST_LABEL = 54
"""Characters that fit into the width of a chart."""
NAME_HEIGHT = 12
"""Pixels from the name of one point to the next."""
MOST_SIZE = 1e300
"""Longer bars are cut: the difference of two numbers must stay finite."""
BAR_LEFT, MOST_NAME = 150, 22
"""Where the bars of a bar chart begin, and the characters of a label that fit before them."""
STYLE = """
svg.chart{font:12px system-ui,sans-serif;color-scheme:light dark;--ink:#24272d;--soft:#777d87;--rule:#8883;
--c0:#1d6fa5;--c1:#c2571a;--c2:#5b8c2a;--c3:#8a4fb0;--c4:#b0862a;--c5:#3f8f8a}
@media(prefers-color-scheme:dark){svg.chart{--ink:#e8e6e1;--soft:#9aa0aa;--c0:#6cb6e8;--c1:#f0965a;--c2:#9ccb62;--c3:#c79be8;--c4:#e2c063;--c5:#7fd0c9}}
"""
RULES = (
    "svg.chart text{fill:var(--soft)}svg.chart .name{fill:var(--ink)}"
    "svg.chart .grid{stroke:var(--rule);stroke-width:1}svg.chart .axis{stroke:var(--soft);stroke-width:1}"
    "svg.chart .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}"
    "svg.chart .band{stroke:none;opacity:.14}"
    + "".join(f"svg.chart .s{i}{{stroke:var(--c{i})}}svg.chart .f{i}{{fill:var(--c{i})}}" for i in range(MOST_SERIES))
)
DASHES = ("", "6 4", "2 3", "8 3 2 3", "1 4", "10 4")


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, v = (_log(u) if self.log else u for u in (self.low, self.high, max(value, self.low)))
        return round(self.start + (self.end - self.start) * (v - low) / ((high - low) or 1), 1)

    def ticks(self) -> list[float]:
        return _decades(self.low, self.high) if self.log else nice(self.low, self.high)


def chart(curve: Curve, standalone: bool = False) -> str:
    """One `<svg>`; `standalone` brings its own colours along, for a file of its own."""
    series = [_thinned(s) for s in curve.series[:MOST_SERIES]]
    xs, points = _all(s.x for s in series), curve.shape == "points"
    x = (
        _near(xs, LEFT, WIDTH - RIGHT)
        if points
        else _axis(xs, LEFT, WIDTH - RIGHT, curve.x_scale == "log", share=False)
    )
    ys = _all([*(s.y for s in series), *(s.low or [] for s in series), *(s.high or [] for s in series)])
    bottom = TOP + PLOT - BOTTOM
    y = _near(ys, bottom, TOP) if points else _axis(ys, bottom, TOP, curve.y_scale == "log", share=True)
    legend, extra = _legend(series)
    parts = [*_grid(curve, x, y)]
    for index, line in enumerate(series):
        parts += [_band(line, index, x, y), *_DRAWN[curve.shape](line, index, x, y)]
    parts += _names(series, x, y)
    height = TOP + PLOT + extra
    title = escape(curve.title or curve.id)
    about = escape(curve.reading or f"{curve.y_label} against {curve.x_label}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" viewBox="0 0 {WIDTH} {height}">'
        f"<title>{title}</title><desc>{about}</desc>{_style(standalone)}{''.join(parts)}{legend}</svg>"
    )


def bar_chart(bars: Bars, standalone: bool = False) -> str:
    """One `<svg>`: a group of horizontal bars a label, around zero, one colour a series; the largest bar fills the width."""
    values = [[max(-MOST_SIZE, min(MOST_SIZE, v)) if math.isfinite(v) else 0.0 for v in row] for row in bars.values]
    numbers = [v for row in values for v in row]
    low, high = min([0.0, *numbers]), max([0.0, *numbers])
    x = Axis(low, high if high > low else low + 1, BAR_LEFT, WIDTH - RIGHT)
    rows, thick = max(1, len(bars.series)), 9
    step = rows * thick + 9
    parts = []
    for place, label in enumerate(bars.labels):
        top = 6 + place * step
        shown = label if len(label) <= MOST_NAME else f"{label[: MOST_NAME - 1]}…"
        middle = top + rows * thick / 2 + 4
        parts.append(f'<text class="name" x="{BAR_LEFT - 8}" y="{middle}" text-anchor="end">{escape(shown)}</text>')
        for index, row in enumerate(values[:MOST_SERIES]):
            ends = sorted((x.at(0), x.at(row[place])))
            about = f"{escape(label)}, {escape(bars.series[index])}: {bars.values[index][place]:.3g}"
            parts.append(
                f'<rect class="f{index}" x="{ends[0]}" y="{top + index * thick}" width="{max(0.6, ends[1] - ends[0]):.1f}" '
                f'height="{thick - 1}"><title>{about}</title></rect>'
            )
    bottom = 6 + len(bars.labels) * step
    parts.append(f'<line class="axis" x1="{x.at(0)}" x2="{x.at(0)}" y1="2" y2="{bottom}"/>')
    keys = _keys(bars.series[:MOST_SERIES], bottom + 14) if len(bars.series) > 1 else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" viewBox="0 0 {WIDTH} {bottom + 22 * bool(keys)}">'
        f"<title>{escape(bars.title)}</title>{_style(standalone)}{''.join(parts)}{keys}</svg>"
    )


def _style(standalone: bool) -> str:
    return f"<style>{STYLE}{RULES}</style>" if standalone else ""


def _keys(names: Sequence[str], y: float) -> str:
    parts, at = [], float(BAR_LEFT)
    for index, name in enumerate(names):
        parts.append(f'<rect class="f{index}" x="{at}" y="{y - 8}" width="9" height="9"/>')
        parts.append(f'<text class="name" x="{at + 15}" y="{y}">{escape(name)}</text>')
        at += 40 + 6.4 * len(name)
    return "".join(parts)


def merged(curves: Iterable[tuple[str, Curve]]) -> list[Curve]:
    """Curves of the same kind in one chart, so that attacks can be compared.

    Takes (name of the check, curve). The first line of each is that attack's and takes its name; further lines are
    controls, of which those of the first curve stand for all.
    """
    groups: dict[tuple[str, str, str], list[tuple[str, Curve]]] = {}
    for name, curve in curves:
        groups.setdefault((curve.title, curve.x_label, curve.y_label), []).append((name, curve))
    return [_together(group) if len(group) > 1 else group[0][1] for group in groups.values()]


def _together(group: Sequence[tuple[str, Curve]]) -> Curve:
    first = group[0][1]
    controls = first.series[1:]
    room = max(1, MOST_SERIES - len(controls))
    lines = [c.series[0].model_copy(update={"label": name}) for name, c in group if c.series]
    return first.model_copy(update={"series": [*lines[:room], *controls], "reading": ""})


def nice(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that lie within the range."""
    span = (high - low) or 1.0
    raw = span / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _axis(values: Sequence[float], start: float, end: float, log: bool, share: bool) -> Axis:
    """The range of the values, from 0 where it is linear; `share` ends at 1 what comes near it."""
    seen = [v for v in values if v > 0] if log else list(values)
    low, high = (min(seen), max(seen)) if seen else (0.1 if log else 0.0, 1.0)
    if log:
        return Axis(low, high if high > low else low * 10, start, end, log=True)
    low = min(0.0, low)
    high = 1.0 if share and 0.3 < high <= 1 and low == 0 else high
    return Axis(low, high if high > low else low + 1, start, end)


def _near(values: Sequence[float], start: float, end: float) -> Axis:
    """The range of the values and a little more: of points, what lies between them matters."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = 0.15 * max(high - low, 0.05)
    return Axis(low - room, high + room, start, end)


def _all(rows: Iterable[Sequence[float | None]]) -> list[float]:
    return [v for row in rows for v in row if v is not None and math.isfinite(v)]


def _log(value: float) -> float:
    return math.log10(max(value, 1e-300))


def _decades(low: float, high: float) -> list[float]:
    first, last = math.ceil(_log(low) - 1e-9), math.floor(_log(high) + 1e-9)
    step = max(1, (last - first) // 5)
    ticks = [10.0**e for e in range(first, last + 1, step)]
    return ticks if len(ticks) > 1 else [low, high]


def _label(value: float) -> str:
    if value and (abs(value) >= 10_000 or abs(value) < 0.001):
        exponent = math.floor(math.log10(abs(value)))
        return f"{value / 10**exponent:.3g}e{exponent}".replace("1e", "10^", 1) if value > 0 else f"{value:.0e}"
    return f"{value:.4g}"


def _grid(curve: Curve, x: Axis, y: Axis) -> Iterable[str]:
    bottom = y.start
    for tick in y.ticks():
        at = y.at(tick)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>'
        yield f'<text x="{LEFT - 7}" y="{at + 4}" text-anchor="end">{_label(tick)}</text>'
    for tick in x.ticks():
        at = x.at(tick)
        yield f'<line class="axis" x1="{at}" x2="{at}" y1="{bottom}" y2="{bottom + 4}"/>'
        yield f'<text x="{at}" y="{bottom + 17}" text-anchor="middle">{_label(tick)}</text>'
    yield f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text class="name" x="{middle}" y="{bottom + 34}" text-anchor="middle">{escape(curve.x_label)}</text>'
    across = (TOP + bottom) / 2
    yield (
        f'<text class="name" x="12" y="{across}" text-anchor="middle" transform="rotate(-90 12 {across})">'
        f"{escape(curve.y_label)}</text>"
    )


def _line(series: Series, index: int, x: Axis, y: Axis, steps: bool = False) -> Iterable[str]:
    points = [(x.at(a), y.at(b)) if b is not None and math.isfinite(b) else None for a, b in _pairs(series.x, series.y)]
    path, pen = [], "M"
    for point in points:
        across = f"H{point[0]}" if point and steps and pen == "L" else ""
        path.append(f"{across}{pen}{point[0]} {point[1]}" if point else "")
        pen = "L" if point else "M"
    dash = f' stroke-dasharray="{DASHES[index]}"' if DASHES[index] else ""
    yield f'<path class="line s{index}"{dash} d="{"".join(path)}"/>'
    if len(points) <= 16 and not steps:
        yield from (f'<circle class="f{index}" cx="{p[0]}" cy="{p[1]}" r="3"/>' for p in points if p)


def _steps(series: Series, index: int, x: Axis, y: Axis) -> Iterable[str]:
    return _line(series, index, x, y, steps=True)


def _points(series: Series, index: int, x: Axis, y: Axis) -> Iterable[str]:
    """Marks alone: a circle, smaller for later lines, and a square for the third."""
    for a, b in _pairs(series.x, series.y):
        if b is None or not math.isfinite(b):
            continue
        at, up, size = x.at(a), y.at(b), 5 - min(index, 2)
        square = f'<rect class="f{index}" x="{at - 5}" y="{up - 5}" width="10" height="10"/>'
        yield square if index == 2 else f'<circle class="f{index}" cx="{at}" cy="{up}" r="{size}"/>'


def _names(series: Sequence[Series], x: Axis, y: Axis) -> Iterable[str]:
    """Names of points, on the side where there is room; where they would lie on one another the lower one moves down."""
    found = [
        (y.at(b), x.at(a), name)
        for line in series
        for (a, b), name in zip(_pairs(line.x, line.y), line.names or [], strict=False)
        if name and b is not None and math.isfinite(b)
    ]
    lowest = {True: -math.inf, False: -math.inf}
    for up, at, name in sorted(found):
        left = at > (x.start + x.end) / 2
        lowest[left] = height = max(up + 4, lowest[left] + NAME_HEIGHT)
        side = ' text-anchor="end"' if left else ""
        yield f'<text class="name" x="{at - 9 if left else at + 9}" y="{round(height, 1)}"{side}>{escape(name)}</text>'


_DRAWN = {"line": _line, "steps": _steps, "points": _points}


def _band(series: Series, index: int, x: Axis, y: Axis) -> str:
    if not series.low or not series.high:
        return ""
    rows = [(x.at(a), lo, hi) for a, lo, hi in zip(series.x, series.low, series.high, strict=False)]
    known = [(a, y.at(lo), y.at(hi)) for a, lo, hi in rows if lo is not None and hi is not None]
    if len(known) < 2:
        return ""
    edge = [f"{a} {hi}" for a, _, hi in known] + [f"{a} {lo}" for a, lo, _ in reversed(known)]
    return f'<path class="band f{index}" d="M{"L".join(edge)}Z"/>'


def _pairs(x: Sequence[float], y: Sequence[float | None]) -> Iterable[tuple[float, float | None]]:
    return zip(x, y, strict=False)


def _legend(series: Sequence[Series]) -> tuple[str, int]:
    """Entries in rows below the plot, and the height that they take. One unnamed series needs none."""
    if len(series) == 1 and not series[0].label:
        return "", 0
    x, y, parts = float(LEFT), TOP + PLOT + 14, []
    for index, line in enumerate(series):
        label = line.label if len(line.label) <= MOST_LABEL else f"{line.label[: MOST_LABEL - 1]}…"
        width = 40 + 6.4 * len(label)
        if x > LEFT and x + width > WIDTH:
            x, y = float(LEFT), y + 18
        dash = f' stroke-dasharray="{DASHES[index]}"' if DASHES[index] else ""
        parts.append(f'<line class="line s{index}"{dash} x1="{x}" x2="{x + 20}" y1="{y - 4}" y2="{y - 4}"/>')
        parts.append(f'<text class="name" x="{x + 26}" y="{y}">{escape(label)}</text>')
        x = round(x + width, 1)
    return "".join(parts), y - TOP - PLOT + 6


def _thinned(series: Series) -> Series:
    """At most `MOST_POINTS` points, the first and the last among them."""
    n = len(series.x)
    if n <= MOST_POINTS:
        return series
    keep = sorted({round(i * (n - 1) / (MOST_POINTS - 1)) for i in range(MOST_POINTS)})
    picked = {name: [row[i] for i in keep] for name in ("x", "y", "low", "high") if (row := getattr(series, name))}
    return series.model_copy(update=picked)
