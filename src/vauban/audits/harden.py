"""Defend a model, and audit it before and after on the same samples with the same seeds.

The run folder is that of the audit after; the audit before lies in `before/`, the new model beside the report:

    DIR/hardening.json     what this folder is: which defence of which model
    DIR/training.safetensors  while the defence trains: all that its next epoch depends on
    DIR/trials.json        where the defence was chosen by experiment: the trials and the choice
    DIR/before/            a run folder of its own
    DIR/model.safetensors  the weights of the defended model
    DIR/model.skops ...    the defended model in the format that it came in, where there is one that holds it
    DIR/model.json         facts about it, and how to load it
    DIR/report.json ...    the audit after, with `before_after`

The same call on the same folder resumes: each audit by its journal, and a model that was saved is not trained again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vauban.audits.alarms import alarms
from vauban.audits.choose import AUTO, Auto, choose, one_process, spent
from vauban.audits.compare import compare
from vauban.audits.effects import old_examples, slices, told
from vauban.audits.fitting import instead, unusable
from vauban.audits.kept import FACTS, WEIGHTS, as_json, keep, own, read, weights
from vauban.audits.machine import version
from vauban.audits.plan import Request, default_threats
from vauban.audits.progress import Quiet, Watcher
from vauban.audits.runner import Ready, carry_out, prepare, write_reports
from vauban.audits.store import NAME, guarded, write_whole
from vauban.core.crew import ALONE, Crew
from vauban.core.defence import Defence, Diary, Hardened, Restorable
from vauban.core.registry import configure
from vauban.core.rng import Rng, derive_seed
from vauban.core.target import Target
from vauban.defences.catalog import DEFENCES
from vauban.engine.batching import answers
from vauban.engine.context import HouseContext
from vauban.schema.cards import DefenceCard
from vauban.schema.errors import CorruptFile, NotOffered, RunFolder
from vauban.schema.log import AuditLog, Choice, Comparison, Curve
from vauban.schema.threat import ThreatModel

MARK, BEFORE = "hardening.json", "before"
TRAINING = "training.safetensors"


@dataclass(frozen=True)
class After:
    """A hardened model and what became of it."""

    target: Target
    comparison: Comparison
    log: AuditLog
    """The audit after, with `before_after`."""
    before: AuditLog
    facts: dict[str, Any]
    """What the defence did."""


def harden(
    request: Request,
    defence: str,
    out: Path | str | None,
    watcher: Watcher | None = None,
    crew: Crew = ALONE,
    diary: Diary | None = None,
) -> After:
    """Harden a model.

    Args:
        request: the audit that is made before and after; the defence's own settings stand in `settings[defence]`, and
            its first threat is the one that the defence trains against.
        defence: id of a defence, or `auto` for a choice by experiment (`audits.choose`).
        out: the run folder, new or of the same hardening, which is then resumed; None keeps nothing on disk.
        watcher: told what happens.
        crew: the processes that train together, of which this is the first; the others are in `audits.assist`.
        diary: what is written down of the training.

    Raises UnknownName or BadOption for the defence and its settings, NotOffered where it cannot be used on this model,
    RunFolder where the folder holds something else, CorruptFile where a saved model is damaged, and what an audit raises.
    """
    if out is not None:
        return _harden(request, defence, Path(out), watcher or Quiet(), crew, diary)
    with tempfile.TemporaryDirectory(prefix="vauban-") as folder:
        return _harden(request, defence, Path(folder), watcher or Quiet(), crew, diary)


def begun(request: Request, id: str) -> tuple[Defence, Ready, ThreatModel]:
    """The defence, the audit that is made before and after, and the threat that is defended. Raises what cannot be used."""
    method: Defence = configure(DEFENCES.load(id), dict(request.settings.get(id, {})))
    request = knowing(request, method.card)
    ready = prepare(request)
    threat = _threat(request, ready)
    _refuse(method.card, ready)
    return method, ready, threat


def _harden(request: Request, defence: str, folder: Path, watcher: Watcher, crew: Crew, diary: Diary | None) -> After:
    asked, choice = dict(request.settings.get(defence, {})), None
    if defence == AUTO:
        choice, request, identity = _chosen(request, folder, watcher, crew)
        defence = choice.defence
    method, ready, threat = begun(request, defence)
    card, settings, request = method.card, dict(request.settings.get(defence, {})), ready.request
    if choice is None:
        identity = _identity(ready, defence, asked, threat)
    _look(folder, identity)
    # Defended first: what makes the defence impossible is told at once, not after an audit.
    claim = partial(_claim, folder, identity)
    context = HouseContext.of(ready.case, threat, watcher.step, _Interrupted(folder, claim), crew, diary)
    made = _made(method, ready, context, folder, watcher)
    claim()
    keep(made, card, ready.case.target, folder)
    (folder / TRAINING).unlink(missing_ok=True)
    watcher.note(f"before: {ready.case.target.id}")
    before = carry_out(ready, folder / BEFORE, watcher)
    watcher.note(f"after: {made.target.id}")
    options = _again(request, settings)
    again = prepare(replace(request, target=made.target, defence=card.id, options=options))
    log = carry_out(again, folder, watcher)
    old = old_examples(before, log, folder / BEFORE, again.case.target, ready)
    seen = alarms((before, log), (folder / BEFORE, folder), made.target, ready.case.data.x_test, context)
    comparison = _compared(before, log, card, made, {**_answers(ready, again), **old, **seen.facts})
    more = {
        "choice": choice,
        "slices": slices(before, log, ready, threat.id),
        "caveats": [*comparison.caveats, *told(old), *seen.told],
        "curves": [*comparison.curves, *seen.curves],
    }
    comparison = comparison.model_copy(update=more)
    log = log.model_copy(update={"before_after": comparison})
    with guarded(folder):
        write_reports(log, folder, request)
    return After(made.target, comparison, log, before, made.facts)


def _chosen(request: Request, folder: Path, watcher: Watcher, crew: Crew) -> tuple[Choice, Request, dict[str, Any]]:
    """The choice made by experiment, the request as if it had been named, and what the folder is marked with."""
    one_process(crew)
    asked = dict(request.settings.get(AUTO, {}))
    how = configure(Auto, asked)
    ready = prepare(replace(request, settings={k: v for k, v in request.settings.items() if k != AUTO}))
    threat = _threat(request, ready)
    identity = _identity(ready, AUTO, asked, threat)
    _look(folder, identity)
    _claim(folder, identity)
    choice = choose(how, ready, threat, folder, watcher)
    return choice, _decided(request, choice), identity


def _decided(request: Request, choice: Choice) -> Request:
    """The request as if the chosen defence had been named, and with the time that is left."""
    others = {k: v for k, v in request.settings.items() if k != AUTO}
    return replace(request, settings={**others, choice.defence: choice.settings}, time_limit=spent(request.time_limit))


def knowing(request: Request, card: DefenceCard) -> Request:
    """The request with the attacks that know the defence, at the settings that make them so: before and after alike.

    What the user excluded stays excluded, and his own settings stay; the comparison then says what is missing.
    """
    whole = (*request.include, *(() if request.include else [a.partition(".")[0] for a in card.adaptive]))
    extra = [a for a in card.adaptive if a not in whole and a.partition(".")[0] not in whole]
    settings = {k: dict(v) for k, v in request.settings.items() if k != card.id}
    for attack in card.adaptive:
        if attack not in (*request.include, *extra):
            settings.setdefault(attack, {})  # named, so that no profile leaves it out
    for attack, needed in card.adaptive_settings.items():
        settings[attack] = {**needed, **settings.get(attack, {})}
    return replace(request, include=(*request.include, *extra), settings=settings)


def _threat(request: Request, ready: Ready) -> ThreatModel:
    return (request.threats or default_threats(ready.case.domain, ready.case.data))[0]


def _again(request: Request, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Words that a command needs to make the same defence again."""
    return (*request.options, *(word for name, value in settings.items() for word in ("--set", f"{name}={value}")))


def _refuse(card: DefenceCard, ready: Ready) -> None:
    """Raise NotOffered where it is already known that the defence cannot be used here, naming those that can."""
    why = unusable(card.id, ready)
    if why:
        raise NotOffered(f"{card.id} {why}: {instead(ready)}.")


def _identity(ready: Ready, id: str, settings: Mapping[str, Any], threat: ThreatModel) -> dict[str, Any]:
    """What the defended model depends on."""
    return {
        "defence": id,
        "settings": dict(settings),
        "threat": threat.id,
        "target": ready.case.target.sha256(),
        "data": ready.request.data.sha256(),
        "seed": ready.request.seed,
        "vauban": version(),
    }


def _look(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raise RunFolder where the folder is something else's; nothing is written."""
    if folder.exists() and not folder.is_dir():
        raise RunFolder(f"The output {folder} is a file: name a folder, new or of an earlier run.")
    if not folder.exists():
        return
    with guarded(folder):
        names = sorted(entry.name for entry in folder.iterdir())
    if MARK not in names:
        if names:
            raise RunFolder(
                f"The output folder {folder} holds something that is not a hardening ({', '.join(names[:3])}): name "
                "another folder; nothing was written."
            )
        return
    before, now = read(folder / MARK), json.loads(as_json(identity))
    differ = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
    if differ:
        told = "; ".join(f"{k} was {str(before.get(k))[:40]}, now {str(now.get(k))[:40]}" for k in differ)
        raise RunFolder(
            f"The output folder {folder} holds another hardening ({told}): name another folder, or repeat that run's "
            "command to resume it; nothing was written."
        )


def _claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Mark the folder as this hardening's own, and as a run: an empty file is an empty journal."""
    with guarded(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / MARK, as_json(identity))
        (folder / NAME).touch()


@dataclass(frozen=True)
class _Interrupted:
    """What a training left in the folder, which is claimed with the first of it."""

    folder: Path
    claim: Callable[[], None]

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        if not (self.folder / MARK).exists():
            self.claim()
        with guarded(self.folder):
            write_whole(self.folder / TRAINING, save(own(tensors), {"facts": json.dumps(facts)}))

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        path = self.folder / TRAINING
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["facts"])  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{path} cannot be read ({error}): delete it to train from the beginning.") from error


def _made(method: Defence, ready: Ready, context: HouseContext, folder: Path, watcher: Watcher) -> Hardened:
    """The defended target: put together again from what was saved, else made."""
    state = context.crew.same(partial(_saved, method, folder))
    if state is None:
        watcher.note(f"defending: {method.card.name}")
        return defended(method, ready, context)
    kept = read(folder / FACTS)
    watcher.note(f"the defended model was made before: reading {folder / WEIGHTS}")
    try:
        restored = restore(method, ready, state)
    except (RuntimeError, ValueError) as error:
        raise CorruptFile(f"The saved model {folder / WEIGHTS} does not fit: name another folder.") from error
    if restored.sha256() != kept.get("sha256"):
        raise CorruptFile(f"{folder / WEIGHTS} is not the model that {FACTS} describes: name another folder.")
    return Hardened(restored, dict(kept["facts"]), tuple(kept["caveats"]))


def _saved(method: Defence, folder: Path) -> dict[str, Tensor] | None:
    """The weights of the defended model, where it was made before."""
    before = isinstance(method, Restorable) and (folder / MARK).exists() and (folder / FACTS).exists()
    return weights(folder / WEIGHTS) if before else None


def restore(method: Defence, ready: Ready, state: Mapping[str, Tensor]) -> Target:
    """The defended target around weights that were saved."""
    assert isinstance(method, Restorable), "nothing is saved of a defence that cannot be restored"
    return method.restore(ready.case.target, ready.request.data, state)


def defended(method: Defence, ready: Ready, context: HouseContext) -> Hardened:
    """Make the defence."""
    rng = Rng(derive_seed(ready.request.seed, "harden", method.card.id))
    made = method(ready.case.target, ready.request.data, rng, context)
    return replace(made, target=made.target.settled(ready.case.domain))


def _answers(before: Ready, after: Ready) -> dict[str, float]:
    """How good each model is on the audited rows: accuracy, or mean squared error in a regression."""
    x, y = before.case.data.x_test, before.case.data.y_test
    found = {}
    for when, ready in (("before", before), ("after", after)):
        labels = answers(ready.case.target, x).labels
        regression = ready.case.domain.task == "regression"
        error = (labels - y.to(labels.dtype)).square() if regression else (labels == y)
        if (refusal := ready.case.domain.refusal) is not None:
            found[f"refused_clean_{when}"] = float((labels == refusal).to(torch.float64).mean())
        found[f"clean_{'error' if regression else 'accuracy'}_{when}"] = float(error.to(torch.float64).mean())
    return found


def _compared(
    before: AuditLog, log: AuditLog, card: DefenceCard, made: Hardened, answers: Mapping[str, float]
) -> Comparison:
    """The comparison with what a reader must know: the price in clean accuracy, and whether the attacks knew the defence."""
    plain = compare(before, log, card.id)
    assessed = {a.check for a in log.attempts if a.state == "assessed"}
    blind = [a for a in card.adaptive if a not in assessed]
    caveats = [*made.caveats, _price(answers, log.data.samples), *plain.caveats]
    if card.adaptive and len(blind) == len(card.adaptive):
        caveats.append(
            f"Not attacked adaptively: none of the attacks that know this defence was assessed ({', '.join(blind)}), so "
            "nothing here shows that it holds."
        )
    elif blind:
        caveats.append(f"Of the attacks that know this defence, not assessed: {', '.join(blind)}.")
    return plain.model_copy(
        update={
            "adaptive": [a for a in card.adaptive if a in assessed],
            "caveats": caveats,
            "facts": {**plain.facts, **made.facts, **answers},
            "curves": _security_first(plain.curves, card),
        }
    )


def _price(answers: Mapping[str, float], samples: int) -> str:
    (name, first), (_, second) = sorted(
        (pair for pair in answers.items() if pair[0].startswith("clean_")), reverse=True
    )
    turned = answers.get("refused_clean_after", 0.0)
    if "error" in name:
        right = "Accuracy is the share of predictions within half a standard deviation of the labels, unless tolerance was set."
        return f"Mean squared error on {samples} clean inputs: {first:.4g} before, {second:.4g} after. {right}"
    lost = first - second
    words = f"{lost:.1%} lost" if lost > 0 else "nothing lost"
    alarms = f"; {turned:.1%} are refused, which counts as wrong" if "refused_clean_after" in answers else ""
    return f"Accuracy on {samples} clean inputs: {first:.1%} before, {second:.1%} after ({words}{alarms})."


def _security_first(curves: list[Curve], card: DefenceCard) -> list[Curve]:
    """One security curve before and after leads, named `security_curve`: that of the first adaptive attack that has one."""
    security = [c for c in curves if c.id.endswith(".security_curve")]
    if not security:
        return curves
    known = [c for a in card.adaptive for c in security if c.id.startswith(f"{a}.")]
    first = (known or security)[0]
    return [first.model_copy(update={"id": "security_curve"}), *(c for c in curves if c is not first)]
