"""What a rule is, and what it may know besides the attempts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from scipy.stats import beta

from vauban.rules.score import Score
from vauban.rules.standards import standards
from vauban.schema.cards import RuleCard
from vauban.schema.log import Attempt, DataInfo, Evidence, Finding, Measurement, TargetInfo
from vauban.schema.threat import NORMS

Numbered = tuple[int, Attempt]
"""An attempt with its place in the log."""

NOUNS = {"image": "pictures", "tabular": "rows", "text": "texts", "audio": "recordings"}
BLACK_BOX = frozenset({"labels", "scores", "data_read"})


@dataclass(frozen=True, kw_only=True)
class Context:
    """What was audited, in the words of the command line, so that a finding can say how to see it again."""

    target: TargetInfo
    data: DataInfo
    target_spec: str = ""
    data_spec: str = ""
    defence: str = ""
    """Set where the audited model is `target_spec` after this defence: then both are to be made again."""
    seed: int = 0
    options: Sequence[str] = ()
    """Further words that the command needs, e.g. `("--factory", "model.py:build")`."""
    needs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Access that each attack needs, by id, where the caller knows better than the catalogue."""

    @property
    def noun(self) -> str:
        """What the samples are called."""
        return NOUNS.get(self.target.domain, "samples")

    def access(self, check: str) -> frozenset[str]:
        """What the attack behind a check had to see; everything where nobody knows the attack."""
        if check in self.needs:
            return frozenset(self.needs[check])
        from vauban.attacks.catalog import ATTACKS  # tensors are loaded only where the caller left this open

        if check not in ATTACKS:
            return frozenset({"unknown"})
        card = ATTACKS.load(check).card
        return frozenset((card.needs | card.takes).words())

    def black_box(self, check: str) -> bool:
        return self.access(check) <= BLACK_BOX

    def filled(self, remedy: str, threat: str | None) -> str:
        """A remedy with the audited names put into its commands."""
        names = {"TARGET": self.target_spec or self.target.id, "DATA": self.data_spec or self.data.id}
        names["THREAT"] = threat or "linf:0.1"
        return re.sub(r"\b(TARGET|DATA|THREAT)\b", lambda m: shlex.quote(names[m.group()]), remedy)

    def reproduce(self, attempt: Attempt) -> str:
        """The command that makes this attempt again."""
        target = self.target_spec or self.target.id
        words = ["vauban", "attack", attempt.check, target]
        if self.defence:
            words = ["vauban", "harden", target, "--with", self.defence, "--include", attempt.check]
        words += ["--data", self.data_spec or self.data.id]
        if attempt.threat is not None and ":" in attempt.threat:
            words += ["--threat", attempt.threat]
        words += [*self.options, "--samples", str(self.data.samples), "--seed", str(self.seed)]
        words += ["--out", f"runs/{attempt.check.replace('.', '-')}"]
        return shlex.join(words)


class Rule(Protocol):
    """Looks at all attempts and says what should be dealt with. Made without arguments; keeps nothing."""

    card: ClassVar[RuleCard]

    def __call__(self, attempts: Sequence[Attempt], context: Context) -> Iterable[Finding]: ...


def assessed(attempts: Sequence[Attempt], family: str) -> list[Numbered]:
    """The attempts of a family that were carried through: the only ones that a rule may judge."""
    return [(i, a) for i, a in enumerate(attempts) if a.state == "assessed" and a.check.startswith(f"{family}.")]


def measured(found: Sequence[Numbered], name: str) -> list[tuple[int, Attempt, Measurement]]:
    """Those that hold a number of that name; a measurement whose value is None says nothing."""
    rows = ((i, a, a.measurement(name)) for i, a in found)
    return [(i, a, m) for i, a, m in rows if m is not None and m.value is not None]


def low_end(m: Measurement) -> float:
    """The lower end of the interval, or the value where there is none."""
    return m.low if m.low is not None else (m.value or 0.0)


def high_end(m: Measurement) -> float:
    return m.high if m.high is not None else (m.value or 0.0)


def by_threat(found: Sequence[Numbered]) -> dict[str | None, list[Numbered]]:
    """Grouped by threat, in the order of first appearance."""
    groups: dict[str | None, list[Numbered]] = {}
    for number, attempt in found:
        groups.setdefault(attempt.threat, []).append((number, attempt))
    return groups


def within(threat: str | None, found: Sequence[Numbered]) -> str:
    """The room in words: `linf:0.1`, and what a radius is counted in where its space does not say so."""
    units = (m.unit for _, a in found if (m := a.measurement("evasion.median_distance")) is not None)
    unit = next(units, "")
    return f"{threat} ({unit})" if unit and unit not in NORMS else str(threat)


def interval(successes: int, n: int) -> tuple[float, float]:
    """Clopper-Pearson 95 % interval of a rate, `n > 0`."""
    low = 0.0 if successes == 0 else float(beta.ppf(0.025, successes, n - successes + 1))
    high = 1.0 if successes == n else float(beta.ppf(0.975, successes + 1, n - successes))
    return low, high


def rate(name: str, successes: int, n: int) -> Measurement:
    if n == 0:
        return Measurement(name=name, value=None, n=0, method="nothing assessed")
    low, high = interval(successes, n)
    return Measurement(name=name, value=successes / n, low=low, high=high, n=n, method="Clopper-Pearson 95 %")


def percent(value: float) -> str:
    """A share for people: `3.2 %`, `97 %`."""
    digits = 1 if 0 < value < 0.0995 or 0.99 < value < 1 else 0
    return f"{100 * value:.{digits}f}\u00a0%"


def quantity(value: float) -> str:
    """A count for people: `1,234`."""
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.3g}"


def make(
    rule: Rule,
    context: Context,
    score: Score,
    claim: str,
    found: Sequence[Numbered],
    measurements: Sequence[Measurement],
    threat: str | None = None,
) -> Finding:
    """A finding of that rule; `found[0]` is the attempt to run again."""
    return Finding(
        rule=rule.card.id,
        severity=score.severity,
        score=score.value,
        claim=claim,
        name=rule.card.name,
        meaning=rule.card.meaning,
        measured=rule.card.measured,
        false_positives=rule.card.false_positives,
        threat=threat,
        evidence=Evidence(attempts=[i for i, _ in found], measurements=list(measurements)),
        standards=standards(rule.card.standards),
        remedies=[context.filled(remedy, threat) for remedy in rule.card.remedies],
        reproduce=context.reproduce(found[0][1]),
        score_inputs=score.inputs,
    )
