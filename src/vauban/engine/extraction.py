"""Examine a theft: how like the copy is to the model, and what it cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vauban.attacks.catalog import ATTACKS
from vauban.core.attack import Replica, TheftScene
from vauban.core.registry import configure
from vauban.core.rng import Rng
from vauban.core.target import Domain, Outputs, Target
from vauban.engine.case import Case, Check, Outcome
from vauban.engine.measure import bootstrap, rate
from vauban.parts.linear_recovery import Affine, derivative, largest_difference, log_ratios
from vauban.parts.membership import answers
from vauban.schema.access import Access
from vauban.schema.errors import Limit
from vauban.schema.log import Attempt, Cost, Curve, Measurement, Series


@dataclass
class Meter:
    """The model behind a query interface: counts, limits, and answers in float64 or, where only labels are granted, in labels."""

    target: Target
    kind: str
    allowed: int
    spent: int = 0
    distinct: set[int] = field(default_factory=set)

    def __call__(self, x: Tensor) -> Tensor:
        """Scores `[m, k]` or values `[m]` float64, or labels `[m]`; raises Limit, answering nothing, beyond the budget."""
        if self.spent + len(x) > self.allowed:
            raise Limit(f"{len(x)} more queries were asked for, {self.allowed - self.spent} of {self.allowed} are left")
        self.spent += len(x)
        self.distinct.update(hash(row.cpu().numpy().tobytes()) for row in x)
        outputs = answers(self.target, x)
        return outputs.labels if self.kind == "labels" else outputs.values


def examine(check: Check, case: Case) -> Outcome:
    """Steal the model, then compare copy and model on test rows that the thief did not have.

    The thief's own rows are the training rows where the threat grants them (DATA_READ), otherwise the first half of
    the test rows, which is then left out of the measurement.
    """
    started = time.monotonic()
    cls = ATTACKS.load(check.id)
    settings = {**cls.profiles.get(case.profile, {}), **check.settings}
    attack = configure(cls, settings)
    pool, x, y = _rows(check, case)
    budget = check.threat.budget.queries
    allowed = sys.maxsize if budget is None else budget
    meter = Meter(case.target, _kind(check, case, x), allowed)
    scene = TheftScene(
        query=meter,
        domain=case.domain,
        shape=case.data.shape,
        queries=allowed,
        pool=pool,
        labels_only=meter.kind == "labels",
        kind=meter.kind,
    )
    case.progress(0, 1, "asking and learning")
    replica = attack(scene, Rng(case.seed_for(check.id, check.threat.id), len(pool)))
    attempt = _attempt(check, case, replica, x, y)
    cost = Cost(queries=meter.spent, seconds=time.monotonic() - started)
    facts = {**attempt.facts, "distinct_queries": len(meter.distinct), "measured_rows": len(x)}
    return Outcome(attempt.model_copy(update={"cost": cost, "params": settings, "facts": facts}))


def _rows(check: Check, case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """The thief's inputs, and the inputs and labels on which the copy is measured."""
    data = case.data
    if data.has_train and Access.DATA_READ in check.threat.access:
        return data.x_train, data.x_test, data.y_test
    half = max(1, len(data.x_test) // 2)
    return data.x_test[:half], data.x_test[half:], data.y_test[half:]


def _kind(check: Check, case: Case, x: Tensor) -> str:
    """What the thief is shown: labels where no scores are granted, else what the model gives, at most what is granted."""
    outputs = answers(case.target, case.data.x_test[:1])
    if outputs.kind == "values" or Access.SCORES in check.threat.access & case.target.offers:
        return outputs.kind
    return "labels"


def _attempt(check: Check, case: Case, replica: Replica, x: Tensor, y: Tensor) -> Attempt:
    base = Attempt(check=check.id, threat=check.threat.id, state="assessed", facts=dict(replica.facts))
    if len(x) == 0:
        return base.model_copy(update={"state": "inconclusive", "reason": "no test rows are left to compare on"})
    truth = answers(case.target, x)
    compare = _compare_values if truth.kind == "values" else _compare_classes
    measurements = compare(truth, replica.predict(x), y, case)
    spent = Measurement(
        name="extraction.queries", value=float(replica.queries), unit="queries", method="counted, without verification"
    )
    exact = _parameters(replica, case, truth.kind)
    curves = [_curve(check.id, replica, truth, x, case)] if replica.steps else []
    return base.model_copy(
        update={
            "measurements": [*measurements, spent, *exact],
            "curves": curves,
            "caveats": _caveats(replica, exact),
        }
    )


def _caveats(replica: Replica, exact: list[Measurement]) -> list[str]:
    if replica.facts.get("linear") is False:
        error = replica.facts.get("deviation", float("nan"))
        return [
            f"the model is not linear (error {error:.2g} on fresh points): the copy is a tangent, no parameters were recovered"
        ]
    if exact and exact[0].value is None:
        return ["the recovered parameters could not be compared: the target's own are not readable"]
    return []


def _compare_classes(truth: Outputs, copy: Tensor, y: Tensor, case: Case) -> list[Measurement]:
    guessed = _labels(copy)
    return [
        rate("extraction.agreement", int((guessed == truth.labels).sum()), len(y)),
        rate("extraction.accuracy", int((guessed == y).sum()), len(y)),
        rate("extraction.target_accuracy", int((truth.labels == y).sum()), len(y)),
    ]


def _labels(copy: Tensor) -> Tensor:
    return (copy.argmax(1) if copy.dim() == 2 else copy).cpu()


def _compare_values(truth: Outputs, copy: Tensor, y: Tensor, case: Case) -> list[Measurement]:
    """For a regression: share of variance explained (R^2), of the model's values and of the true ones."""
    guessed = copy.reshape(-1).to(torch.float64).cpu()
    pairs = (("agreement", truth.values), ("accuracy", y.to(torch.float64)))
    return [_explained(f"extraction.{name}", values.numpy(), guessed.numpy(), case) for name, values in pairs]


def _explained(name: str, truth: np.ndarray, guessed: np.ndarray, case: Case) -> Measurement:
    def explained(rows: np.ndarray) -> float:
        spread = float(np.var(truth[rows]))
        return 1 - float(np.mean((truth[rows] - guessed[rows]) ** 2)) / spread if spread > 0 else float("nan")

    value = explained(np.arange(len(truth)))
    low, high = bootstrap(explained, len(truth), case.seed_for(name))
    known = np.isfinite([value, low, high]).all()
    return Measurement(
        name=name,
        value=value if known else None,
        low=low if known else None,
        high=high if known else None,
        n=len(truth),
        unit="R2",
        method="variance explained, bootstrap 95 %",
    )


def _parameters(replica: Replica, case: Case, kind: str) -> list[Measurement]:
    """Largest error of recovered parameters against the model's own: the derivative of its (log-ratio) scores."""
    if replica.parameters is None:
        return []
    name, unit = "extraction.max_parameter_error", "absolute"
    if Access.GRADIENTS not in case.target.offers:
        return [Measurement(name=name, value=None, unit=unit, method="the target's parameters are not readable")]
    stolen = Affine(replica.parameters["weight"], replica.parameters["bias"])
    true = derivative(_affine_scores(case.target, kind), _middle(case.domain, case.data.shape))
    error = largest_difference(stolen, true, shift=kind != "values")
    return [Measurement(name=name, value=error, unit=unit, method="against the model's own, up to a softmax shift")]


def _affine_scores(target: Target, kind: str) -> Callable[[Tensor], Tensor]:
    """The model's answers in float64, in the form that is affine in x for a linear model: `[m, k]`."""

    def scores(x: Tensor) -> Tensor:
        values = target.forward(x).values.to(torch.float64)
        if kind == "probabilities":
            return log_ratios(values)
        return values.reshape(len(x), -1)

    return scores


def _middle(domain: Domain, shape: tuple[int, ...]) -> Tensor:
    low, high = (torch.as_tensor(v, dtype=torch.float64) for v in (domain.low, domain.high))
    return ((low + high) / 2).expand(1, *shape).clone()


def _curve(check: str, replica: Replica, truth: Outputs, x: Tensor, case: Case) -> Curve:
    compare = _compare_values if truth.kind == "values" else _compare_classes
    points = [compare(truth, predict(x), truth.labels, case)[0] for _, predict in replica.steps]
    return Curve(
        id=f"{check}.queries",
        title="Likeness of the copy against queries",
        x_label="queries",
        y_label="agreement with the model",
        x_scale="log",
        series=[
            Series(
                label="substitute",
                x=[float(count) for count, _ in replica.steps],
                y=[point.value for point in points],
                low=[point.low for point in points],
                high=[point.high for point in points],
            )
        ],
        reading="How often the copy gives the model's own answer, after so many queries: the sooner the line is high, the cheaper the theft.",
    )
