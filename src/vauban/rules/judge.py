"""Attempts to findings, and findings to a verdict. Fails closed: what was not examined is never a pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date
from typing import Literal

from vauban.rules import suppress
from vauban.rules.base import Context as Context
from vauban.rules.catalog import RULES
from vauban.schema.log import SEVERITIES, Attempt, Doubt, Finding, Severity, State, Suppression, Verdict

STATES: tuple[State, ...] = ("assessed", "inconclusive", "error", "skipped", "not_applicable")
ATTEMPTED = frozenset({"assessed", "inconclusive", "error"})
UNTRUSTED = "evasion.untrustworthy"
USELESS = "the model is no better than always giving the same answer, so that there is nothing to protect"


def judge(
    attempts: Sequence[Attempt],
    context: Context,
    suppressions: Sequence[Suppression] = (),
    today: date | None = None,
) -> list[Finding]:
    """Ask every rule: findings, worst first. Accepted ones stay, with `suppressed` set; `today` decides which
    suppressions still hold. What `suppress.notes` says of them belongs into the log's notes."""
    found: list[Finding] = [f for rule in RULES.ids() for f in RULES.load(rule)()(attempts, context)]
    found.sort(key=lambda f: (SEVERITIES.index(f.severity), -f.score, f.rule, f.threat or ""))
    return suppress.apply(_one_each(found), suppressions, today or date.today())


def _one_each(found: Sequence[Finding]) -> list[Finding]:
    """One finding a rule and threat: the worst, which takes over what the others rest on."""
    kept: dict[tuple[str, str | None], Finding] = {}
    for finding in found:
        first = kept.setdefault((finding.rule, finding.threat), finding)
        known = first.evidence.attempts
        attempts = [*known, *(i for i in finding.evidence.attempts if i not in known)]
        evidence = first.evidence.model_copy(update={"attempts": attempts})
        kept[finding.rule, finding.threat] = first.model_copy(update={"evidence": evidence})
    return list(kept.values())


def counts(attempts: Sequence[Attempt]) -> dict[State, int]:
    """How many attempts ended in each state, all five states named."""
    seen = Counter(a.state for a in attempts)
    return {state: seen[state] for state in STATES}


def verdict(
    attempts: Sequence[Attempt],
    findings: Sequence[Finding],
    fail_on: Severity = "high",
    preflight: Sequence[Doubt] = (),
) -> Verdict:
    """Fail: an unaccepted finding at or above `fail_on`. Inconclusive: too little was examined, a number that cannot be
    trusted, or a model that is right no more often than a constant answer. Pass: none of these. A finding outweighs
    gaps: what is broken is broken."""
    open_ = [f for f in findings if f.suppressed is None]
    blocking = [f for f in open_ if SEVERITIES.index(f.severity) <= SEVERITIES.index(fail_on)]
    gaps = [*(USELESS for d in preflight if d.id == "clean_accuracy" and d.verdict == "fail"), *_gaps(attempts, open_)]
    seen = counts(attempts)
    assessed = seen["assessed"]
    state: Literal["pass", "fail", "inconclusive"] = "fail" if blocking else "inconclusive" if gaps else "pass"
    sentences = {
        "fail": _fail_sentence(blocking, gaps),
        "inconclusive": f"No verdict: {gaps[0]}." if gaps else "",
        "pass": _pass_sentence(assessed, len(open_), fail_on),
    }
    return Verdict(
        state=state,
        assessed=assessed,
        not_assessed=len(attempts) - assessed,
        sentence=sentences[state],
        reasons=[*(f"{f.severity}: {f.claim}" for f in blocking), *gaps, *_beyond_reach(attempts)],
    )


def _fail_sentence(blocking: Sequence[Finding], gaps: Sequence[str]) -> str:
    if not blocking:
        return ""
    more = len(blocking) - 1
    tails = ("", " One more finding fails this audit too.", f" {more} more findings fail this audit too.")
    gap = f" And {gaps[0]}." if gaps else ""
    return f"{blocking[0].claim}{tails[min(more, 2)]}{gap}"


def _pass_sentence(assessed: int, findings: int, fail_on: Severity) -> str:
    lesser = f", and {findings} of less weight" if findings else ""
    checks = "The one check" if assessed == 1 else f"The {assessed} checks"
    return (
        f"{checks} carried through found no weakness of severity {fail_on} or above{lesser}. "
        "That holds for these attacks at this cost, and for no others."
    )


def _gaps(attempts: Sequence[Attempt], findings: Sequence[Finding]) -> list[str]:
    """Why no pass can be given: nothing examined, half of it failed, a family with none, or an untrusted number."""
    tried = [a for a in attempts if a.state in ATTEMPTED]
    done = [a for a in tried if a.state == "assessed"]
    gaps = []
    if not done:
        cut = any(a.state == "inconclusive" and a.outcomes for a in tried)
        gaps.append("no check could be carried through in the time given" if cut else "nothing could be examined")
    elif 2 * len(done) < len(tried):
        gaps.append(f"only {len(done)} of {len(tried)} checks could be carried through")
    families = {a.check.partition(".")[0] for a in tried} - {a.check.partition(".")[0] for a in done}
    gaps += [f"no check on {family} could be carried through" for family in sorted(families) if done]
    if any(f.rule == UNTRUSTED for f in findings):
        gaps.append("the measured robustness cannot be trusted")
    return gaps


def _beyond_reach(attempts: Sequence[Attempt]) -> list[str]:
    """Families of which every check was skipped or does not apply: said, but no gap of this audit."""
    states: dict[str, set[State]] = {}
    for attempt in attempts:
        states.setdefault(attempt.check.partition(".")[0], set()).add(attempt.state)
    return [f"{family} was not examined" for family, seen in states.items() if not seen & ATTEMPTED]
