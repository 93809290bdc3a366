"""Rules fire on weaknesses, stay silent on the harmless and the unexamined, and the verdict fails closed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import date
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vauban.rules import suppress
from vauban.rules.base import Context, interval
from vauban.rules.catalog import RULES
from vauban.rules.evasion.union import union
from vauban.rules.judge import judge, verdict
from vauban.rules.score import BANDS, Score, cheap, scale
from vauban.schema.errors import BadOption, UnknownName
from vauban.schema.log import (
    SEVERITIES,
    Attempt,
    AuditLog,
    DataInfo,
    Doubt,
    Finding,
    Measurement,
    Suppression,
    TargetInfo,
)

TODAY = date(2026, 11, 20)
OUTCOMES = st.text(alphabet="wbhcu", min_size=1, max_size=12)


def measurement(name: str, value: float | None, low: float | None = None, high: float | None = None) -> Measurement:
    return Measurement(name=name, value=value, low=low, high=high)


def attempt(check: str, *numbers: Measurement, state: str = "assessed", **more: Any) -> Attempt:
    return Attempt(check=check, threat=more.pop("threat", "linf:0.1"), state=state, measurements=list(numbers), **more)


@pytest.fixture
def context(logs: ModuleType) -> Context:
    target = TargetInfo(id="m.pt2", sha256="0", domain="image", offers=["labels"], classes=10)
    data = DataInfo(id="d.npz", sha256="0", train=1000, test=100, shape=[4], samples=100)
    return Context(target=target, data=data, needs=logs.NEEDS)


def fired(attempts: list[Attempt], context: Context) -> dict[str, Finding]:
    return {f.rule: f for f in judge(attempts, context, today=TODAY)}


def test_every_rule_but_the_doubtful_fires_on_the_rich_log(log: AuditLog) -> None:
    assert {f.rule for f in log.findings} == set(RULES.ids()) - {"evasion.untrustworthy"}


@pytest.mark.parametrize("state", ["inconclusive", "error", "skipped", "not_applicable"])
def test_nothing_unexamined_gives_a_finding(log: AuditLog, context: Context, state: str) -> None:
    attempts = [a.model_copy(update={"state": state, "outcomes": ""}) for a in log.attempts]
    assert judge(attempts, context, today=TODAY) == []


def test_a_number_that_is_none_gives_nothing(log: AuditLog, context: Context) -> None:
    def emptied(a: Attempt) -> Attempt:
        blank = [m.model_copy(update={"value": None, "low": None, "high": None}) for m in a.measurements]
        return a.model_copy(update={"measurements": blank, "outcomes": "", "facts": {}, "doubts": []})

    assert judge([emptied(a) for a in log.attempts], context, today=TODAY) == []


@pytest.mark.parametrize(
    "harmless",
    [
        attempt("evasion.apgd", outcomes="hhhhwwcc"),
        attempt("leakage.lira", measurement("leakage.membership.auc", 0.52, 0.48, 0.56)),
        attempt(
            "leakage.inversion",
            measurement("leakage.reconstruction.psnr", 14.0, 12.0, 16.0),
            measurement("leakage.reconstruction.blind_psnr", 12.5),
        ),
        attempt("extraction.exact", measurement("extraction.max_parameter_error", 0.4)),
        attempt("extraction.substitute", measurement("extraction.agreement", 0.63, 0.55, 0.71)),
        attempt(
            "poisoning.badnets",
            measurement("poisoning.attack_success_rate", 0.14, 0.09, 0.2),
            facts={"success_without_poison": 0.1},
        ),
        attempt(
            "poisoning.label_flip",
            measurement("poisoning.clean_accuracy", 0.95, 0.92, 0.98),
            facts={"clean_twin_accuracy": 0.97},
        ),
        attempt("poisoning.data_audit", facts={"suspicious_count": 22, "expected_rate_at_most": 0.02}),
        attempt("tampering.bit_flip", measurement("tampering.flips_to_collapse", 50_000.0)),
    ],
    ids=lambda a: a.check,
)
def test_an_interval_that_holds_the_harmless_value_gives_nothing(harmless: Attempt, context: Context) -> None:
    assert fired([harmless], context) == {}


def test_the_worst_of_all_attacks_counts(context: Context) -> None:
    """Two attacks that break different samples break them all: 4 right, 2 + 2 broken."""
    finding = fired([attempt("evasion.apgd", outcomes="wbbhh"), attempt("evasion.pgd", outcomes="whhbb")], context)[
        "evasion.not_robust"
    ]
    before, after, broken = finding.evidence.measurements
    assert (before.value, after.value, broken.value) == (0.8, 0.0, 1.0)
    assert broken.low == pytest.approx(0.025 ** (1 / 4))
    assert "4 of 4 pictures" in finding.claim


def test_each_threat_is_judged_by_itself(context: Context) -> None:
    attempts = [attempt("evasion.apgd", outcomes="bh"), attempt("evasion.apgd", outcomes="bb", threat="l2:1")]
    threats = {f.threat for f in judge(attempts, context, today=TODAY) if f.rule == "evasion.not_robust"}
    assert threats == {"linf:0.1", "l2:1"}


@settings(deadline=None, max_examples=30)
@given(st.lists(OUTCOMES, min_size=1, max_size=4))
def test_union_is_never_kinder_than_any_attack(rows: list[str]) -> None:
    worst = union([(i, attempt("evasion.x", outcomes=row)) for i, row in enumerate(rows)]).outcomes
    assert len(worst) == max(map(len, rows))
    for place, letter in enumerate(worst):
        column = {row[place] for row in rows if place < len(row)}
        want = next(x for x in "wbch" + "u" if x in (column or {"u"}))
        assert letter == want


@given(st.integers(1, 400))
def test_interval_against_its_closed_form(n: int) -> None:
    """With no success, and with nothing but successes, the exact interval has a formula."""
    assert interval(0, n) == pytest.approx((0.0, 1 - 0.025 ** (1 / n)))
    assert interval(n, n) == pytest.approx((0.025 ** (1 / n), 1.0))


def test_gradient_attacks_are_no_black_box(context: Context) -> None:
    assert "evasion.black_box_breaks" not in fired([attempt("evasion.apgd", outcomes="bbbb")], context)
    assert "evasion.black_box_breaks" in fired([attempt("evasion.square", outcomes="bbbb")], context)
    assert "evasion.black_box_breaks" not in fired([attempt("evasion.of_a_stranger", outcomes="bbbb")], context)


def test_universal_is_compared_with_noise(context: Context) -> None:
    one = attempt("evasion.universal", outcomes="b" * 30 + "h" * 70)
    quiet, loud = (attempt("evasion.noise", outcomes="b" * k + "h" * (100 - k)) for k in (1, 29))
    assert "evasion.one_change_fits_all" in fired([one, quiet], context)
    assert "evasion.one_change_fits_all" not in fired([one, loud], context)


def test_doubts_refuse_the_word_robust(context: Context) -> None:
    doubt = Doubt(id="x", verdict="fail", text="the gradient is zero on 80 % of the samples")
    attempts = [attempt("evasion.apgd", outcomes="hhhh", doubts=[doubt])]
    findings = judge(attempts, context, today=TODAY)
    assert [f.rule for f in findings] == ["evasion.untrustworthy"]
    assert "the gradient is zero" in findings[0].claim
    assert verdict(attempts, findings).state == "inconclusive"


def test_a_leak_that_the_blind_baseline_explains_is_a_note(context: Context) -> None:
    auc = measurement("leakage.membership.auc", 0.8, 0.76, 0.84)
    blind = measurement("leakage.blind_auc", 0.79, 0.75, 0.83)
    assert fired([attempt("leakage.lira", auc, blind)], context)["leakage.membership"].severity == "info"
    assert fired([attempt("leakage.lira", auc)], context)["leakage.membership"].severity == "high"


def test_a_tangent_of_a_model_that_is_not_linear_is_no_copy(context: Context) -> None:
    """Equation solving also reports how often its formula agrees: that is neither exact nor a trained copy."""
    agreement = measurement("extraction.agreement", 0.95, 0.93, 0.97)
    tangent = attempt("extraction.exact", agreement, facts={"linear": False, "deviation": 0.8})
    assert fired([tangent], context) == {}
    liar = attempt("extraction.exact", measurement("extraction.max_parameter_error", 0.0), facts={"linear": False})
    assert fired([liar], context) == {}
    assert set(fired([attempt("extraction.substitute", agreement)], context)) == {"extraction.substitute_copy"}


def test_a_thief_with_rows_of_his_own_scores_below_one_who_needs_none(context: Context) -> None:
    agreement = measurement("extraction.agreement", 0.95, 0.93, 0.97)
    needs = {"extraction.substitute": ("labels",)}
    blind = Context(target=context.target, data=context.data, needs=needs)
    with_rows, without = (
        fired([attempt("extraction.substitute", agreement, facts={"rows": rows})], blind)["extraction.substitute_copy"]
        for rows in (1000, 0)
    )
    assert (with_rows.score_inputs["knowledge"], without.score_inputs["knowledge"]) == (0.9, 1.0)
    assert with_rows.score < without.score


def test_one_finding_a_rule_and_threat(context: Context) -> None:
    flips = [attempt("tampering.bit_flip", measurement("tampering.flips_to_collapse", v)) for v in (900.0, 12.0)]
    found = judge(flips, context, today=TODAY)
    assert [f.rule for f in found] == ["tampering.bit_flips"]
    assert found[0].claim.startswith("12 ")
    assert found[0].evidence.attempts == [1, 0]
    assert found[0].reproduce


def test_the_command_names_target_data_and_threat(context: Context) -> None:
    finding = fired([attempt("evasion.apgd", outcomes="bbbb")], context)["evasion.not_robust"]
    assert finding.reproduce.startswith("vauban attack evasion.apgd m.pt2 --data d.npz --threat linf:0.1")
    assert any("vauban harden m.pt2 --with train.pgd --data d.npz" in r for r in finding.remedies)


def test_a_defended_model_is_made_again_by_the_command(context: Context) -> None:
    """`m.pt2+train.pgd` is a name for people: no file is called so."""
    finding = fired(
        [attempt("evasion.apgd", outcomes="bbbb")], replace(context, defence="train.pgd", target_spec="m.pt2")
    )["evasion.not_robust"]
    assert finding.reproduce.startswith("vauban harden m.pt2 --with train.pgd --include evasion.apgd --data d.npz")


@given(st.floats(-1, 2), st.floats(-1, 2), st.floats(-1, 2))
def test_score_stays_in_range_and_in_its_band(impact: float, knowledge: float, cost: float) -> None:
    score = Score(impact, knowledge, cost)
    assert 0.1 <= score.value <= 10
    floor = {name: edge for edge, name in BANDS}[score.severity]
    assert score.value >= floor


@given(st.floats(1, 1e9), st.floats(1, 1e9))
def test_more_cost_never_raises_the_score(a: float, b: float) -> None:
    assert cheap(max(a, b), 1000) <= cheap(min(a, b), 1000) <= 1.0


@pytest.mark.parametrize(("value", "want"), [(0.5, 0), (0.65, 0.5), (0.8, 1), (0.9, 1), (0.2, 0)])
def test_scale(value: float, want: float) -> None:
    assert scale(value, 0.5, 0.8) == pytest.approx(want)


def test_findings_come_worst_first(log: AuditLog) -> None:
    order = [SEVERITIES.index(f.severity) for f in log.findings]
    assert order == sorted(order)


# Verdicts


def test_nothing_examined_is_inconclusive() -> None:
    assert verdict([], []).state == "inconclusive"
    assert verdict([attempt("evasion.fgsm", state="skipped")], []).state == "inconclusive"


def test_a_model_at_chance_gets_no_pass() -> None:
    attempts = [attempt("evasion.pgd"), attempt("leakage.lira")]
    useless = Doubt(id="clean_accuracy", verdict="fail", text="Clean accuracy is 33 %.")
    assert verdict(attempts, []).state == "pass"
    judged = verdict(attempts, [], preflight=[useless])
    assert judged.state == "inconclusive"
    assert "same answer" in judged.sentence


def test_less_than_half_is_inconclusive_and_half_is_not() -> None:
    done, broken = attempt("evasion.apgd", outcomes="h"), attempt("evasion.pgd", state="error")
    assert verdict([done, broken, broken], []).state == "inconclusive"
    assert verdict([done, broken], []).state == "pass"


def test_a_family_in_which_everything_failed_is_a_gap() -> None:
    done, lost = attempt("evasion.apgd", outcomes="h"), attempt("leakage.lira", state="error")
    ruling = verdict([done, done, lost], [])
    assert ruling.state == "inconclusive"
    assert "leakage" in ruling.sentence


def test_a_family_out_of_reach_is_named_but_no_gap() -> None:
    ruling = verdict([attempt("evasion.apgd", outcomes="h"), attempt("tampering.bit_flip", state="skipped")], [])
    assert ruling.state == "pass"
    assert ruling.reasons == ["tampering was not examined"]
    assert (ruling.assessed, ruling.not_assessed) == (1, 1)


def test_a_finding_outweighs_gaps(log: AuditLog) -> None:
    broken = [a.model_copy(update={"state": "error"}) for a in log.attempts]
    ruling = verdict(broken, log.findings)
    assert ruling.state == "fail"
    assert ruling.sentence.endswith("And nothing could be examined.")
    assert "nothing could be examined" in ruling.reasons


def test_fail_on_sets_the_bar(log: AuditLog) -> None:
    low = [f for f in log.findings if f.severity == "low"]
    assert verdict(log.attempts, low).state == "pass"
    assert verdict(log.attempts, low, fail_on="low").state == "fail"


def test_counts_of_the_rich_log(log: AuditLog) -> None:
    seen = Counter(a.state for a in log.attempts)
    assert log.verdict.assessed == seen["assessed"]
    assert log.verdict.assessed + log.verdict.not_assessed == len(log.attempts)


# Suppressions


def test_what_was_broken_before_the_time_was_up_counts_and_what_was_not_is_no_claim(context: Context) -> None:
    cut = attempt("evasion.cascade", state="inconclusive", outcomes="wbbbbbuuuu")
    finding = fired([cut], context)["evasion.not_robust"]
    assert finding.claim.startswith("5 of 9 pictures")
    assert "to at most 40" in finding.claim
    assert "4 were undecided when the time was up" in finding.claim
    state = verdict([cut], [finding], fail_on="high", preflight=[])
    assert state.state == ("fail" if finding.severity in ("critical", "high") else "inconclusive")
    assert "no check could be carried through in the time given" in state.reasons
    held = attempt("evasion.cascade", state="inconclusive", outcomes="wuuuuuuuuu")
    assert fired([held], context) == {}
    assert "evasion.black_box_breaks" not in fired([cut], context)


ROW = {"rule": "evasion.not_robust", "reason": "toy", "owner": "me@example.org", "until": "2026-12-31"}


def test_a_suppressed_finding_stays_and_no_longer_fails(context: Context) -> None:
    attempts = [attempt("evasion.apgd", outcomes="b" * 100)]
    findings = judge(attempts, context, suppress.read([ROW]), TODAY)
    assert [f.rule for f in findings] == ["evasion.not_robust"]
    assert findings[0].suppressed is not None
    assert verdict(attempts, findings, "low").state == "pass"


@pytest.mark.parametrize(("until", "holds"), [("2026-11-20", True), ("2026-11-19", False)])
def test_an_expired_suppression_counts_no_more(context: Context, until: str, holds: bool) -> None:
    rows = suppress.read([{**ROW, "until": until}])
    findings = judge([attempt("evasion.apgd", outcomes="bbbb")], context, rows, TODAY)
    assert (findings[0].suppressed is not None) is holds
    assert any("ran out" in note for note in suppress.notes(findings, rows, TODAY)) is not holds


def test_a_suppression_of_one_threat_leaves_the_others(context: Context) -> None:
    attempts = [attempt("evasion.apgd", outcomes="bbbb"), attempt("evasion.apgd", outcomes="bbbb", threat="l2:1")]
    findings = judge(attempts, context, suppress.read([{**ROW, "threat": "l2:1"}]), TODAY)
    assert {f.threat: f.suppressed is not None for f in findings} == {"linf:0.1": False, "l2:1": True}


def test_an_unused_suppression_is_named() -> None:
    note = suppress.notes([], [Suppression(**ROW)], TODAY)
    assert len(note) == 1
    assert "met no finding" in note[0]


@pytest.mark.parametrize("key", ["rule", "reason", "owner", "until"])
def test_a_suppression_lacking_something_says_what(key: str) -> None:
    with pytest.raises(BadOption, match=f"lacks {key}"):
        suppress.read([{**ROW, key: " "}])


def test_other_bad_suppressions() -> None:
    with pytest.raises(BadOption, match="no date"):
        suppress.read([{**ROW, "until": "soon"}])
    with pytest.raises(BadOption, match="unknown key because"):
        suppress.read([{**ROW, "because": "x"}])
    with pytest.raises(UnknownName, match=r"did you mean evasion\.not_robust"):
        suppress.read([{**ROW, "rule": "evasion.not_robst"}])
