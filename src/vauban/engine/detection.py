"""How well a detector of adversarial inputs tells them from clean ones, and what an attacker who knows it leaves of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vauban.core.data import Data
from vauban.core.registry import configure
from vauban.core.rng import Rng, derive_seed
from vauban.core.target import Target
from vauban.defences.catalog import DEFENCES
from vauban.defences.detect.watched import WatchedTarget
from vauban.domains.catalog import modality, settle
from vauban.engine.batching import answers
from vauban.engine.context import HouseContext
from vauban.engine.detection_joint import Joint
from vauban.engine.measure import area, rate
from vauban.parts.roc import hits_at_fpr
from vauban.schema.errors import BadData, BadOption
from vauban.schema.log import Measurement
from vauban.schema.threat import ThreatModel

UNFITTED = "not fitted on any attack"
RATE = 0.05
"""False-positive rate at which the true-positive rate is told."""
LEAD = 1e3
"""A lead in logits that no attack reaches: it makes all its steps."""


@dataclass(frozen=True, kw_only=True)
class Foe:
    """One attack that a detector is tried on.

    `space` asks for the nearest success in that space instead of any within the threat; `confident` for the point of the largest
    margin after all steps instead of the first success.
    """

    id: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    space: str = ""
    confident: bool = False

    @property
    def name(self) -> str:
        """As it is called in tables."""
        more = [f"nearest {self.space}" if self.space else "", "confident" if self.confident else ""]
        return " ".join([self.id, *filter(None, more)])


FOES = (
    Foe(id="evasion.fgsm"),
    Foe(id="evasion.pgd"),
    Foe(id="evasion.pgd", confident=True),
    Foe(id="evasion.square", settings={"queries": 500}),
    Foe(id="evasion.ddn", space="l2", settings={"steps": 100}),
)


@dataclass(frozen=True)
class Examples:
    """What every detector of a model is tried on: rows, the same with noise, and what attacks on the model alone made of them."""

    x: Tensor
    """Clean rows `[n, ...]`, as they come: also those that the model gets wrong."""
    y: Tensor
    right: Tensor
    """Bool `[n]`: answered rightly."""
    noisy: Tensor
    changed: dict[str, Tensor]
    """By name of the attack, `[n, ...]`."""
    fooled: dict[str, Tensor]
    """By name of the attack, bool `[n]`: answered rightly before, and wrongly now."""
    context: HouseContext
    foes: tuple[Foe, ...]
    seed: int


@dataclass(frozen=True)
class Against:
    """A detector against one attack, over the rows that were answered rightly and that it fooled."""

    attack: str
    fitted_on: str
    fooled: int
    auc: Measurement
    """Against all clean rows."""
    caught: Measurement
    """True-positive rate where at most RATE of the clean rows are called adversarial."""
    refused: Measurement
    """Share above the detector's own threshold."""


@dataclass(frozen=True)
class Examined:
    """What there is to say of one detector."""

    detector: str
    clean: Measurement
    """Share of clean rows above its threshold: false alarms."""
    noisy: Measurement
    """The same of rows with random noise of the attacks' size."""
    against: tuple[Against, ...]
    """Attacks on the model alone; where it learnt from attacks, never from the one it is tried on."""
    joint: Against | None
    """The attacker who knows the detector: of every row the point that fools the model with the least suspicion."""
    passed: Measurement | None
    """Share of the rows answered rightly, and not refused when clean, that this attacker gets answered wrongly and not refused."""


def attacked(
    target: Target, data: Data, *, threat: str = "linf:0.1", foes: Sequence[Foe] = FOES, seed: int = 0
) -> Examples:
    """Attack the test rows of `data`, once for all detectors.

    Raises BadOption for a threat without a room, BadData where the model gets no row right.
    """
    room = ThreatModel.of(threat).room
    if room is None:
        raise BadOption(f"The threat {threat} has no room: give one such as linf:0.1.")
    domain = settle(target.domain, data)
    target = target.settled(domain)
    kind = modality(str(domain.kind))
    context = HouseContext(room.radius, kind.space(room.space, domain))
    x, y = data.x_test, data.y_test
    right = answers(target, x).labels == y
    if not bool(right.any()):
        raise BadData(f"{target.id} gets none of the {len(x)} test rows right: there is nothing to attack.")
    changed = {}
    for foe in foes:
        where = replace(context, radius=torch.inf, space=kind.space(foe.space, domain)) if foe.space else context
        attack = replace(where, lead=LEAD if foe.confident else 0.0).attack(foe.id, **foe.settings)
        changed[foe.name] = attack(target, x, y, Rng(derive_seed(seed, foe.name), np.asarray(data.ids)), domain)
    fooled = {name: right & (answers(target, z).labels != y) for name, z in changed.items()}
    assert context.space is not None
    noise = Rng(derive_seed(seed, "noise"), np.asarray(data.ids))
    noisy = context.space.sample(x, room.radius, noise, torch.arange(len(x)))
    return Examples(x, y, right, noisy, changed, fooled, context, tuple(foes), seed)


def examine(
    detector: str,
    target: Target,
    data: Data,
    examples: Examples,
    *,
    settings: Mapping[str, Any] | None = None,
    joint: Joint | None = None,
) -> Examined:
    """Fit a detector on the training rows of `data`, and try it.

    Args:
        detector: id of a defence of the family detect.
        target: the model that `examples` were made on.
        data: with training rows.
        examples: what `attacked` gave.
        settings: the detector's own. Where `attacks` names some, each attack of `examples` is met by a detector that did not learn
            from it; the others are said to be not fitted on any attack.
        joint: the attacker who knows model and detector; the default one where None.

    Raises UnknownName, BadOption, and what the defence raises.
    """
    if not detector.startswith("detect."):
        raise BadOption(f"{detector} is no detector: use one of {', '.join(DEFENCES.select(['detect']))}.")
    target = target.settled(settle(target.domain, data))
    fitted = _Fitted(detector, target, data, examples, dict(settings or {}))
    made, _ = fitted.without("")
    clean = suspicions(made, examples.x)
    over = int((clean > made.threshold).sum())
    noisy = int((suspicions(made, examples.noisy) > made.threshold).sum())
    against = tuple(fitted.against(foe) for foe in examples.foes)
    points, fooled = (joint or Joint())(made, examples, Rng(derive_seed(examples.seed, detector), len(examples.x)))
    last = suspicions(made, points)
    accepted = examples.right & torch.from_numpy(clean <= made.threshold)
    through = int((accepted & fooled & torch.from_numpy(last <= made.threshold)).sum())
    return Examined(
        detector=detector,
        clean=rate("detection.false_alarms", over, len(clean)),
        noisy=rate("detection.false_alarms_noise", noisy, len(clean)),
        against=against,
        joint=_against("joint", fitted.told, made.threshold, clean, last[fooled.numpy()]),
        passed=rate("detection.passed", through, int(accepted.sum())),
    )


@dataclass
class _Fitted:
    """Detectors of one kind, each fitted without the attack that it is tried on."""

    id: str
    target: Target
    data: Data
    examples: Examples
    settings: dict[str, Any]
    _made: dict[str, WatchedTarget] = field(default_factory=dict)

    @property
    def _attacks(self) -> list[str]:
        return [name.strip() for name in str(self.settings.get("attacks", "")).split(",") if name.strip()]

    @property
    def told(self) -> str:
        return ", ".join(self._attacks) or UNFITTED

    def without(self, attack: str) -> tuple[WatchedTarget, str]:
        """A detector that has not learnt from `attack`, and what it has learnt from."""
        kept = ",".join(name for name in self._attacks if name != attack)
        if kept not in self._made:
            own = {**self.settings, "attacks": kept} if self._attacks else self.settings
            kind = DEFENCES.load(self.id)
            assert "policy" in {part.name for part in fields(cast(Any, kind))}
            method: Any = configure(kind, {**own, "policy": "reject"})
            rng = Rng(derive_seed(self.examples.seed, "fit", self.id))
            self._made[kept] = method(self.target, self.data, rng, self.examples.context).target
        return self._made[kept], kept.replace(",", ", ") or UNFITTED

    def against(self, foe: Foe) -> Against:
        made, told = self.without(foe.id)
        fooled = self.examples.fooled[foe.name]
        bad = suspicions(made, self.examples.changed[foe.name][fooled])
        return _against(foe.name, told, made.threshold, suspicions(made, self.examples.x), bad)


@torch.no_grad()
def suspicions(made: WatchedTarget, x: Tensor) -> np.ndarray:
    """How suspicious inputs `[n, ...]` are, float32 `[n]`, a part at a time."""
    return torch.cat([made.suspicion(part).cpu() for part in x.split(256)]).numpy() if len(x) else np.zeros(0)


def _against(attack: str, fitted_on: str, threshold: float, clean: np.ndarray, bad: np.ndarray) -> Against:
    scores, positive = np.concatenate([clean, bad]), np.arange(len(clean) + len(bad)) >= len(clean)
    hits = hits_at_fpr(scores, positive, RATE) if len(bad) else 0
    return Against(
        attack=attack,
        fitted_on=fitted_on,
        fooled=len(bad),
        auc=area("detection.auc", scores, positive),
        caught=rate("detection.tpr_at_fpr_5pct", hits, len(bad)),
        refused=rate("detection.refused", int((bad > threshold).sum()), len(bad)),
    )
