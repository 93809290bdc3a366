"""The page of explained answers, and bars."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vauban.reports.charts import bar_chart
from vauban.reports.explanation import render, text
from vauban.schema.explanation import Answer, ExplainedRow, Explanation, Feature
from vauban.schema.log import Bars, Exhibit, Picture

NASTY = '"><script>alert(1)</script>'


def told(attacked: bool = True, word: str = "7") -> Explanation:
    features = [
        Feature(
            name=f"{word} {i}",
            value=0.5,
            attribution=3.0 - i,
            changed=0.25 if attacked else None,
            after=-1.0 if attacked else None,
        )
        for i in range(6)
    ]
    row = ExplainedRow(
        row=12,
        truth=word,
        clean=Answer(label=word, explained=word, score=17.5, change=17.0, gap=0.013),
        attacked=Answer(label="8", explained="8", score=4.0) if attacked else None,
        status="broken" if attacked else "",
        largest=features,
        exhibit=Exhibit(title=word, pictures=[Picture(caption=word, png="AAAA")]),
    )
    return Explanation(
        target=word, sha256="0", data=word, kind="image", method="integrated_gradients", settings={"steps": 50},
        baseline="low", attack="evasion.pgd" if attacked else None, threat="linf:0.1" if attacked else None,
        notes=[word], rows=[row],
    )  # fmt: skip


@pytest.mark.parametrize("attacked", [True, False])
def test_the_page_is_whole_and_harmless(attacked: bool) -> None:
    page = render(told(attacked, NASTY))
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert "Row 12" in page
    assert ("evasion.pgd" in page) == attacked
    assert page.count("<tr>") == 7  # a head and six features


def test_the_terminal_shows_the_largest_features() -> None:
    lines = text(told()).splitlines()
    assert "row 12, in truth 7: 7 with score 17.5 (its attributions miss their sum by 0.013)" in lines
    assert "  attacked: broken: 8 with score 4" in lines
    assert sum("then" in line for line in lines) == 5
    assert "then" not in text(told(attacked=False))


def rectangles(drawn: str) -> list[tuple[int, float, float]]:
    found = re.findall(r'<rect class="f(\d)" x="([^"]+)" y="[^"]+" width="([^"]+)" height="8">', drawn)
    return [(int(series), float(x), float(width)) for series, x, width in found]


def test_bars_are_as_long_as_their_numbers() -> None:
    drawn = bar_chart(Bars(labels=["a", "b"], series=["before", "after"], values=[[2.0, -1.0], [1.0, 0.0]]))
    (_, x0, long), (_, x1, half), (_, x2, left), (_, _, none) = rectangles(drawn)
    assert x0 == x1
    assert half == pytest.approx(long / 2, abs=0.2)
    assert left == pytest.approx(half, abs=0.2)
    assert x2 + left == pytest.approx(x0, abs=0.2)
    assert none == 0.6  # a zero can be seen
    assert ">before</text>" in drawn


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=0, max_size=8))
def test_any_bars_can_be_drawn_within_their_frame(values: list[float]) -> None:
    drawn = bar_chart(Bars(labels=[NASTY] * len(values), series=["a"], values=[values]))
    assert "<script" not in drawn
    assert all(x >= 0 and x + width <= 441 for _, x, width in rectangles(drawn))
