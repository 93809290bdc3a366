"""report.html: one offline file. No script, no network, nothing that a mail filter would dislike."""

from __future__ import annotations

import re
from functools import partial
from importlib.resources import files
from typing import Any, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from vauban.reports import text
from vauban.reports.charts import RULES, STYLE, bar_chart, chart
from vauban.reports.view import headline, view
from vauban.reports.words import Translate, translator
from vauban.schema.log import AuditLog, Bars, Change, Curve, Measurement

COMMAND = re.compile(r"vauban [a-z]+ [^,;]*")
"""A command in a remedy runs to the end of the sentence or to the next comma."""


class Html:
    """The page for people. Everything in the log is escaped; pictures are data."""

    filename: ClassVar[str] = "report.html"

    def __init__(self, lang: str = "en") -> None:
        self.lang = lang
        self.t: Translate = translator(lang)

    def render(self, log: AuditLog) -> str:
        page = environment(self.t).get_template("report.html.j2")
        css = files("vauban.reports").joinpath("templates/report.css").read_text(encoding="utf-8")
        first = headline(log.before_after) if log.before_after else []
        return page.render(view=view(log), log=log, headline=first, lang=self.lang, css=Markup(f"{css}{STYLE}{RULES}"))


def environment(t: Translate) -> Environment:
    """Autoescape is on throughout; only the drawings below are marked safe, and they escape what they hold."""
    env = Environment(
        loader=PackageLoader("vauban.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals.update(t=t, state=lambda name: t(name.replace("_", " ")), title=lambda name: t(text.title(name)))
    env.filters.update(
        chart=_chart,
        bar=bar,
        bars=_bars,
        shift=shift,
        move=move,
        commands=commands,
        number=text.number,
        interval=text.interval,
        signed=text.signed,
        between=text.between,
        full=text.full,
        outcome=text.outcome,
        fact=text.fact,
        key=text.key,
        seconds=text.seconds,
        plain=partial(_plain, t=t),
    )
    return env


def _chart(curve: Curve) -> Markup:
    return Markup(chart(curve))


def _bars(bars: Bars) -> Markup:
    return Markup(bar_chart(bars))


def bar(m: Measurement) -> Markup:
    """A share between 0 and 1 with its interval, as a small drawing; nothing for other units."""
    if m.value is None or m.unit not in text.SHARES:
        return Markup("")
    low, high = (m.value if end is None else end for end in (m.low, m.high))
    return _drawing(0.0, 1.0, low, high, m.value, text.full(m), middle=0.5 if m.unit == "auc" else None)


def shift(change: Change) -> Markup:
    """A difference with its interval around zero."""
    if change.difference is None or change.unit not in text.SHARES:
        return Markup("")
    low, high = (change.difference if end is None else end for end in (change.low, change.high))
    return _drawing(-1.0, 1.0, low, high, change.difference, text.signed(change.difference, change.unit), middle=0.0)


def move(change: Change) -> Markup:
    """From before (hollow) to after (full) between 0 and 1, with the interval of the difference; nothing for other units."""
    before, after = change.before, change.after
    if before is None or after is None or change.unit not in text.SHARES:
        return Markup("")
    low, high = (after if end is None else before + end for end in (change.low, change.high))
    label = f"{text.number(before, change.unit)} → {text.number(after, change.unit)}"
    return _drawing(0.0, 1.0, low, high, after, label, middle=0.5 if change.unit == "auc" else None, start_at=before)


def _drawing(
    start: float,
    end: float,
    low: float,
    high: float,
    value: float,
    label: str,
    middle: float | None,
    start_at: float | None = None,
) -> Markup:
    def at(number: float) -> float:
        return round(2 + 116 * min(1.0, max(0.0, (number - start) / (end - start))), 1)

    origin = "" if start_at is None else f'<circle class="from" cx="{at(start_at)}" cy="8" r="4"/>'
    centre = "" if middle is None else f'<path class="mid" d="M{at(middle)} 2V14"/>'
    return Markup(
        f'<svg class="bar" viewBox="0 0 120 16" role="img" aria-label="{escape(label)}"><path class="track" d="M2 8H118"/>'
        f'{centre}<path class="range" d="M{at(low)} 8H{at(high)}"/>{origin}<circle cx="{at(value)}" cy="8" r="4"/></svg>'
    )


def commands(words: str) -> Markup:
    """The sentence with each `vauban ...` command set as code."""
    out, last = Markup(), 0
    for match in COMMAND.finditer(words):
        out += escape(words[last : match.start()]) + Markup("<code>{}</code>").format(match.group().rstrip())
        last = match.end()
    return out + escape(words[last:])


def _plain(value: Any, t: Translate) -> str:
    """A fact as text, cut where it is long."""
    if isinstance(value, bool):
        return t("yes") if value else t("no")
    if isinstance(value, float):
        return f"{value:.6g}"
    shown = ", ".join(_plain(v, t) for v in value) if isinstance(value, list | tuple) else str(value)
    return shown if len(shown) <= 160 else f"{shown[:157]}…"
