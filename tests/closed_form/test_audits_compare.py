"""Differences and their intervals, against published worked examples and exact coverage."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vauban.audits.compare import GOOD_WHEN_HIGH, change, compare, independent, overlay, paired, wilson
from vauban.audits.gate import Gate, judge_gates
from vauban.reports.text import CONTROLS
from vauban.schema.log import (
    Attempt,
    AuditLog,
    Curve,
    DataInfo,
    Finding,
    Measurement,
    RunInfo,
    Series,
    TargetInfo,
    Verdict,
)


def log(
    attempts: list[Attempt], findings: list[Finding] | None = None, data: str = "d", state: str = "pass"
) -> AuditLog:
    return AuditLog(
        run=RunInfo(id="r", started="", finished="", seed=0, argv=[], versions={}, machine={}),
        target=TargetInfo(id="t", sha256="", domain="image", offers=[]),
        data=DataInfo(id="d", sha256=data, train=0, test=9, shape=[1], samples=9),
        attempts=attempts,
        findings=findings or [],
        verdict=Verdict(state=state, assessed=len(attempts), not_assessed=0),  # type: ignore[arg-type]
    )


def robust(outcomes: str) -> Attempt:
    n, kept = len(outcomes), sum(c in "hc" for c in outcomes)
    low, high = wilson(kept, n)
    m = Measurement(name="evasion.robust_accuracy", value=kept / n, low=low, high=high, n=n)
    return Attempt(check="evasion.pgd", threat="linf:0.1", state="assessed", measurements=[m], outcomes=outcomes)


def test_wilson_against_the_published_example() -> None:
    """81 of 263: Wilson without continuity correction 0.2553 to 0.3662 (Newcombe 1998, Stat. Med. 17:857, Table I)."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_independent_difference_against_the_published_example() -> None:
    """56/70 and 48/80: 0.0524 to 0.3339 (Newcombe 1998, Stat. Med. 17:873, Table II, method 10, example a)."""

    def measured(k: int, n: int) -> Measurement:
        low, high = wilson(k, n)
        return Measurement(name="m", value=k / n, low=low, high=high, n=n)

    assert independent(measured(48, 80), measured(56, 70)) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def pairs_of(both: int, only_after: int, only_before: int, neither: int) -> tuple[list[bool], list[bool]]:
    cells = (
        [(True, True)] * both
        + [(False, True)] * only_after
        + [(True, False)] * only_before
        + [(False, False)] * neither
    )
    return [b for b, _ in cells], [a for _, a in cells]


def test_paired_interval_covers_at_the_stated_rate() -> None:
    """Exact coverage over all tables of 20 pairs, at a few true distributions: near 95 % on average."""
    n = 20
    coverages = []
    for p in ((0.6, 0.2, 0.1, 0.1), (0.4, 0.1, 0.1, 0.4), (0.25, 0.25, 0.25, 0.25), (0.7, 0.05, 0.2, 0.05)):
        truth, covered = p[1] - p[2], 0.0
        for a, b, c in itertools.product(range(n + 1), repeat=3):
            d = n - a - b - c
            if d < 0:
                continue
            chance = math.factorial(n) / math.prod(map(math.factorial, (a, b, c, d)))
            chance *= math.prod(x**k for x, k in zip(p, (a, b, c, d), strict=True))
            if chance < 1e-9:
                continue
            low, high = paired(*pairs_of(a, b, c, d))
            covered += chance * (low - 1e-12 <= truth <= high + 1e-12)
        coverages.append(covered)
    assert min(coverages) > 0.93
    assert sum(coverages) / len(coverages) > 0.945


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_paired_interval_holds_the_estimate_and_turns_with_its_sides(rows: list[tuple[bool, bool]]) -> None:
    before, after = [b for b, _ in rows], [a for _, a in rows]
    low, high = paired(before, after)
    estimate = (sum(after) - sum(before)) / len(rows)
    assert -1 <= low <= estimate + 1e-12
    assert estimate - 1e-12 <= high <= 1
    assert paired(after, before) == pytest.approx((-high, -low), abs=1e-12)


def test_the_same_samples_are_compared_in_pairs() -> None:
    """Ten of a hundred change, all in one direction: pairs see it, independent rates would not."""
    before, after = robust("h" * 50 + "b" * 50), robust("h" * 60 + "b" * 40)
    together = change(before, after, before.measurements[0], True)
    apart = change(before, after, before.measurements[0], False)
    assert together.better is True
    assert together.method.startswith("paired over 100")
    assert apart.better is None
    assert apart.method.startswith("independent")


def leak(check: str, auc: float) -> Attempt:
    m = Measurement(name="leakage.membership.auc", value=auc, low=auc - 0.01, high=auc + 0.01, unit="auc")
    return Attempt(check=check, threat="queries", state="assessed", measurements=[m])


def named(attempt: Attempt, check: str) -> Attempt:
    return attempt.model_copy(update={"check": check})


def test_the_headline_takes_all_attacks_together_and_the_worst_of_the_rest() -> None:
    """Two attacks that break different samples: 1 of 4 stays right before, 3 of 4 after; the clean rate stands once."""
    before = [
        robust("bhhh"),
        named(robust("hbbh"), "evasion.apgd"),
        leak("leakage.lira", 0.6),
        leak("leakage.rmia", 0.7),
    ]
    after = [
        robust("hhhh"),
        named(robust("hhbh"), "evasion.apgd"),
        leak("leakage.lira", 0.66),
        leak("leakage.rmia", 0.55),
    ]
    rows = compare(log(before), log(after)).headline
    assert [(r.name, r.before, r.after) for r in rows] == [
        ("evasion.clean_accuracy", 1.0, 1.0),
        ("evasion.robust_accuracy", 0.25, 0.75),
        ("leakage.membership.auc", 0.7, 0.66),
    ]
    assert rows[1].check == "all 2 attacks together"
    assert rows[1].method.startswith("paired over 4")
    assert rows[2].check == "leakage.rmia before, leakage.lira after"
    assert rows[2].better is True


def test_the_headline_leaves_out_what_one_run_lacks() -> None:
    lost = leak("leakage.lira", 0.6).model_copy(update={"state": "error", "measurements": []})
    assert compare(log([leak("leakage.lira", 0.6)]), log([lost])).headline == []


def test_controls_are_not_judged() -> None:
    assert set(GOOD_WHEN_HIGH).isdisjoint(CONTROLS)


def test_lines_that_are_the_same_in_both_are_drawn_once() -> None:
    def roc(power: float) -> Curve:
        x = [0.0, 0.5, 1.0]
        lines = {"attack": power, "blind baseline (inputs only)": power, "chance": 1.0}
        series = [Series(label=name, x=x, y=[v**p for v in x]) for name, p in lines.items()]
        return Curve(id="roc", title="ROC", x_label="", y_label="", series=series)

    a, b = (leak("leakage.lira", 0.6).model_copy(update={"curves": [roc(p)]}) for p in (0.2, 0.6))
    (together,) = overlay(a, b)
    assert [s.label for s in together.series] == ["before", "after", "chance"]
    assert [s.y[1] for s in together.series] == pytest.approx([0.5**0.2, 0.5**0.6, 0.5])
    assert overlay(a, a) == [], "what did not move needs no drawing"


def test_a_run_compared_with_itself_shows_no_change() -> None:
    one = log([robust("hhbbw")])
    found = compare(one, one)
    assert [c.difference for c in found.changes] == [0]
    assert [c.better for c in found.changes] == [None]
    assert found.caveats == []


def test_other_samples_are_said() -> None:
    found = compare(log([robust("hhbb")]), log([robust("hhhb")], data="e"))
    assert "different samples" in found.caveats[0]


@pytest.mark.parametrize(
    ("name", "rise_is_better"),
    [("leakage.membership.auc", False), ("tampering.flips_to_collapse", True), ("unheard.of", None)],
)
def test_direction(name: str, rise_is_better: bool | None) -> None:
    a = Attempt(check="c", state="assessed", measurements=[Measurement(name=name, value=0.5, low=0.49, high=0.51)])
    b = Attempt(check="c", state="assessed", measurements=[Measurement(name=name, value=0.9, low=0.89, high=0.91)])
    assert change(a, b, a.measurements[0], True).better is rise_is_better


def test_nothing_assessed_is_no_change_of_zero() -> None:
    a = Attempt(check="c", state="inconclusive", measurements=[Measurement(name="evasion.robust_accuracy", value=None)])
    got = change(a, robust("hh"), a.measurements[0], True)
    assert (got.before, got.difference, got.low, got.better) == (None, None, None, None)


# Gates -----------------------------------------------------------------------------------------------------------

FINDING = Finding(rule="evasion.not_robust", severity="high", score=8, claim="fooled", threat="linf:0.1")


@pytest.mark.parametrize(
    ("gate", "state"),
    [
        (Gate(metric="robust_accuracy", min=0.5), "pass"),
        (Gate(metric="evasion.robust_accuracy", min=0.51), "fail"),
        (Gate(metric="robust_accuracy", min=0.4, use="low"), "fail"),
        (Gate(metric="robust_accuracy", max=0.5, check="evasion"), "pass"),
        (Gate(metric="robust_accuracy", min=0.5, check="leakage"), "inconclusive"),
        (Gate(metric="robust_accuracy", min=0.5, threat="l2:1"), "inconclusive"),
    ],
)
def test_thresholds(gate: Gate, state: str) -> None:
    assert judge_gates(log([robust("hhbb")]), [gate], "never").state == state


def test_severity_and_suppression() -> None:
    from vauban.schema.log import Suppression

    accepted = FINDING.model_copy(
        update={"suppressed": Suppression(rule="x", reason="r", owner="o", until="2099-01-01")}
    )
    assert judge_gates(log([], [FINDING]), [], "high").state == "fail"
    assert judge_gates(log([], [FINDING]), [], "critical").state == "pass"
    assert judge_gates(log([], [FINDING]), [], "never").state == "pass"
    assert judge_gates(log([], [accepted]), [], "high").state == "pass"


def test_an_inconclusive_run_passes_no_gate() -> None:
    assert judge_gates(log([], state="inconclusive"), [], "high").state == "inconclusive"


def test_baseline_tells_new_worse_and_lost() -> None:
    good, bad = log([robust("h" * 90 + "b" * 10)]), log([robust("h" * 40 + "b" * 60)])
    assert judge_gates(good, [], "high", good).state == "pass"
    assert judge_gates(bad, [], "high", good).state == "fail"
    assert judge_gates(log([robust("h" * 9)], [FINDING]), [], "high", log([robust("h" * 9)])).state == "fail"
    assert judge_gates(log([robust("h" * 9)], [FINDING]), [], "high", log([robust("h" * 9)], [FINDING])).state == "pass"
    assert judge_gates(log([]), [], "high", good).state == "inconclusive"
