"""Explain answers to some test rows, and to the same rows attacked; and write what was found."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vauban.attacks.catalog import ATTACKS
from vauban.audits.plan import check_threat, default_threats
from vauban.audits.profiles import profile as profile_of
from vauban.audits.store import guarded
from vauban.core.data import Data
from vauban.core.target import Domain, Target
from vauban.domains.catalog import modality, settle
from vauban.engine import evasion
from vauban.engine.attributing import (
    Attributed,
    attribute,
    baseline,
    baseline_name,
    choose,
    configured,
    picked,
    these_rows,
)
from vauban.engine.batching import answers
from vauban.engine.case import Case, Check
from vauban.engine.exhibits import word
from vauban.engine.gate import refusal
from vauban.engine.preflight import accepted
from vauban.reports.explanation import HTML, render
from vauban.reports.write import replace
from vauban.schema.errors import BadData, BadOption, NotOffered, RunFolder
from vauban.schema.explanation import Answer, ExplainedRow, Explanation, Feature
from vauban.schema.threat import ThreatModel

LARGEST = 10
"""Features told of each row."""
USUAL_ATTACK = "evasion.pgd"
ROUGH = 0.05
"""A gap of completeness above this share of all that is attributed is told."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Which answers to explain, and how."""

    target: Target
    data: Data
    rows: tuple[int, ...]
    """Test rows, counted from 0."""
    method: str | None = None
    """A name of `parts.attribution.METHODS`; the first that applies where None."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the method."""
    baseline: str | None = None
    about: int | None = None
    """A class; the model's own answer at each input where None."""
    attack: str | None = None
    """An evasion attack; none is made where neither this nor a threat is given."""
    attack_settings: Mapping[str, Any] = field(default_factory=dict)
    threat: ThreatModel | None = None
    seed: int = 0
    profile: str = "standard"


@dataclass(frozen=True)
class ExplainResult:
    """What some answers rest on."""

    told: Explanation
    """Everything but the arrays, as it is written to explanation.json."""
    x: np.ndarray
    """`[n, ...]`: the clean inputs."""
    attribution: np.ndarray
    """`[n, ...]`."""
    changed: np.ndarray | None = None
    """`[n, ...]`: the adversarial input where one was found, the clean one elsewhere; None where nothing was attacked."""
    attribution_changed: np.ndarray | None = None

    @property
    def difference(self) -> np.ndarray | None:
        """The attribution after the attack less that before, `[n, ...]`."""
        return None if self.attribution_changed is None else self.attribution_changed - self.attribution


@dataclass(frozen=True)
class Attacked:
    """The same rows after an attack."""

    x: Tensor
    found: list[bool]
    """An example was found, and it survives saving."""
    words: list[str]
    check: Check


def explain(asked: Question, out: str | Path | None = None) -> ExplainResult:
    """Explain, and write `explanation.html`, `.json` and `.npz` into the folder `out` where one is given.

    Raises BadData for rows that there are not, RunFolder where `out` is there already, UnknownName, BadOption, NotOffered
    and BadThreat for what cannot be done so, and the errors of `engine.preflight` where model and data do not fit.
    """
    folder = None if out is None else fresh(Path(out))
    data = _rows(asked)
    target, _ = accepted(asked.target, asked.data, settle(asked.target.domain, asked.data))
    name, note = choose(asked.method, target, target.domain)
    method = configured(name, asked.settings if name == asked.method or not asked.method else {})
    start, domain = baseline(asked.baseline, asked.data, target.domain), target.domain
    attacked = _attack(asked, target, data)

    def of(x: Tensor) -> Attributed:
        return attribute(target, x, method, start, domain=domain, ids=data.ids, seed=asked.seed, about=asked.about)

    before = of(data.x_test)
    after = of(attacked.x) if attacked else None
    told = Explanation(
        target=target.id,
        sha256=target.sha256(),
        data=asked.data.id,
        kind=str(domain.kind),
        method=name,
        settings=dataclasses.asdict(method),  # type: ignore[call-overload]
        baseline=baseline_name(asked.baseline, domain),
        about=asked.about,
        attack=attacked.check.id if attacked else None,
        threat=attacked.check.threat.id if attacked else None,
        seed=asked.seed,
        notes=[words for words in (note, _rough(before, after)) if words],
        rows=_told(asked, target, data, attacked, before, after),
    )
    result = ExplainResult(
        told,
        data.x_test.numpy(),
        before.x.cpu().numpy(),
        attacked.x.cpu().numpy() if attacked else None,
        after.x.cpu().numpy() if after else None,
    )
    if folder is not None:
        write(result, folder)
    return result


def fresh(folder: Path) -> Path:
    """The folder itself, where nothing is there yet. Raises RunFolder."""
    there = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if there:
        what = "holds something" if folder.is_dir() else "is a file"
        raise RunFolder(f"{folder} {what} and was left as it was: give --out the name of a new folder.")
    return folder


def write(result: ExplainResult, folder: Path) -> None:
    """The page, the document and the arrays; each file whole or not at all."""
    told, buffer = result.told, io.BytesIO()
    arrays = {
        "rows": np.array([row.row for row in told.rows]),
        "x": result.x,
        "attribution": result.attribution,
        "changed": result.changed,
        "attribution_changed": result.attribution_changed,
    }
    np.savez_compressed(buffer, **{name: value for name, value in arrays.items() if value is not None})  # type: ignore[arg-type]
    with guarded(folder):
        folder.mkdir(parents=True, exist_ok=True)
        replace(folder / "explanation.npz", buffer.getvalue())
        replace(folder / "explanation.json", (told.model_dump_json(indent=1) + "\n").encode())
        replace(folder / HTML, render(told).encode())


def _rows(asked: Question) -> Data:
    """The data with the rows asked for alone, which keep their numbers."""
    count = len(asked.data.x_test)
    if not asked.rows:
        raise BadOption("No rows: name test rows to explain, such as --input 0,3.")
    for row in asked.rows:
        if not 0 <= row < count:
            raise BadData(f"There is no test row {row}: the data has {count}, numbered from 0 to {count - 1}.")
    return these_rows(asked.data, list(asked.rows))


def _attack(asked: Question, target: Target, data: Data) -> Attacked | None:
    """The rows attacked and verified; None where nobody asked for it. Raises NotOffered where it cannot be made."""
    if asked.attack is None and asked.threat is None:
        return None
    domain = target.domain
    card = ATTACKS.load(asked.attack or USUAL_ATTACK).card
    if card.family != "evasion":
        raise BadOption(f"{card.id} does not move inputs: choose an evasion attack, such as {USUAL_ATTACK}.")
    case = Case(
        target=target,
        data=data,
        domain=domain,
        modality=modality(str(domain.kind)),
        seed=asked.seed,
        profile=profile_of(asked.profile).id,
    )
    threat = asked.threat or next(
        (t for t in default_threats(domain, asked.data) if t.room is not None and t.room.space in card.spaces),
        ThreatModel.of("linf:0.1"),
    )
    check_threat(threat, case)
    no = refusal(card, threat, case)
    if no is not None:
        raise NotOffered(f"{card.id} cannot be made here: {no.reason}.")
    # what counts as another answer of a regression is told by all labels, not by those of the rows asked for
    apart = {} if domain.task != "regression" else {"tolerance": _tolerance(asked.data)}
    check = Check(id=card.id, threat=threat, settings={**apart, **asked.attack_settings})
    run = evasion.run(check, case)
    found = [o == "b" and bool(s) for o, s in zip(run.outcomes, run.verified.survives, strict=True)]
    mask = torch.tensor(found).reshape(-1, *[1] * len(data.shape))
    words = [_status(*one) for one in zip(run.outcomes, found, strict=True)]
    return Attacked(torch.where(mask, run.verified.stored, data.x_test), found, words, check)


def _tolerance(data: Data) -> float:
    """Half a standard deviation of the labels, as in an audit."""
    y = data.y_train if data.has_train else data.y_test
    return 0.5 * float(y.to(torch.float64).std())


OUTCOMES = {
    "w": "wrong already, so that nothing was attacked",
    "b": "broken, but not once it is saved, so that nothing is shown",
    "h": "held: no example was found",
    "c": "certified: there is no example",
    "u": "unknown: the attack ended early",
}


def _status(letter: str, found: bool) -> str:
    return "broken" if found else OUTCOMES[letter]


def _rough(before: Attributed, after: Attributed | None) -> str:
    """A warning where attributions miss their sum by much."""
    most = max((a.missed or 0.0 for a in (before, after) if a is not None), default=0.0)
    if most <= ROUGH:
        return ""
    return (
        f"The attributions miss what they should sum to by up to {100 * most:.3g} % of what is attributed: take more points "
        "(--method integrated_gradients --set steps=200); where that does not help, gradients tell little about this model."
    )


def _told(
    asked: Question, target: Target, data: Data, attacked: Attacked | None, before: Attributed, after: Attributed | None
) -> list[ExplainedRow]:
    """Each row in words and pictures."""
    domain = target.domain
    names = feature_names(domain, data.shape)
    said = _answers(target, data.x_test, before, asked.about)
    said_after = _answers(target, attacked.x, after, asked.about) if attacked and after else said
    rows = []
    for i, row in enumerate(asked.rows):
        one = slice(i, i + 1)
        moved = after if after is not None and attacked is not None and attacked.found[i] else None
        changed = attacked.x[one] if moved and attacked else None
        clean, then = said[i], said_after[i] if moved else None
        title = f"answer {clean.label}" + (f" becomes {then.label}" if then else "")
        shown = modality(str(domain.kind)).exhibit(
            data.x_test[one], changed, before.x[one], moved.x[one] if moved else None, [title], domain
        )
        rows.append(
            ExplainedRow(
                row=row,
                truth=word(data.y_test[i], domain),
                clean=clean,
                attacked=then,
                status=attacked.words[i] if attacked else "",
                largest=_largest(names, data.x_test[i], before.x[i], changed, moved.x[i] if moved else None),
                exhibit=shown,
            )
        )
    return rows


def _answers(target: Target, x: Tensor, found: Attributed, about: int | None) -> list[Answer]:
    """What was answered to each row, and what is explained of it."""
    domain, first = target.domain, answers(target, x)
    wanted = picked(first, about)
    explained = first.labels if wanted is None else wanted
    return [
        Answer(
            label=word(first.labels[i], domain),
            explained=word(explained[i], domain),
            score=float(found.score[i]),
            change=None if found.change is None else float(found.change[i]),
            gap=None if found.gap is None else float(found.gap[i]),
        )
        for i in range(len(x))
    ]


def feature_names(domain: Domain, shape: Sequence[int]) -> list[str]:
    """A name for each entry of an input: the data's own, numbers, or places in a picture."""
    count = int(np.prod(shape))
    if len(domain.feature_names) == count:
        return list(domain.feature_names)
    if len(shape) == 1:
        return [str(i) for i in range(count)]
    axes = (
        ("channel", "row", "column")[-len(shape) :]
        if len(shape) <= 3
        else tuple(f"axis {i}" for i in range(len(shape)))
    )
    places = np.stack(np.unravel_index(np.arange(count), tuple(shape)), 1)
    single = [side == 1 for side in shape]
    return [
        ", ".join(f"{axis} {at}" for axis, at, alone in zip(axes, place, single, strict=True) if not alone)
        for place in places.tolist()
    ]


def _largest(
    names: list[str], x: Tensor, before: Tensor, changed: Tensor | None, after: Tensor | None
) -> list[Feature]:
    """The entries with the largest attributions, before or after."""
    value, weight = (t.double().flatten() for t in (x, before))
    new, then = (None if t is None else t.double().flatten() for t in (changed, after))
    size = weight.abs() if then is None else torch.maximum(weight.abs(), then.abs())
    order = size.argsort(descending=True, stable=True)[:LARGEST].tolist()
    return [
        Feature(
            name=names[i],
            value=float(value[i]),
            attribution=float(weight[i]),
            changed=None if new is None else float(new[i]),
            after=None if then is None else float(then[i]),
        )
        for i in order
    ]
