"""Can this number be trusted? Each doubt is a measured value against a threshold, with a remedy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vauban.core.goal import Goal
from vauban.core.target import Target
from vauban.engine.batching import answers
from vauban.parts.attribution import input_gradient
from vauban.schema.access import Access
from vauban.schema.log import Attempt, Doubt

ZERO_SHARE = 0.1
"""More rows than this with no gradient at all make a gradient attack meaningless on them."""
AGREEMENT = 0.5
"""Median ratio of finite difference to gradient below which the gradient does not describe the function."""


def gradient_health(target: Target, goal: Goal, x: Tensor, most: int = 64) -> list[Doubt]:
    """Are there gradients, and do they predict what the margin does? On at most `most` clean rows."""
    if Access.GRADIENTS not in target.offers:
        return []
    x = x[:most]
    rows = torch.arange(len(x), device=x.device)
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad():
        smooth = goal.surrogate(target.forward(leaf), rows)
        (slope,) = torch.autograd.grad(smooth.sum(), leaf, allow_unused=True) if smooth.requires_grad else (None,)
    flat = torch.zeros(len(x), 1) if slope is None else slope.detach().flatten(1)
    zero = float((flat.abs().amax(1) < 1e-12).to(torch.float32).mean())
    found = [
        Doubt(
            id="zero_gradient",
            verdict="fail" if zero > ZERO_SHARE else "pass",
            value=zero,
            threshold=ZERO_SHARE,
            text=f"{zero:.0%} of the inputs have no usable gradient of the loss.",
            remedy="attack with another loss (--set loss=margin), through the layer that blocks gradients (BPDA), "
            "or without gradients (evasion.square, evasion.hop_skip_jump)",
        )
    ]
    if zero <= ZERO_SHARE and slope is not None:
        found.append(_agreement(target, goal, x))
    return found


def _agreement(target: Target, goal: Goal, x: Tensor) -> Doubt:
    """Finite differences of the margin along its own gradient, against the gradient."""
    rows = torch.arange(len(x), device=x.device)
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad():
        margin = goal.margin(target.forward(leaf), rows)
        slope = input_gradient(margin, leaf)
    norm = slope.flatten(1).norm(dim=1).clamp_min(1e-20).reshape(-1, *[1] * (x.dim() - 1))
    scale = float(x.abs().amax().clamp_min(1e-3))
    step = 1e-2 * scale * slope / norm
    change = goal.margin(answers(target, x + step), rows) - margin.detach()
    expected = (slope * step).flatten(1).sum(1)
    ratio = (change / expected.clamp_min(1e-20)).nan_to_num(0.0)
    value = float(ratio.median())
    return Doubt(
        id="gradient_agreement",
        verdict="warn" if value < AGREEMENT else "pass",
        value=value,
        threshold=AGREEMENT,
        text=f"A small step along the gradient changes the margin by {value:.2f} of what the gradient promises (median).",
        remedy="the function is rougher than its gradient says: trust the attacks without gradients, and smooth over noise",
    )


def randomness(target: Target, x: Tensor, most: int = 64, tolerance: float = 1e-4) -> Doubt:
    """Does the same input get the same answer twice?"""
    x = x[:most]
    first, second = (answers(target, x).values.to(torch.float64) for _ in range(2))
    value = float((first - second).abs().max())
    spread = float(first.std().clamp_min(1e-12))
    return Doubt(
        id="randomness",
        verdict="fail" if value > tolerance * spread else "pass",
        value=value,
        threshold=tolerance * spread,
        text="The model answers the same input differently each time."
        if value > tolerance * spread
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


def curve_reaches_zero(accuracy: Sequence[float | None], radii: Sequence[float]) -> Doubt:
    """With unlimited room every classifier can be fooled: a curve that stays up shows a failing attack."""
    known = [a for a in accuracy if a is not None]
    last = known[-1] if known else None
    return Doubt(
        id="curve_reaches_zero",
        verdict="warn" if last is not None and last > 0.1 else "pass",
        value=last,
        threshold=0.1,
        text=f"At {radii[-1]:g}, the largest radius tried, accuracy is still {last:.0%}."
        if last is not None and last > 0.1
        else "Accuracy falls to near zero when the attacker has enough room.",
        remedy="an attack that cannot win with so much room is failing, not the model resisting: use more steps, another "
        "loss, or an attack without gradients",
    )


def contradictions(
    attempts: Sequence[Attempt], cards: dict[str, Access], one_step: str = "evasion.fgsm"
) -> dict[int, list[Doubt]]:
    """Doubts that show only between attacks of one threat: by number of the attempt that they speak of.

    An attack with less knowledge should not break what one with more does not; one step should not beat many.
    """
    found: dict[int, list[Doubt]] = {}
    threats = {a.threat for a in attempts if a.outcomes}
    for threat in sorted(threats, key=str):
        group = {i: a for i, a in enumerate(attempts) if a.threat == threat and a.outcomes and a.state == "assessed"}
        white = [i for i in group if Access.GRADIENTS in cards.get(group[i].check, Access.NONE)]
        strong = [i for i in white if group[i].check != one_step]
        if not strong:
            continue
        union = _union([group[i].outcomes for i in strong])
        black = [i for i in group if i not in white]
        for rivals, name, text in (
            (
                black,
                "black_box_wins",
                "An attack that sees only answers broke {k} samples that no gradient attack broke.",
            ),
            (
                [i for i in white if group[i].check == one_step],
                "one_step_wins",
                "One gradient step broke {k} samples that many steps did not.",
            ),
        ):
            only = {
                i: sum(r == "b" and u == "h" for r, u in zip(group[i].outcomes, union, strict=False)) for i in rivals
            }
            for i, count in only.items():
                share = count / max(1, len(union))
                found.setdefault(i, []).append(
                    Doubt(
                        id=name,
                        verdict="fail" if share > 0.02 else ("warn" if count else "pass"),
                        value=float(count),
                        threshold=0.02 * len(union),
                        text=text.format(k=count),
                        remedy="gradients are misleading here (masking): raise steps and restarts, use another loss, and "
                        "do not call the model robust on the gradient attacks' figure",
                    )
                )
    return found


def _union(outcomes: Sequence[str]) -> str:
    return "".join(
        "w" if "w" in letters else "b" if "b" in letters else "h" for letters in zip(*outcomes, strict=False)
    )
