"""Explained answers for people: explanation.html, and a few lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files

from markupsafe import Markup

from vauban.reports.charts import RULES, STYLE
from vauban.reports.html import environment
from vauban.reports.words import translator
from vauban.schema.explanation import Answer, ExplainedRow, Explanation, Feature

HTML = "explanation.html"
NAMES = {
    "integrated_gradients": "integrated gradients",
    "smooth_grad": "SmoothGrad",
    "occlusion": "occlusion",
    "grad_cam": "Grad-CAM",
}
SHOWN = 5
"""Features a row in the terminal."""


def render(told: Explanation) -> str:
    """The page: one offline file. Everything in it is escaped; pictures are data."""
    env = environment(translator("en"))
    css = files("vauban.reports").joinpath("templates/report.css").read_text(encoding="utf-8")
    page = env.get_template("explanation.html.j2")
    return page.render(told=told, how=how(told), answer=answer, css=Markup(f"{css}{STYLE}{RULES}"), lang="en")


def how(told: Explanation) -> str:
    """`integrated gradients (steps 50, rule gauss_legendre), against the baseline low`; what is 0 chooses itself."""
    shown = {
        name: f"{value:g}" if isinstance(value, float) else value for name, value in told.settings.items() if value
    }
    settings = ", ".join(f"{name} {value}" for name, value in shown.items())
    method = NAMES.get(told.method, told.method)
    return f"{method}{f' ({settings})' if settings else ''}, against the baseline {told.baseline}"


def answer(found: Answer) -> str:
    """`6 with score 9.12`, and how far the attributions miss what they should sum to."""
    missed = "" if found.gap is None else f" (its attributions miss their sum by {found.gap:.2g})"
    other = "" if found.explained == found.label else f", explained is {found.explained}"
    return f"{found.label}{other} with score {found.score:.4g}{missed}"


def text(told: Explanation) -> str:
    """The largest features of every row."""
    lines = [f"{told.target} on {told.data}: {how(told)}", *told.notes]
    for row in told.rows:
        lines += ["", *_row(row)]
    return "\n".join(lines)


def _row(row: ExplainedRow) -> Iterable[str]:
    yield f"row {row.row}, in truth {row.truth}: {answer(row.clean)}"
    if row.status:
        yield f"  attacked: {row.status}{f': {answer(row.attacked)}' if row.attacked else ''}"
    shown = row.largest[:SHOWN]
    wide = max((len(feature.name) for feature in shown), default=0)
    for feature in shown:
        yield f"  {feature.name:{wide}}  {_feature(feature)}"


def _feature(found: Feature) -> str:
    before = f"{found.attribution:+10.3g}  at {found.value:.4g}"
    return before if found.after is None else f"{before:32}  then {found.after:+10.3g}  at {found.changed:.4g}"
