"""The page: offline, harmless, complete, small."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from importlib.resources import files
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vauban.reports import terminal, text
from vauban.reports.charts import MOST_LABEL, MOST_POINTS, chart, merged, nice
from vauban.reports.html import Html, bar, commands, move
from vauban.reports.markdown import Markdown
from vauban.reports.view import PICTURES, view
from vauban.reports.words import catalogue, translator
from vauban.rules.catalog import RULES
from vauban.rules.judge import verdict
from vauban.schema.errors import BadOption
from vauban.schema.log import SEVERITIES, Attempt, AuditLog, Change, Curve, Exhibit, Measurement, Series, Verdict

VOID = {"meta", "br", "img", "link", "input", "hr"}
NASTY = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


class Page(HTMLParser):
    """Checks that tags close in order, and notes what the page would load and run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(page)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.handlers += [name] if name.startswith("on") else []
            self.loads += [value or ""] if name in ("src", "action", "data", "poster", "srcset") else []
            self.links += [value or ""] if name in ("href", "xlink:href") else []
            self.ids += [value or ""] if name == "id" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def page(log: AuditLog) -> str:
    return Html().render(log)


@pytest.fixture(scope="module", params=["en", "zh"])
def parsed(request: pytest.FixtureRequest, log: AuditLog) -> Page:
    return Page(Html(request.param).render(log))


def test_nothing_is_loaded_or_run(parsed: Page, page: str) -> None:
    assert "script" not in parsed.tags
    assert not {"link", "iframe", "object", "embed", "form", "base"} & set(parsed.tags)
    assert not parsed.handlers
    assert all(src.startswith("data:image/png;base64,") for src in parsed.loads)
    assert all(href.startswith("#") for href in parsed.links)
    assert "default-src 'none'" in page
    assert "@import" not in page
    assert "url(" not in page


def test_each_link_leads_somewhere_and_ids_are_unique(parsed: Page) -> None:
    assert {href[1:] for href in parsed.links} <= set(parsed.ids)
    assert len(parsed.ids) == len(set(parsed.ids))


def test_everything_in_the_log_is_on_the_page(log: AuditLog) -> None:
    seen = " ".join(re.split("[ \n]+", Page(Html().render(log)).text))
    assert log.verdict.sentence in seen
    for attempt in log.attempts:
        assert attempt.check in seen
        assert attempt.reason in seen
        for m in attempt.measurements:
            assert text.title(m.name) in seen
    for finding in log.findings:
        assert finding.claim in seen
        assert finding.reproduce in seen
        for row in [*finding.standards.nist, *finding.standards.atlas, *finding.standards.owasp]:
            assert row in seen
            assert finding.standards.names[row] in seen
    for word in ("9f" * 32, "1c" * 32, "2.13.0", *log.notes):
        assert word in seen


def test_states_are_counted_beside_the_verdict(log: AuditLog) -> None:
    seen = " ".join(Page(Html().render(log)).text.split())
    for state, count in view(log).counts.items():
        assert f"{count} {state.replace('_', ' ')}" in seen


def test_a_doubt_stands_before_every_number(log: AuditLog) -> None:
    for seen in (Html().render(log), Markdown().render(log), terminal.render(log)):
        told = [" ".join(d.text.split()[:4]) for a in log.attempts for d in a.doubts if d.verdict != "pass"]
        flat = " ".join(re.sub(r"<[^>]+>", " ", seen).split())
        assert told
        for text_ in told:
            assert flat.index(text_) < flat.index("evasion.not_robust")
    rows = view(log).warned
    assert [w.doubt.verdict for w in rows] == sorted((w.doubt.verdict for w in rows), key=["fail", "warn"].index)


def test_who_broke_what_is_counted(log: AuditLog) -> None:
    rows = {b.check: b for b in view(log).breakers}
    assert rows["evasion.apgd"].broken == 425
    assert rows["evasion.apgd"].alone == 15
    assert rows["evasion.pgd"].alone == 0
    assert "Who broke what" in Page(Html().render(log)).text


def test_before_and_after_comes_first(page: str, logs: ModuleType) -> None:
    assert (
        page.index('id="compare"')
        < page.index('id="first"')
        < page.index('id="findings"')
        < page.index('id="coverage"')
    )
    assert 'id="compare"' not in Html().render(logs.make_log(rich=False))


def changed(name: str, before: float | None, after: float | None, **more: Any) -> Change:
    gap = None if before is None or after is None else after - before
    return Change(
        check="a.b", threat=None, name=name, before=before, after=after, difference=gap, low=None, high=None, **more
    )


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (changed("evasion.robust_accuracy", 0.1, 0.7, better=True), "better"),
        (changed("evasion.robust_accuracy", 0.7, 0.1, better=False), "worse"),
        (changed("evasion.robust_accuracy", 0.7, 0.69), "cannot be told"),
        (changed("evasion.robust_accuracy", 0.7, 0.7), "unchanged"),
        (changed("evasion.robust_accuracy", None, 0.7), ""),
        *((changed(name, 0.5, 0.7), "") for name in sorted(text.CONTROLS)),
    ],
)
def test_a_change_in_a_word(change: Change, word: str) -> None:
    assert text.outcome(change) == word


def test_the_headline_is_open_and_the_rest_folded(log: AuditLog) -> None:
    few = [changed("evasion.clean_accuracy", 1.0, 0.98), changed("evasion.robust_accuracy", 0.1, 0.7, better=True)]
    many = [changed("leakage.blind_auc", 0.5, 0.51, unit="auc")] * 30
    assert log.before_after is not None
    both = log.before_after.model_copy(update={"headline": few, "changes": many})
    long = log.model_copy(update={"before_after": both})
    page = Html().render(long)
    opened, folded = page.index('class="headline"'), page.index('<details class="bulk">')
    assert page[opened:folded].count('class="change"') == 2
    assert page[opened:folded].count("<figure>") == 1
    assert "blind baseline" not in page[opened:folded]
    assert "All measurements (30)" in " ".join(Page(page).text.split())
    assert "defended with train.pgd" in page[: page.index("<h1>")]
    assert terminal.render(long, width=140).count("blind baseline, area") == 0
    assert Markdown().render(long).count("blind baseline, area") == 0


def test_an_unchanged_number_makes_no_noise() -> None:
    assert text.signed(0.0, "linf") == "±0"
    assert text.between(0.0, 0.0, "linf") == ""
    assert text.between(-0.25, 0.5, "linf") == "−0.25 … +0.5"
    assert text.between(-0.05, 0.1) == "−5.0 … +10.0"


def test_a_move_is_drawn_from_before_to_after_with_its_interval() -> None:
    change = changed("evasion.robust_accuracy", 0.25, 0.75).model_copy(update={"low": 0.25, "high": 1.0})
    drawn = move(change)
    assert '<circle class="from" cx="31.0"' in drawn
    assert '<circle cx="89.0"' in drawn
    assert 'd="M60.0 8H118.0"' in drawn
    assert move(changed("tampering.flips_to_collapse", 11.0, 10.0, unit="flips")) == ""


def variants(logs: ModuleType) -> dict[str, AuditLog]:
    """Audits that leave most of the page empty, or fill it with something else than pictures."""
    plain: AuditLog = logs.make_log(rich=False)
    skipped = [
        a.model_copy(
            update={"state": "skipped", "reason": "excluded", "measurements": [], "exhibits": [], "curves": []}
        )
        for a in plain.attempts
    ]
    table = Exhibit(title="Row 7", columns=["feature", "clean", "changed"], rows=[["income", "12.5", "13.1"]])
    error = Measurement(name="evasion.robust_accuracy", value=0.4, low=0.3, high=0.5, n=50)
    regression = [
        Attempt(
            check="evasion.pgd", threat="l2:1", state="assessed", measurements=[error], exhibits=[table], outcomes="bh"
        )
    ]
    target = plain.target.model_copy(update={"domain": "tabular", "task": "regression", "classes": None})
    made = {
        "unhardened": (plain.attempts, plain.findings, plain.target),
        "harmless": (plain.attempts[3:4], [], plain.target),
        "skipped": (skipped, [], plain.target),
        "regression": (regression, [], target),
    }
    return {
        name: plain.model_copy(
            update={"attempts": a, "findings": f, "target": t, "verdict": verdict(a, f), "notes": []}
        )
        for name, (a, f, t) in made.items()
    }


@pytest.mark.parametrize(
    ("name", "state", "said"),
    [
        ("unhardened", "Failed", "What to do first"),
        ("harmless", "Passed", "No finding."),
        ("skipped", "No verdict", "nothing could be examined"),
        ("regression", "Passed", "income"),
    ],
)
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_sparse_audits_make_whole_pages(logs: ModuleType, name: str, state: str, said: str, lang: str) -> None:
    sparse = variants(logs)[name]
    page = Page(Html(lang).render(sparse))
    seen = " ".join(page.text.split())
    assert translator(lang)(state) in seen
    assert said in seen or translator(lang)(said) in seen or lang == "zh"
    assert "None" not in seen
    assert (translator(lang)("No doubt remained.") in seen) is (sparse.verdict.assessed > 0 and name != "unhardened")
    sentence = " ".join(sparse.verdict.sentence.removeprefix("No verdict: ").rstrip(".").split())
    assert seen.count(sentence) == 1, "the verdict is said once"
    assert "compare" not in page.ids
    assert {href[1:] for href in page.links} <= set(page.ids)
    assert terminal.render(sparse, width=120)
    assert Markdown(lang).render(sparse)


def test_coverage_is_shown_even_where_nothing_was_examined(log: AuditLog) -> None:
    nothing = Verdict(state="inconclusive", assessed=0, not_assessed=0)
    bare = log.model_copy(update={"attempts": [], "findings": [], "verdict": nothing, "before_after": None})
    page = Page(Html().render(bare))
    assert "coverage" in page.ids
    assert "Nothing was examined." in page.text
    assert "Passed" not in page.text


def test_hostile_words_are_only_words(log: AuditLog) -> None:
    exhibit = Exhibit(title=NASTY, note=NASTY, columns=[NASTY], rows=[[NASTY]])
    curve = Curve(
        id=NASTY,
        title=NASTY,
        x_label=NASTY,
        y_label=NASTY,
        reading=NASTY,
        series=[Series(label=NASTY, x=[0, 1], y=[0, 1])],
    )
    hostile = Attempt(
        check="evasion.apgd", threat=NASTY, state="assessed", reason=NASTY, caveats=[NASTY], curves=[curve],
        exhibits=[exhibit], facts={NASTY: NASTY}, params={NASTY: [NASTY]},
        measurements=[Measurement(name=NASTY, value=0.5, unit=NASTY, method=NASTY)],
    )  # fmt: skip
    findings = [
        f.model_copy(update={"claim": NASTY, "remedies": [f"vauban x {NASTY}"], "reproduce": NASTY})
        for f in log.findings
    ]
    target = log.target.model_copy(update={"id": NASTY, "facts": {NASTY: NASTY}})
    page = Page(
        Html().render(log.model_copy(update={"attempts": [hostile] * 18, "findings": findings, "target": target}))
    )
    assert "script" not in page.tags
    assert not page.handlers
    assert NASTY in page.text


def test_the_page_stays_small_however_many_pictures_there_are(log: AuditLog, logs: ModuleType) -> None:
    big = logs.picture(1, "big").model_copy(update={"png": "A" * 40_000})
    many = [a.model_copy(update={"exhibits": [Exhibit(title="t", pictures=[big] * 60)]}) for a in log.attempts]
    heavy = log.model_copy(update={"attempts": many})
    page = Html().render(heavy)
    assert len(page.encode()) < 5_000_000
    assert view(heavy).dropped == 60 * len(many) - page.count("data:image/png")
    assert "further pictures" in page
    light = view(log.model_copy(update={"attempts": [many[0]], "findings": []}))
    assert sum(len(e.pictures) for e in light.leftover[0]) == PICTURES


def test_each_picture_is_shown_once(log: AuditLog, page: str) -> None:
    assert page.count("data:image/png") == sum(len(e.pictures) for a in log.attempts for e in a.exhibits)


def test_first_steps_put_like_remedies_together(log: AuditLog) -> None:
    steps = view(log).first_steps
    rules = [[s.finding.rule for s in step.findings] for step in steps]
    assert ["leakage.membership", "leakage.reconstruction"] in rules
    assert len({step.text for step in steps}) == len(steps) <= 4


# Languages


def fixed_strings() -> set[str]:
    """Every sentence that goes through `t` or `state` in templates and code."""
    folder = files("vauban.reports").joinpath("templates")
    source = "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in ("report.html.j2", "parts.html.j2"))
    source += files("vauban.reports").joinpath("markdown.py").read_text(encoding="utf-8").replace("'", '"')
    found = set(re.findall(r'\bt\("([^"]+)"\)', source))
    found |= {"Passed", "Failed", "No verdict", "impact", "knowledge", "cost", "pass", "warn", "fail", *SEVERITIES}
    found |= {
        "assessed",
        "inconclusive",
        "error",
        "skipped",
        "not applicable",
        "yes",
        "no",
        *text.NAMES.values(),
        *text.FACTS.values(),
    }
    found |= {RULES.load(rule).card.name for rule in RULES.ids()}
    return found


def test_the_chinese_catalogue_is_complete_and_holds_nothing_else() -> None:
    words = catalogue("zh")
    assert fixed_strings() - set(words) == set()
    assert set(words) - fixed_strings() == set()
    assert all(value.strip() for value in words.values())


def test_the_chinese_page_says_so_and_is_translated(log: AuditLog) -> None:
    page = Html("zh").render(log)
    assert '<html lang="zh">' in page
    for english in ("What to do first", "What was examined", "Can these numbers be trusted?", "not applicable"):
        assert english not in page
        assert translator("zh")(english) in page


def test_unknown_language_is_refused() -> None:
    with pytest.raises(BadOption, match="en, zh"):
        Html("xx")


# Drawings


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.3), (-2, 7), (0, 12345), (1e-6, 3e-6)])
def test_ticks_are_round_evenly_spaced_and_within(low: float, high: float) -> None:
    ticks = nice(low, high)
    assert 2 <= len(ticks) <= 8
    assert all(low - 1e-12 <= t <= high * (1 + 1e-9) for t in ticks)
    gaps = [b - a for a, b in itertools.pairwise(ticks)]
    assert gaps == pytest.approx([gaps[0]] * len(gaps))


VALUES = st.lists(st.none() | st.floats(-1e6, 1e6), min_size=0, max_size=8)


@settings(deadline=None, max_examples=30)
@given(VALUES, st.sampled_from(["linear", "log"]), st.sampled_from(["linear", "log"]))
def test_any_curve_can_be_drawn_within_its_frame(y: list[float | None], x_scale: str, y_scale: str) -> None:
    series = Series(label="a", x=[float(i) for i in range(len(y))], y=y, low=y, high=y)
    drawn = chart(Curve(id="c", title="", x_label="x", y_label="y", x_scale=x_scale, y_scale=y_scale, series=[series]))
    assert "nan" not in drawn
    assert "inf" not in drawn
    for cx, cy in re.findall(r'<circle class="f0" cx="([^"]+)" cy="([^"]+)"', drawn):
        assert 0 <= float(cx) <= 440
        assert 0 <= float(cy) <= 248


def test_a_gap_breaks_the_line_and_a_point_lies_where_it_should() -> None:
    series = Series(label="", x=[0, 1, 2, 3], y=[0.0, 1.0, None, 0.5])
    drawn = chart(Curve(id="c", title="t", x_label="x", y_label="y", series=[series]))
    path = re.search(r'class="line s0" d="([^"]+)"', drawn)
    assert path is not None
    assert path[1].count("M") == 2
    assert path[1].startswith("M58.0 208.0L")
    assert "<title>t</title><desc>" in drawn


def test_steps_hold_until_the_next_point() -> None:
    series = Series(label="", x=[0, 1, 2], y=[0.0, 0.5, 1.0])
    drawn = chart(Curve(id="c", title="t", x_label="x", y_label="y", shape="steps", series=[series]))
    path = re.search(r'class="line s0" d="([^"]+)"', drawn)
    assert path is not None
    assert path[1] == "M58.0 208.0" + "".join(f"H{x}L{x} {y}" for x, y in ((242.0, 110.0), (426.0, 12.0)))


def test_a_long_name_is_cut_to_the_width_of_the_chart() -> None:
    series = Series(label="x" * 200, x=[0, 1], y=[0, 1])
    drawn = chart(Curve(id="c", title="t", x_label="x", y_label="y", series=[series]))
    assert "x" * (MOST_LABEL - 1) + "…" in drawn
    assert "x" * MOST_LABEL not in drawn


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    n = 5000
    series = Series(label="", x=[i / n for i in range(n)], y=[i / n for i in range(n)])
    drawn = chart(Curve(id="c", title="t", x_label="x", y_label="y", series=[series]))
    path = re.search(r'class="line s0" d="([^"]+)"', drawn)
    assert path is not None
    assert path[1].count("L") == MOST_POINTS - 1
    assert len(drawn) < 12_000


def test_like_curves_share_a_chart_and_controls_are_drawn_once(logs: ModuleType) -> None:
    together = merged([("leakage.lira", logs.roc()), ("leakage.rmia", logs.roc()), ("x", logs.security_curve("x", 2))])
    assert [len(c.series) for c in together] == [4, 1]
    assert [s.label for s in together[0].series] == ["leakage.lira", "leakage.rmia", "blind baseline", "null control"]


def test_an_interval_bar_says_its_number_and_stays_in_range() -> None:
    drawn = bar(Measurement(name="a", value=0.25, low=0.2, high=0.3))
    assert 'aria-label="25.0\u00a0% (20.0\u00a0% to 30.0\u00a0%)"' in drawn
    assert 'd="M25.2 8H36.8"' in drawn
    assert bar(Measurement(name="a", value=None)) == ""
    assert bar(Measurement(name="a", value=3.0, unit="dB")) == ""


def test_commands_are_set_as_code() -> None:
    want = "Seal: <code>vauban seal PATH</code>, then <code>vauban verify PATH</code>"
    assert commands("Seal: vauban seal PATH, then vauban verify PATH") == want
    assert commands("a <b>") == "a &lt;b&gt;"
