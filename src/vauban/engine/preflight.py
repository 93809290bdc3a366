"""A look at model and data before anything is attacked: what was found, in plain words; and no going on with what is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vauban.core.data import Data
from vauban.core.target import Domain, Outputs, Target, TorchBacked
from vauban.engine.batching import answers
from vauban.engine.doubts import output_kind, randomness
from vauban.engine.measure import clopper_pearson
from vauban.engine.units import chance, check_bounds, check_scale, scaling, score
from vauban.parts.modes import in_training
from vauban.schema.access import Access
from vauban.schema.errors import BadData, BadTarget, VaubanError
from vauban.schema.log import Doubt

SEEN = 1000
"""Test rows at most that are scored."""
FEW = 32
"""Rows for the checks that repeat the forward pass."""
MANY = 0.1
"""Refusing more than this share of clean rows is worth a warning."""
SAME = 1e-3
"""Answers that differ by less than this share of their spread are the same."""


def preflight(target: Target, data: Data, domain: Domain) -> tuple[Target, list[Doubt], dict[str, Any]]:
    """The target with its domain completed, what there is to doubt, and what was measured.

    `domain` is what `domains.settle` made of the target's own domain and the data; the number of classes is taken
    from the answers. Facts: `forward_seconds` and `backward_seconds` a row (None without gradients), `clean_accuracy`
    with `clean_accuracy_low` and `_high` (95 %, Clopper-Pearson; `r2` in a regression), `output`, `input_low`,
    `input_high`, `rows`.

    Raises WrongUnits where data, declared range and model do not speak of the same units; BadTarget where the model
    fails, answers NaN, or has another number of outputs than declared; BadData where labels do not fit.
    """
    _check_one_class(data, domain)
    target, outputs = accepted(target, data, domain)
    domain, sample = target.domain, data.head(SEEN)
    x, y = sample.x_test, sample.y_test
    found, facts = _accuracy(outputs, y)
    doubts = [_range(data), scaling(target, x, y, outputs), found, *_classes_seen(data, domain), *_mode(target)]
    turned, share = _refusals(outputs, domain)
    doubts, facts = doubts + turned, facts | share
    doubts += [output_kind(outputs.kind)] if domain.task == "classification" else []
    steady = randomness(target, x, FEW)
    doubts += [steady, *_batch_dependence(target, x[:FEW], steady.verdict == "pass"), *_gradients(target, x[:FEW])]
    facts |= {"output": outputs.kind, "rows": len(x), "input_low": float(x.min()), "input_high": float(x.max())}
    return target, doubts, facts | _speed(target, x[:64])


def accepted(target: Target, data: Data, domain: Domain) -> tuple[Target, Outputs]:
    """The target with its domain completed, and its answers to the first SEEN rows (`Data.head`), once both fit together.

    Raises as `preflight`.
    """
    declared = target.domain
    check_bounds(data, declared)
    target = target.settled(domain)
    sample = data.head(SEEN)
    x, y = sample.x_test, sample.y_test
    outputs = _attempt(target, x, domain)
    _check_finite(outputs)
    domain = replace(domain, classes=_classes(outputs, declared, data, domain))
    _check_labels(data, domain)
    check_scale(target, x, y, outputs)
    return target.settled(domain), outputs


def _attempt(target: Target, x: Tensor, domain: Domain) -> Outputs:
    """Answers to all rows; whatever a user's model raises becomes one sentence."""
    try:
        return answers(target, x)
    except BadTarget as error:
        if domain.task != "regression":
            raise
        raise BadTarget(
            f"{error} (The labels are real numbers, which means regression: give a classifier's labels as integers.)"
        ) from None
    except VaubanError:
        raise
    except Exception as error:  # a user's model may raise anything
        said = " ".join(str(error).split())[:300]
        raise BadTarget(
            f"The model {target.id} failed on inputs of shape {tuple(x.shape)} ({type(error).__name__}: {said}): "
            "give data in the shape that it was trained on."
        ) from error


def _check_one_class(data: Data, domain: Domain) -> None:
    if domain.task != "classification":
        return
    for name in ("y_test", "y_train"):
        y = getattr(data, name)
        if y is not None and len(y.unique()) == 1:
            raise BadData(
                f"{name} holds only class {int(y[0])} in all {len(y)} rows: give rows of at least two classes."
            )


def _check_finite(outputs: Outputs) -> None:
    values = outputs.values
    bad = ~torch.isfinite(values.double()).reshape(len(values), -1).all(1)
    if bool(bad.any()):
        raise BadTarget(
            f"The model answers NaN or infinity to {int(bad.sum())} of {len(bad)} inputs (first: test row "
            f"{int(bad.nonzero()[0])}): nothing can be measured on such answers; repair the model or its inputs first."
        )


def _classes(outputs: Outputs, declared: Domain, data: Data, domain: Domain) -> int | None:
    if domain.task == "regression":
        return None
    if outputs.values.dim() == 1:
        seen = 1 + max(int(outputs.values.max()), int(data.y_test.max()))
        return declared.classes or max(2, seen)
    count = int(outputs.values.shape[1])
    if declared.classes is not None and declared.classes != count:
        raise BadTarget(
            f"The model gives {count} scores an input, but {declared.classes} classes were declared: "
            "declare what the model has, or give the model that belongs to the declaration."
        )
    return count


def _check_labels(data: Data, domain: Domain) -> None:
    if domain.task != "classification":
        return
    for name in ("y_test", "y_train"):
        y = getattr(data, name)
        if y is None:
            continue
        if y.is_floating_point():
            raise BadData(f"{name} holds real numbers, but the model is a classifier: give class numbers as integers.")
        if domain.refusal is not None and bool((y == domain.refusal).any()):
            raise BadData(
                f"{name} holds the label {domain.refusal}, by which the model refuses to answer: no input is of that class, label "
                "the rows by what they show."
            )
        if int(y.min()) < 0 or int(y.max()) >= int(domain.classes or 0):
            raise BadData(
                f"{name} holds labels from {int(y.min())} to {int(y.max())}, but the model has {domain.classes} classes "
                f"(0 to {int(domain.classes or 0) - 1}): number the labels as the model does."
            )


def _accuracy(outputs: Outputs, y: Tensor) -> tuple[Doubt, dict[str, Any]]:
    value, lowest = score(outputs, y), chance(outputs, y)
    if outputs.kind == "values":
        text = f"The model explains {value:.1%} of the variance of {len(y)} test values."
        facts: dict[str, Any] = {"r2": value}
    else:
        low, high = clopper_pearson(round(value * len(y)), len(y))
        text = f"Clean accuracy is {value:.1%} (95 % interval {low:.1%} to {high:.1%}, {len(y)} test rows)."
        facts = {"clean_accuracy": value, "clean_accuracy_low": low, "clean_accuracy_high": high}
    poor = value <= lowest
    more = f" That is no better than always giving the same answer ({lowest:.1%})." if poor else ""
    return Doubt(
        id="clean_accuracy",
        verdict="fail" if poor else "pass",
        value=value,
        threshold=lowest,
        text=text + more,
        remedy="check that the labels are numbered as the model numbers them, and that inputs are prepared as in training",
    ), facts


def _range(data: Data) -> Doubt:
    low, high = float(data.x_test.min()), float(data.x_test.max())
    grid = f", on a grid of {data.step:.6g}" if data.step else ""
    return Doubt(id="input_range", verdict="pass", text=f"The inputs lie between {low:.4g} and {high:.4g}{grid}.")


def _classes_seen(data: Data, domain: Domain) -> list[Doubt]:
    if domain.task != "classification":
        return []
    seen, count = len(data.y_test.unique()), int(domain.true_classes or 0)
    return [
        Doubt(
            id="classes",
            verdict="pass" if seen == count else "warn",
            value=seen,
            threshold=count,
            text=f"The model has {count} classes{' and one for refusing' * (domain.refusal is not None)}; {seen} of them occur in the test rows.",
            remedy="what is measured says nothing about classes that do not occur: add rows of them",
        )
    ]


def _refusals(outputs: Outputs, domain: Domain) -> tuple[list[Doubt], dict[str, Any]]:
    """How many clean rows are refused, where the model refuses at all."""
    if domain.refusal is None:
        return [], {}
    turned, n = int((outputs.labels == domain.refusal).sum()), len(outputs.values)
    low, high = clopper_pearson(turned, n)
    doubt = Doubt(
        id="refusals",
        verdict="warn" if low > MANY else "pass",
        value=turned / n,
        threshold=MANY,
        text=f"The model refuses {turned / n:.1%} of {n} clean test rows (95 % interval {low:.1%} to {high:.1%}): false alarms, "
        "which count as wrong answers.",
        remedy="lower its rate of false alarms: whoever refuses everything is fooled by nobody",
    )
    return [doubt], {"refused_clean": turned / n}


def _mode(target: Target) -> list[Doubt]:
    if not isinstance(target, TorchBacked):
        return []
    left = len(in_training(target.module))
    return [
        Doubt(
            id="train_mode",
            verdict="warn" if left else "pass",
            value=left,
            threshold=0,
            text="The model was left in training mode; it is examined in evaluation mode."
            if left
            else "The model is in evaluation mode.",
            remedy="call model.eval() before serving it: dropout and batch statistics make answers random",
        )
    ]


def _batch_dependence(target: Target, x: Tensor, steady: bool) -> list[Doubt]:
    if not steady or len(x) < 2:
        return []
    with torch.no_grad():
        together = target.forward(x).values.double()
        alone = torch.cat([target.forward(x[i : i + 1]).values for i in range(min(8, len(x)))]).double()
    value = float((together[: len(alone)] - alone).abs().max())
    limit = SAME * max(float(together.std()), 1e-12)
    return [
        Doubt(
            id="batch_dependence",
            verdict="fail" if value > limit else "pass",
            value=value,
            threshold=limit,
            text="An input's answer depends on which others stand in its batch."
            if value > limit
            else "An input gets the same answer alone and in a batch.",
            remedy="a layer mixes rows (batch statistics in use?): make it work on each row by itself",
        )
    ]


def _gradients(target: Target, x: Tensor) -> list[Doubt]:
    if Access.GRADIENTS not in target.offers:
        return [
            Doubt(
                id="gradients",
                verdict="pass",
                text="The target gives no gradients: attacks that need them are left out.",
            )
        ]
    slope = _slope(target, x)
    dead = 1.0 if slope is None else float((slope.flatten(1).abs().amax(1) == 0).double().mean())
    return [
        Doubt(
            id="gradients",
            verdict="warn" if dead > 0 else "pass",
            value=dead,
            threshold=0.0,
            text=f"{dead:.0%} of {len(x)} inputs have no gradient: something in the model blocks it."
            if dead
            else "Every input has a gradient.",
            remedy="look for rounding, argmax, detach or saturated layers; rely on attacks that need no gradients",
        )
    ]


def _slope(target: Target, x: Tensor) -> Tensor | None:
    """Input gradient of the lead of the answer given (of the value, in a regression); None where the graph does not reach the input."""
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad():
        values = target.forward(leaf).values
        # the lead of the first class over the second: a binary classifier with one output has a constant logit
        best = values.topk(2, dim=1).values if values.dim() == 2 else values[:, None]
        top = best[:, 0] - best[:, 1] if values.dim() == 2 else best[:, 0]
        if not top.requires_grad:
            return None
        (slope,) = torch.autograd.grad(top.sum(), leaf, allow_unused=True)
    return slope


def _speed(target: Target, x: Tensor) -> dict[str, float | None]:
    """Seconds a row, the best of three."""

    def best(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return min(times) / len(x)

    with torch.no_grad():
        forward = best(lambda: target.forward(x))
    differentiable = Access.GRADIENTS in target.offers
    return {"forward_seconds": forward, "backward_seconds": best(lambda: _slope(target, x)) if differentiable else None}
