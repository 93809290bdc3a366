"""A. Does the model keep the contract that an evaluation relies on?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vauban.core.target import Target
from vauban.engine.batching import answers
from vauban.engine.doubts.probe import Probe, apart
from vauban.parts.losses import as_logits
from vauban.parts.modes import in_training
from vauban.parts.softened import OPTIMISING, Softened
from vauban.schema.log import Doubt

SAME = 1e-3
"""Answers that differ by less than this share of their spread are the same."""
ABSTAINS = 0.5
"""A class in no label that more than this share of inputs meet first, whichever way they leave, is one for abstaining."""


def randomness(target: Target, x: Tensor, most: int = 64, tolerance: float = 1e-4) -> Doubt:
    """Does the same input get the same answer twice?"""
    x = x[:most]
    first, second, third = (answers(target, x).values.to(torch.float64) for _ in range(3))
    value = float(torch.maximum((first - second).abs(), (first - third).abs()).max())
    limit = tolerance * apart(first)
    return Doubt(
        id="randomness",
        verdict="fail" if value > limit else "pass",
        value=value,
        threshold=limit,
        text="The model answers the same input differently each time."
        if value > limit
        else "The same input gets the same answer.",
        remedy="a random defence must be attacked on average (EOT): the gradient is averaged over several answers",
    )


def output_kind(kind: str) -> Doubt:
    """Probabilities hide how near a decision is: their gradients die where the model is sure."""
    soft = kind == "probabilities"
    return Doubt(
        id="softmax_output",
        verdict="warn" if soft else "pass",
        text="The model gives probabilities, whose gradients vanish where it is sure."
        if soft
        else "The model gives logits (or its own scores).",
        remedy="give the model without its last softmax layer, so that the attack sees logits",
    )


def output(probe: Probe) -> Doubt | None:
    return output_kind(probe.answer(probe.x[:1]).kind) if probe.classes is not None else None


def batch_dependence(target: Target, x: Tensor) -> Doubt:
    """Does an input get the same answer alone and in a batch?"""
    with torch.no_grad():
        together = target.forward(x).values.double()
        alone = torch.cat([target.forward(x[i : i + 1]).values for i in range(min(8, len(x)))]).double()
    value = float((together[: len(alone)] - alone).abs().max())
    limit = SAME * apart(together)
    return Doubt(
        id="batch_dependence",
        verdict="fail" if value > limit else "pass",
        value=value,
        threshold=limit,
        text="An input's answer depends on which others stand in its batch."
        if value > limit
        else "An input gets the same answer alone and in a batch.",
        remedy="a layer mixes rows (batch statistics in use?): make it work on each row by itself",
    )


def steady(probe: Probe) -> Doubt | None:
    probe.meter.queries += 3 * len(probe)
    return randomness(probe.target, probe.x) if len(probe) else None


def alone(probe: Probe) -> Doubt | None:
    """Not asked of a random model, whose answers differ anyway."""
    if len(probe) < 2 or probe.random:
        return None
    probe.meter.queries += len(probe) + 8
    return batch_dependence(probe.target, probe.x)


def nonfinite(probe: Probe) -> Doubt | None:
    """NaN or infinity at points that an attack visits: they stop it, and count for the model where nobody looks."""
    if not len(probe):
        return None
    points = [probe.drawn("nonfinite", number) for number in range(4)]
    values = [probe.answer(point).values.double().reshape(len(probe), -1) for point in points]
    share = float(torch.stack([~v.isfinite().all(1) for v in values]).double().mean())
    return Doubt(
        id="nonfinite",
        verdict="fail" if share > 0 else "pass",
        value=share,
        threshold=0.0,
        text=f"The model answers NaN or infinity to {share:.0%} of random inputs within the radius."
        if share
        else "The model's answers near the data are finite.",
        remedy="an attack that meets NaN is stopped, not resisted: declare the true range of inputs with bounds, or "
        "make the model refuse such inputs",
    )


def precision(probe: Probe) -> Doubt | None:
    """Half precision rounds gradients and margins away."""
    if probe.module is None:
        return None
    kinds = {str(p.dtype).removeprefix("torch.") for p in probe.module.parameters() if p.is_floating_point()}
    coarse = sorted(kinds & {"float16", "bfloat16"})
    return Doubt(
        id="precision",
        verdict="warn" if coarse else "pass",
        text=f"The model computes in {coarse[0]}, which rounds small changes of its answer away."
        if coarse
        else "The model computes in full precision.",
        remedy="attack a float32 copy of the model, and verify what is found on the model itself",
    )


def abstaining(probe: Probe) -> Doubt | None:
    """A class that nothing is labelled with, and that lies between all others."""
    unlabelled = probe.unlabelled
    if unlabelled is None or not probe.gradients or probe.radius == float("inf"):
        return None
    share = _between(probe, unlabelled)
    return Doubt(
        id="abstain_class",
        verdict="warn" if share > ABSTAINS else "pass",
        value=share,
        threshold=ABSTAINS,
        text=f"Class {unlabelled} occurs in no label, and is the first answer that {share:.0%} of inputs meet on their way "
        "to another class: it looks like a class for abstaining."
        if share > ABSTAINS
        else f"Class {unlabelled}, which occurs in no label, attracts no changed inputs.",
        remedy="an answer of this class is no error that goes unseen: what counts is a wrong answer of a real class",
    )


def _between(probe: Probe, unlabelled: int) -> float:
    """Share of rows whose first other answer on the way to an adversarial point is that class."""
    best = probe.climb(10, "abstaining", radius=4 * probe.radius)
    rows = best.reached.nonzero().flatten()
    if not len(rows):
        return 0.0
    low, high, shape = torch.zeros(len(rows)), torch.ones(len(rows)), (-1, *[1] * (probe.x.dim() - 1))
    clean, way = probe.x[rows], best.x[rows] - probe.x[rows]
    for _ in range(10):
        middle = (low + high) / 2
        beyond = probe.margin(clean + way * middle.reshape(shape).to(way), rows) > 0
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    first = probe.answer(clean + way * high.reshape(shape).to(way)).labels
    return float((first == unlabelled).double().mean())


def optimises(probe: Probe) -> Doubt | None:
    """A model that takes gradients of itself while it answers changes its input first: a purifier."""
    if not probe.gradients:
        return None
    probe.answer(probe.x[:1])  # a target learns about its module at the first pass, by gradients of its own
    probe.meter.queries += 2
    with torch.enable_grad(), Softened(OPTIMISING) as mode:
        probe.target.forward(probe.x[:2])
    return Doubt(
        id="test_time_optimisation",
        verdict="fail" if mode.calls else "pass",
        value=float(mode.calls),
        threshold=0.0,
        text=f"The model optimises while it answers: it took {mode.calls} gradients of its own in one forward pass."
        if mode.calls
        else "The model takes no gradients of its own while it answers.",
        remedy="what it does to its input must be attacked too: go through it (BPDA) with the optimisation in the loop",
    )


def side_effects(probe: Probe) -> Doubt | None:
    """Is the model the same after it answered, and the program around it?"""
    module = probe.module
    if module is None or not len(probe):
        return None
    steady_ = steady(probe)
    before = _traces(module)
    probe.slope(probe.goal.margin) if probe.gradients else probe.answer(probe.x)
    after = _traces(module)
    changed = [name for name in before if not _equal(before[name], after[name])]
    if steady_ is not None and steady_.verdict != "pass":
        changed = [name for name in changed if name != RANDOM]
    return Doubt(
        id="side_effects",
        verdict="warn" if changed else "pass",
        value=float(len(changed)),
        threshold=0.0,
        text=f"Answering changes something: {', '.join(changed)}."
        if changed
        else "Answering leaves weights, buffers, modes, hooks and the random state as they were.",
        remedy="a model that changes while it is asked answers the attack otherwise than it answers the user: freeze it",
    )


RANDOM = "the global random state"


def _traces(module: nn.Module) -> dict[str, Any]:
    parts = list(module.modules())
    return {
        "weights or buffers": {k: v.clone() for k, v in module.state_dict().items() if isinstance(v, Tensor)},
        "training modes": in_training(module),
        "stored gradients": {k: None if p.grad is None else p.grad.clone() for k, p in module.named_parameters()},
        "hooks": [
            len(part._forward_hooks) + len(part._backward_hooks) + len(part._forward_pre_hooks) for part in parts
        ],
        RANDOM: {"state": torch.random.get_rng_state()},
    }


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())  # NaN is as it was, too
    return bool(a is b or a == b)


def spread(target: Target, x: Tensor) -> float:
    """Median of the largest logit minus the mean of the others."""
    z = as_logits(answers(target, x)).double()
    return float((z.amax(1) - z.mean(1)).median())
