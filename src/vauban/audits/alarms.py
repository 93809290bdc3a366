"""How well a detector tells the examples of both audits from clean inputs: its alarms, as numbers and as a curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vauban.audits.effects import broken_samples
from vauban.core.rng import Rng
from vauban.core.target import Target
from vauban.defences.detect.watched import WatchedTarget
from vauban.engine.context import HouseContext
from vauban.engine.detection import suspicions
from vauban.engine.measure import area
from vauban.parts.roc import roc, thin
from vauban.schema.log import AuditLog, Curve, Series

KNOWN = ("model", "model and detector")
"""What the attacks of the audits before and after were made on."""


@dataclass(frozen=True)
class Alarms:
    """Empty where the target has no detector."""

    facts: dict[str, float] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)
    told: list[str] = field(default_factory=list)


def alarms(
    logs: Sequence[AuditLog], folders: Sequence[Path], target: Target, x: Tensor, context: HouseContext
) -> Alarms:
    """Of the new `target`, about the clean inputs `x` `[n, ...]` and what the audits before and after made of them.

    Only examples that broke the model under attack count: those of the second audit were let pass, too, where the detector refuses.
    """
    if not isinstance(target, WatchedTarget):
        return Alarms()
    clean = suspicions(target, x)
    over, noisy = float((clean > target.threshold).mean()), _on_noise(target, x, context)
    facts = {"false_alarms": over} | ({} if noisy is None else {"false_alarms_noise": noisy})
    more = "" if noisy is None else f" and at {noisy:.1%} of inputs with random noise as large as the attacks may be"
    told, series = [f"The detector raises the alarm at {over:.1%} of clean inputs{more}."], []
    for log, folder, known in zip(logs, folders, KNOWN, strict=True):
        found = [pair[1] for attempt in log.attempts if (pair := broken_samples(folder, attempt)) is not None]
        if not found:
            continue
        scores = np.concatenate([clean, bad := suspicions(target, torch.cat(found))])
        positive = np.arange(len(scores)) >= len(clean)
        auc = area("detection.auc", scores, positive)
        facts[f"detection_auc_{known.replace(' ', '_')}"] = float(auc.value or 0)
        between = "" if auc.low is None else f"{auc.low:.2f} to {auc.high:.2f}; "
        told.append(
            f"{len(bad)} examples made on the {known}: area under the ROC curve {auc.value:.2f} ({between}0.5 is chance), "
            f"{(bad > target.threshold).mean():.0%} above the threshold."
        )
        series.append(_series(f"made on the {known}", scores, positive))
    return Alarms(facts, [_curve(series)] if series else [], told)


def _on_noise(target: WatchedTarget, x: Tensor, context: HouseContext) -> float | None:
    """The share of alarms at inputs with random noise of the attacks' size; None where the threat has no radius."""
    if context.space is None or context.radius is None:
        return None
    noisy = context.space.sample(x, context.radius, Rng(0, len(x)), torch.arange(len(x)))
    return float((suspicions(target, noisy) > target.threshold).mean())


def _series(label: str, scores: np.ndarray, positive: np.ndarray) -> Series:
    fpr, tpr, _ = roc(scores, positive)
    x, y = thin(fpr, tpr)
    at_once = float(tpr[fpr == 0].max())
    return Series(label=label, x=[0.0, *x], y=[at_once, *y])


def _curve(series: list[Series]) -> Curve:
    return Curve(
        id="detector.roc",
        title="Adversarial inputs found against false alarms",
        x_label="false-positive rate",
        y_label="true-positive rate",
        series=[*series, Series(label="chance", x=[0.0, 1.0], y=[0.0, 1.0])],
        reading="The share of adversarial inputs found (up) at each share of clean inputs called adversarial (right). Who "
        "knows the detector stops as soon as it lets the example pass: of those the share above the threshold counts, more than the area.",
    )
