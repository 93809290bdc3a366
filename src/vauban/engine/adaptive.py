"""From doubts to an attack that knows the model, and from what that attack left to further doubts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from vauban.core.goal import Goal
from vauban.core.space import Continuous
from vauban.engine.batching import answers
from vauban.engine.case import Case, Check
from vauban.engine.doubts import AFTER, Aftermath, Meter, Probe, output_kind, randomness
from vauban.engine.doubts.optimisation import HELD
from vauban.engine.doubts.probe import subset
from vauban.engine.react import Plan, plan
from vauban.engine.react.choose import VOTES
from vauban.engine.react.stand_ins import voted
from vauban.schema.log import Cost, Doubt

CLEAN = 256
"""Rows of data that batch statistics and ranges are taken from."""
WON = 0.02
"""More of the samples than this, broken without gradients alone, and the gradients are misleading still."""
REACTED = frozenset(
    {
        "randomness",
        "batch_dependence",
        "nonfinite",
        "test_time_optimisation",
        "no_graph",
        "zero_gradient",
        "logit_scale",
    }
)
"""Doubts that are answered once the attack has found a way with gradients, and no other attack does better."""


@contextmanager
def own_random(case: Case, *name: object) -> Iterator[None]:
    """Random models draw the same numbers in every run, and the program's random state is found as it was."""
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(torch.is_grad_enabled()):
        torch.manual_seed(case.seed_for("random", *name))
        yield


def planned(check: Check, case: Case, goal: Goal, space: Continuous, radius: float, gradients: bool) -> Plan:
    """How this check's attack is to be made: one plan for all checks that want the same of the same rows."""
    if not gradients:
        return _watched(case, goal, space, radius)
    name = f"plan:{check.threat.goal}:{space.name}:{radius:g}"
    made: Plan = case.share(name, lambda: plan(_probe(case, goal, space, radius), _clean(case)))
    return made


def _watched(case: Case, goal: Goal, space: Continuous, radius: float) -> Plan:
    """Attacks without gradients need no way through; only who judges depends on the model."""
    data = case.data.x_test
    steady: Doubt = case.share("randomness", lambda: randomness(case.target, data))
    kind = output_kind(answers(case.target, data[:1]).kind)
    shaky = steady.verdict == "fail"
    judge = voted(case.target, VOTES) if shaky else case.target
    words = [f"an input counts as broken where most of {VOTES} answers are wrong"] if shaky else []
    real = Probe(case.target, goal, data[:0], space, radius)
    return Plan(case.target, judge, real, data[:0], [steady, kind], words)


def _probe(case: Case, goal: Goal, space: Continuous, radius: float) -> Probe:
    classes = case.domain.classes if case.domain.task == "classification" else None
    return Probe.of(
        case.target,
        goal,
        case.data.x_test,
        space,
        radius,
        seed=case.seed_for("doubts"),
        classes=classes,
        unlabelled=_unlabelled(case) if classes is not None and not goal.targeted else None,
    )


def _unlabelled(case: Case) -> int | None:
    """The one class that occurs in no label at all, where all others do; None where the model says itself by which it refuses."""
    if case.domain.refusal is not None:
        return None
    labels = [y for y in (case.data.y_train, case.data.y_test) if y is not None]
    absent = set(range(case.domain.classes or 0)) - {int(c) for y in labels for c in y.unique()}
    return absent.pop() if len(absent) == 1 and (case.domain.classes or 0) > 2 else None


def _clean(case: Case) -> Tensor:
    x = case.data.x_train if case.data.x_train is not None and len(case.data.x_train) else case.data.x_test
    return x[:CLEAN] if len(x) > CLEAN else x


def searched(plan: Plan, space: Continuous) -> Continuous:
    """The space of a search: within the range in which the model answers."""
    if plan.limits is None or space.knobs:
        return space
    low, high = plan.limits
    bounded: Continuous = replace(space, low=low, high=high)  # type: ignore[type-var]
    return bounded


def concluded(plan: Plan, alone: int, total: int) -> list[Doubt]:
    """The doubts after the reaction: those that it answered are told as warnings, with what was done.

    `alone`: samples of `total` that only the attack without gradients broke.
    """
    if not plan.rough:
        won: list[Doubt] = []
    else:
        misled = alone > max(1, WON * total)
        won = [
            Doubt(
                id="fallback_wins",
                verdict="fail" if misled else "pass",
                value=float(alone),
                threshold=WON * total,
                text=f"An attack without gradients broke {alone} samples that the one with gradients, changed as the "
                "doubts asked, did not.",
                remedy="gradients are still misleading: count on attacks without them (evasion.square with more "
                "queries), and do not call the model robust",
            )
        ]
    answered = bool(plan.words) and not any(d.verdict == "fail" for d in won) and plan.usable
    return [*(_answered(d, plan) if answered else d for d in plan.doubts), *won]


def _answered(doubt: Doubt, plan: Plan) -> Doubt:
    if doubt.verdict != "fail" or doubt.id not in REACTED:
        return doubt
    told = "; ".join(plan.words)
    return doubt.model_copy(update={"verdict": "warn", "text": f"{doubt.text} So {told}."})


def afterwards(
    plan: Plan, goal: Goal, clean: Tensor, closest: Tensor, held: Tensor, found: dict[str, int]
) -> tuple[list[Doubt], Meter]:
    """The doubts of group C, asked of at most HELD of the rows that the attack left, `held` `[m]`."""
    rows = held[:HELD]
    meter = Meter()
    aim = plan.goal(subset(goal, rows))
    real = replace(plan.real, target=plan.judge, goal=aim, x=clean[rows], meter=meter)
    after = Aftermath(real.on(plan.target), real, closest[rows], **found)
    doubts = [doubt for ask in AFTER.values() if (doubt := ask(after)) is not None]
    return doubts, meter


def spent(cost: Cost, *meters: Meter) -> Cost:
    """The cost with what doubting took, beside what attacking took."""
    return cost.model_copy(update={"doubting": sum(m.queries + m.gradients for m in meters)})
