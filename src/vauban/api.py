"""The Python face: the same functions that the command line calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from vauban.attacks.catalog import ATTACKS
from vauban.audits import runner
from vauban.audits.compare import compare as compare_logs
from vauban.audits.config import seconds
from vauban.audits.explaining import ExplainResult, Question
from vauban.audits.explaining import explain as explain_rows
from vauban.audits.gate import Gate
from vauban.audits.plan import Request, check_threat
from vauban.audits.profiles import profile as profile_of
from vauban.audits.progress import Watcher
from vauban.audits.stored import read_log
from vauban.core.attack import Perturbed
from vauban.core.data import Data
from vauban.core.target import Target
from vauban.data.load import load_data
from vauban.domains.catalog import modality, settle
from vauban.engine import evasion
from vauban.engine.case import Case, Check
from vauban.engine.gate import refusal
from vauban.schema.errors import BadOption, NotOffered
from vauban.schema.log import AuditLog, Comparison, Cost, Suppression
from vauban.schema.threat import ThreatModel
from vauban.targets.load import load_target, target

if TYPE_CHECKING:
    from vauban.audits.harden import After

__all__ = [
    "AttackResult",
    "ExplainResult",
    "attack",
    "audit",
    "compare",
    "explain",
    "harden",
    "load_data",
    "load_target",
    "target",
]


@dataclass(frozen=True)
class AttackResult:
    """What one evasion attack came to, verified by a fresh look at the model."""

    artefact: Perturbed
    """`.x` `[n, ...]`: the adversarial input where there is one, the clean input elsewhere."""
    status: np.ndarray
    """`[n]` of the words broken, held, certified, unknown. Inputs that are misread unchanged are broken at distance 0."""
    margin: np.ndarray
    """`[n]` of the goal at `artefact.x`; above 0 where it is reached."""
    distance: np.ndarray
    """`[n]` float64, in the units of the threat."""
    cost: Cost
    outcomes: str
    """One letter a sample, as in `Attempt.outcomes`."""


def attack(
    id: str,
    target: Any,
    x: Any,
    y: Any,
    *,
    threat: str | ThreatModel = "linf:0.1",
    seed: int = 0,
    train: tuple[Any, Any] | None = None,
    profile: str = "standard",
    batch_size: int | None = None,
    **settings: Any,
) -> AttackResult:
    """One evasion attack on inputs of one's own.

    Args:
        id: an id of the family evasion, e.g. `evasion.apgd`; `evasion.` may be left out.
        target: what `load_target` or `vauban.target` gives, a path, a module, an estimator.
        x: clean inputs `[n, ...]` in the units of the data; numpy or torch.
        y: true classes `[n]` (true values in a regression).
        threat: the room, e.g. `linf:8/255`.
        seed: the same seed gives the same numbers, whatever the batch size.
        train: `(x_train, y_train)`, for attacks that need data of the same kind.
        profile: settings to begin with; `settings` override them.
        batch_size: samples at a time.
        settings: hyper-parameters of the attack, e.g. `steps=100`.

    Raises NotOffered where the target cannot be attacked so, BadThreat, BadOption, UnknownName, BadData.
    """
    name = id if "." in id else f"evasion.{id}"
    card = ATTACKS.load(name).card
    if card.family != "evasion":
        raise BadOption(f"{name} does not move inputs: run it with vauban.audit(..., include=[{name!r}]).")
    model = threat if isinstance(threat, ThreatModel) else ThreatModel.of(threat)
    x_train, y_train = train or (None, None)
    data = Data(x_train, y_train, x, y)
    ready = _ready(as_target(target), data)
    case = Case(
        target=ready,
        data=data,
        domain=ready.domain,
        modality=modality(str(ready.domain.kind)),
        seed=seed,
        profile=profile_of(profile).id,
        batch_size=batch_size,
    )
    check_threat(model, case)
    no = refusal(card, model, case)
    if no is not None:
        raise NotOffered(f"{name} cannot be made here: {no.reason}.")
    run = evasion.run(Check(id=name, threat=model, settings=settings), case)
    return AttackResult(
        artefact=Perturbed(run.x),
        status=np.array(run.status),
        margin=run.margin.detach().cpu().numpy(),
        distance=run.distance.detach().cpu().numpy(),
        cost=run.cost,
        outcomes=run.outcomes,
    )


def explain(
    target: Any,
    data: Any,
    *,
    rows: int | Sequence[int] = 0,
    method: str | None = None,
    baseline: str | None = None,
    about: int | None = None,
    attack: str | None = None,
    threat: str | ThreatModel | None = None,
    attack_settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    profile: str = "standard",
    out: str | Path | None = None,
    **settings: Any,
) -> ExplainResult:
    """Which parts of some test rows a model's answers rest on, and what an attack changes about it.

    Args:
        target: as for `audit`.
        data: as for `audit`; the test rows are explained.
        rows: numbers of test rows, from 0.
        method: `integrated_gradients`, `smooth_grad`, `occlusion` or `grad_cam`; the first that applies where None.
        baseline: an input that says nothing: `zero`, `low` or `mean`; `low` for pictures and `mean` otherwise where None.
        about: the class to explain; the model's own answer at each input where None.
        attack: an evasion attack on the same rows; `evasion.pgd` where only a threat is given, none where neither is.
        threat: the room, e.g. `linf:0.1`; the first of the defaults where only an attack is given.
        attack_settings: hyper-parameters of the attack.
        seed: the same seed gives the same numbers.
        profile: settings of the attack to begin with.
        out: a new folder for explanation.html, .json and .npz; None keeps nothing on disk.
        settings: of the method, e.g. `steps=100`.

    Gives `.attribution` `[n, ...]`, with an attack `.changed`, `.attribution_changed` and `.difference`, and `.told`.
    Raises BadData for rows that there are not, RunFolder where `out` is there already, NotOffered, UnknownName,
    BadOption, BadThreat.
    """
    asked = Question(
        target=as_target(target),
        data=as_data(data),
        rows=(rows,) if isinstance(rows, int) else tuple(rows),
        method=method,
        settings=settings,
        baseline=baseline,
        about=about,
        attack=attack if attack is None or "." in attack else f"evasion.{attack}",
        attack_settings=attack_settings or {},
        threat=ThreatModel.of(threat) if isinstance(threat, str) else threat,
        seed=seed,
        profile=profile,
    )
    return explain_rows(asked, out)


def _ready(found: Target, data: Data) -> Target:
    """The target with its domain completed from the data and, for the number of classes, from a few answers."""
    ready = found.settled(settle(found.domain, data))
    domain = ready.domain
    if domain.task == "regression" or domain.classes is not None:
        return ready
    with torch.no_grad():
        values = ready.forward(data.x_test[:64]).values
    classes = values.shape[1] if values.dim() == 2 else 1 + int(max(values.max(), data.y_test.max()))
    return ready.settled(replace(domain, classes=int(classes)))


def audit(
    target: Any,
    data: Any,
    *,
    threats: Sequence[str | ThreatModel] = (),
    out: str | Path | None = None,
    watcher: Watcher | None = None,
    **how: Any,
) -> AuditLog:
    """Audit a model through all families of threat that what is given allows.

    Args:
        target: what `load_target` or `vauban.target` gives, a path, a module, an estimator, a callable.
        data: `Data`, a path or `demo:` name, `(x, y)` or `(x_train, y_train, x_test, y_test)`.
        threats: rooms for evasion, e.g. `["linf:0.1", "l2:1"]`; `audits.plan.default_threats` where empty.
        out: the run folder; the same call on the same folder resumes. None keeps nothing on disk.
        watcher: told what happens.
        how: keyword arguments of `request`: include, exclude, profile, seed, samples, time_limit and so on.

    Raises a UsageError for what cannot be used, DiskFull, RunFolder.
    """
    return runner.audit(request(target, data, threats=threats, **how), out, watcher)


def harden(
    target: Any,
    data: Any,
    *,
    defence: str,
    threat: str | ThreatModel | None = None,
    out: str | Path | None = None,
    watcher: Watcher | None = None,
    tensorboard: str | Path | None = None,
    **how: Any,
) -> After:
    """Defend a model, and audit it before and after on the same samples.

    Args:
        target: as for `audit`.
        data: as for `audit`; most defences need training rows.
        defence: id of a defence, e.g. `train.pgd`; its settings stand in `settings={"train.pgd": {...}}`.
        threat: the room that is defended, and attacked; the first of the defaults where None.
        out: the run folder; the same call on the same folder resumes. None keeps nothing on disk.
        watcher: told what happens.
        tensorboard: folder for a diary of the training; None for none.
        how: keyword arguments of `request`.

    Gives `.target` (the given one is never changed), `.comparison`, `.log`, `.before`. In a script that `torchrun` or
    `accelerate launch` started, all processes call this, train together and get the same; the first one alone writes and audits.
    """
    from vauban.audits.assist import assist
    from vauban.audits.harden import harden as carry_out
    from vauban.integrations.accelerate import crew
    from vauban.integrations.tensorboard import diary

    asked = request(target, data, threats=() if threat is None else (threat,), **how)
    together = crew(watcher.note if watcher else lambda text: None)
    if together.rank:
        made = assist(asked, defence, together)
        return replace(together.same(lambda: cast("After", None)), target=made)
    with diary(tensorboard) as pages:
        after = carry_out(asked, defence, out, watcher, together, pages)
    # a target may hold what cannot be sent, and every process has made it
    return replace(together.same(lambda: replace(after, target=cast(Target, None))), target=after.target)


def request(
    target: Any,
    data: Any,
    *,
    threats: Sequence[str | ThreatModel] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] | Mapping[str, str] = (),
    profile: str = "standard",
    seed: int = 0,
    samples: int | None = None,
    batch_size: int | None = None,
    time_limit: float | str | None = None,
    query_limit: int | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    suppressions: Sequence[Suppression] = (),
    gates: Sequence[Gate] = (),
    fail_on: str = "high",
    formats: Sequence[str] = ("json", "html"),
) -> Request:
    """What an audit is asked to do.

    Args:
        include: attacks or families; all where empty.
        exclude: attacks or families, or a mapping of these to reasons.
        profile: `smoke`, `standard` or `deep`.
        seed: the same seed gives the same numbers.
        samples: test rows that are audited; the profile's own number where None.
        batch_size: samples at a time; results do not depend on it.
        time_limit: seconds, or `10m`; what is left then is inconclusive.
        query_limit: model evaluations in all.
        settings: hyper-parameters by attack or defence: `{"evasion.pgd": {"steps": 100}}`.
        suppressions: accepted findings, with reason, owner and date.
        gates: thresholds of one's own, which count into the verdict.
        fail_on: the lowest severity that fails the audit, or `never`.
        formats: of the report.
    """
    words = [include] if isinstance(include, str) else include
    left_out = [exclude] if isinstance(exclude, str) else exclude
    return Request(
        target=as_target(target),
        data=as_data(data),
        target_spec=target if isinstance(target, str) else "",
        data_spec=data if isinstance(data, str) else "",
        threats=tuple(t if isinstance(t, ThreatModel) else ThreatModel.of(t) for t in threats),
        include=tuple(words),
        exclude=dict(left_out) if isinstance(left_out, Mapping) else dict.fromkeys(left_out, "left out by the caller"),
        profile=profile,
        seed=seed,
        samples=samples,
        batch_size=batch_size,
        time_limit=_time(time_limit),
        query_limit=query_limit,
        settings=_told(settings or {}),
        suppressions=tuple(suppressions),
        gates=tuple(gates),
        fail_on=fail_on,
        formats=tuple(formats),
    )


def _told(settings: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    """The settings, all of which can be written into a report."""
    for check, chosen in settings.items():
        for name, value in chosen.items():
            try:
                json.dumps(value)
            except TypeError:
                raise BadOption(
                    f"{check}: {name} holds what no report can tell, a {type(value).__name__}: an audit takes numbers and words "
                    "only; give it to vauban.attack, which takes anything."
                ) from None
    return settings


def _time(value: float | str | None) -> float | None:
    try:
        return cast("float | None", seconds(value))
    except ValueError as error:
        raise BadOption(f"time_limit: {error}.") from None


def compare(before: AuditLog | str | Path, after: AuditLog | str | Path) -> Comparison:
    """What changed from one audit to another, with an interval for every difference; logs or run folders."""
    first, second = (log if isinstance(log, AuditLog) else read_log(Path(log)) for log in (before, after))
    return compare_logs(first, second)


def as_target(given: Any) -> Target:
    """A target from whatever stands for one."""
    return load_target(given) if isinstance(given, str | Path) else target(given)


def as_data(given: Any) -> Data:
    """Data from whatever stands for it; raises BadData."""
    return load_data(str(given) if isinstance(given, Path) else given)
