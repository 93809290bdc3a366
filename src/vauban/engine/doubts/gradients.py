"""B. Are there gradients, and do they say what the model does?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vauban.core.target import Target
from vauban.engine.doubts.probe import DEAD, Probe
from vauban.schema.log import Doubt

ZERO_SHARE = 0.1
"""More rows than this with no gradient at all make a gradient attack meaningless on them."""
AGREEMENT = 0.5
"""Agreement of finite differences with the gradient below which the gradient does not describe the function."""
EXACT = 0.95
"""Cosine between the gradients in float32 and in float64 below which rounding decides where the attack goes."""
HALVINGS = 8
JUMP = 0.3
"""Share of a change that is still there after the distance was halved eight times: 1/256 of it where the function is smooth."""
BLOCKED = "attack through the layer that blocks gradients (BPDA), or without gradients (evasion.square, evasion.hop_skip_jump)"


def graph(probe: Probe) -> Doubt | None:
    """Does a way lead from the answer back to the input?"""
    if not probe.gradients:
        return None
    whole = probe.slopes["margin"] is not None
    return Doubt(
        id="no_graph",
        verdict="pass" if whole else "fail",
        value=float(not whole),
        threshold=0.0,
        text="A way leads from every answer back to its input."
        if whole
        else "No way leads from the answer back to the input: something detaches it (no_grad, detach, numpy, argmax).",
        remedy=BLOCKED,
    )


def zero(probe: Probe) -> Doubt | None:
    """Rows without any gradient of the margin."""
    if not probe.gradients:
        return None
    value = probe.dead["margin"]
    each = ", ".join(f"{name} {share:.0%}" for name, share in probe.dead.items())
    return Doubt(
        id="zero_gradient",
        verdict="fail" if value > ZERO_SHARE else "pass",
        value=value,
        threshold=ZERO_SHARE,
        text=f"{value:.0%} of the inputs have no gradient of the margin at all (by loss: {each}).",
        remedy=BLOCKED,
    )


def logit_scale(probe: Probe) -> Doubt | None:
    """Losses over probabilities saturate where logits are large, while the margin still has a gradient."""
    if not probe.gradients or "ce" not in probe.faint or probe.dead["margin"] > ZERO_SHARE:
        return None
    value = probe.faint["ce"]
    each = ", ".join(f"{name} {share:.0%}" for name, share in probe.faint.items())
    return Doubt(
        id="logit_scale",
        verdict="fail" if value > ZERO_SHARE else "pass",
        value=value,
        threshold=ZERO_SHARE,
        text=f"{value:.0%} of the inputs have a gradient of the cross-entropy below {DEAD:g} (by loss: {each}): the "
        "scores are so far apart that the loss is saturated."
        if value > ZERO_SHARE
        else "The cross-entropy is not saturated: the scores are of a usual size.",
        remedy="divide the logits by a constant, or attack with a loss that does not saturate (--set loss=margin)",
    )


def double(probe: Probe) -> Doubt | None:
    """The gradient again in float64, where the module can be copied."""
    backed, slope = probe.target, probe.slopes["margin"] if probe.gradients else None
    if slope is None or probe.module is None or probe.shaky or probe.dead["margin"] > ZERO_SHARE:
        return None
    exact = _in_double(backed, probe)
    if exact is None:
        return None
    cosine = nn.functional.cosine_similarity(slope.double().flatten(1), exact.flatten(1), dim=1)
    value = float(cosine.nan_to_num(0.0).median())
    return Doubt(
        id="float64_gradient",
        verdict="warn" if value < EXACT else "pass",
        value=value,
        threshold=EXACT,
        text=f"The gradient in float64 points elsewhere (median cosine {value:.2f}): rounding decides where attacks go."
        if value < EXACT
        else "The gradient in float64 is the same.",
        remedy="attack a float64 copy of the model, and verify what is found on the model itself",
    )


def _in_double(target: Target, probe: Probe) -> Tensor | None:
    backed = target
    try:
        copy = backed.around(backed.clone().double(), "+float64")  # type: ignore[attr-defined]
        return probe.slope(probe.goal.margin, probe.x.double(), copy)
    except Exception:  # a model may insist on its own type: then nothing can be said
        return None


def agreement(probe: Probe) -> Doubt | None:
    """Do small random steps, and one along the gradient, change the margin as the gradient says?"""
    slope = probe.slopes["margin"] if probe.gradients else None
    if slope is None or probe.shaky or probe.dead["margin"] > ZERO_SHARE:
        return None
    here = probe.margin(probe.x)
    seen, said = [], []
    flat = slope.flatten(1)
    along = (slope / flat.abs().amax(1).clamp_min(1e-30).reshape(-1, *[1] * (slope.dim() - 1))) * probe.reach
    for direction in (along, *(probe.signs("agreement", number) for number in range(4))):
        step = 0.02 * direction
        seen.append(probe.margin(probe.x + step) - here)
        said.append((slope.double() * step.double()).flatten(1).sum(1))
    a, b = torch.stack(seen, 1), torch.stack(said, 1)
    fit = (a * b).sum(1) / b.square().sum(1).clamp_min(1e-300)
    fit = fit[fit.isfinite()]
    if not len(fit):  # the model answers NaN nearby, which is a doubt of its own
        return None
    value = float(fit.median())
    return Doubt(
        id="gradient_agreement",
        verdict="warn" if not AGREEMENT <= value <= 1 / AGREEMENT else "pass",
        value=value,
        threshold=AGREEMENT,
        text=f"Small steps change the margin by {value:.2f} of what the gradient promises (median).",
        remedy="the function is rougher than its gradient says: trust the attacks without gradients, and smooth over noise",
    )


def jumps(probe: Probe) -> Doubt | None:
    """Does the answer jump? A segment is halved again and again, towards the half that changes more.

    What remains of the change after HALVINGS is 1/2^HALVINGS of it, times the steepness, for a continuous function,
    and the jump itself otherwise.
    """
    if not probe.gradients or probe.shaky:
        return None
    low, high = probe.x - probe.signs("jumps"), probe.x + probe.signs("jumps")
    count, shape = 16, (-1, *[1] * (probe.x.dim() - 1))
    shares = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    values = torch.stack([probe.margin(low + (high - low) * float(s)) for s in shares], 1)
    steps = (values[:, 1:] - values[:, :-1]).abs()
    top = steps.argmax(1)
    left, right = shares[top], shares[top + 1]
    at = values.gather(1, top[:, None])[:, 0]
    to = values.gather(1, top[:, None] + 1)[:, 0]
    typical = steps.mean(1)
    for _ in range(HALVINGS):
        middle = (left + right) / 2
        value = probe.margin(low + (high - low) * middle.reshape(shape).to(low))
        first = (value - at).abs() >= (to - value).abs()
        left, right = torch.where(first, left, middle), torch.where(first, middle, right)
        at, to = torch.where(first, at, value), torch.where(first, value, to)
    rest = ((to - at).abs() / typical.clamp_min(1e-12)).nan_to_num(0.0)
    value_ = float(rest.median())
    return Doubt(
        id="jumps",
        verdict="warn" if value_ > JUMP else "pass",
        value=value_,
        threshold=JUMP,
        text=f"The answer jumps: a step of a thousandth of the radius changes it by {value_:.2f} of what an eighth of the "
        "radius does (median). Layers that round, keep the largest activations or cut off small ones do that."
        if value_ > JUMP
        else "The answer changes without jumps.",
        remedy="gradients do not see jumps: attack through a soft stand-in for the layer, and without gradients",
    )
