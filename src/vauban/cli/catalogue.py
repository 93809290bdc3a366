"""list, explain: what there is, and a page on each."""

from __future__ import annotations

import dataclasses
import difflib
import inspect as python_inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vauban.cli import options as o
from vauban.cli.verb import Reply, verb

if TYPE_CHECKING:
    from vauban.schema.errors import VaubanError

GROUP = "Find out"


@verb(GROUP, "list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(help="attacks, defences, rules, demos or reports; all if left out.")
    ] = None,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> Reply:
    """The catalogue: every attack, defence and rule, and what each needs."""
    from vauban.schema.errors import UnknownName

    makers = {"attacks": _attacks, "defences": _defences, "rules": _rules, "demos": _demos, "reports": _reports}
    if kind is not None and kind not in makers:
        raise UnknownName(f"There is no list of {kind!r}; there are {', '.join(makers)}.")
    rows = {name: make() for name, make in makers.items() if kind in (None, name)}
    lines: list[str] = []
    for name, entries in rows.items():
        lines += [name.upper(), *_table(entries), ""]
    return Reply(rows, "\n".join(lines))


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "id": lambda e: str(e["id"]),
    "name": lambda e: str(e["name"]),
    "knows": lambda e: str(e.get("knows", "")),
    "needs": lambda e: ", ".join(e.get("needs", ())),
    "spaces": lambda e: ", ".join(e.get("spaces", ())),
    "cost of a sample, at most": lambda e: _cost(e.get("cost", {})),
}
"""What a list shows of an entry, in order."""


def _table(entries: list[dict[str, Any]]) -> list[str]:
    """Aligned lines, without the columns in which nothing stands."""
    cells = {title: [show(entry) for entry in entries] for title, show in COLUMNS.items()}
    cells = {title: column for title, column in cells.items() if any(column)}
    wide = {title: max(len(title), *map(len, column)) for title, column in cells.items()}
    heads = ["  " + "  ".join(f"{title:{wide[title]}}" for title in cells)] if len(cells) > 2 else []
    rows = zip(*cells.values(), strict=True)
    return [line.rstrip() for line in heads] + [
        "  " + "  ".join(f"{cell:{wide[title]}}" for title, cell in zip(cells, row, strict=True)).rstrip()
        for row in rows
    ]


JOINT = {"trainings": "trainings for all samples"}
"""What does not grow with the samples."""


def _cost(cost: dict[str, int]) -> str:
    """`100 gradients, 104 queries`: what is not nothing."""
    return ", ".join(f"{count:,} {JOINT.get(what, what)}" for what, count in cost.items() if count)


def _entry(card: Any) -> dict[str, Any]:
    entry: dict[str, Any] = card.model_dump(mode="json")
    return entry


def _loaded(catalogue: Any) -> list[dict[str, Any]]:
    return [_entry(catalogue.load(name).card) for name in catalogue.ids()]


def _attacks() -> list[dict[str, Any]]:
    from vauban.attacks.catalog import ATTACKS

    return [entry | {"knows": knows(entry["needs"]), "cost": price(entry["id"])} for entry in _loaded(ATTACKS)]


KNOWLEDGE = (
    ("training", "training"),
    ("data_write", "training data"),
    ("weights_read", "weights"),
    ("gradients", "gradients"),
    ("scores", "scores"),
    ("labels", "labels"),
)
"""The strongest right that an attack takes -> what its author has to know of the model."""


def knows(needs: list[str]) -> str:
    """One word for what an attacker must see: everything weaker is implied."""
    return next((word for right, word in KNOWLEDGE if right in needs), "data")


CLASSES = 10
"""Classes for which a cost is told."""


def price(id: str) -> dict[str, int]:
    """The most that an attack spends on one sample of a model of ten classes, with its own settings."""
    from vauban.attacks.catalog import ATTACKS

    spent = ATTACKS.load(id)().price(CLASSES)
    return {"gradients": spent.gradients, "queries": spent.queries, "trainings": spent.trainings}


def _defences() -> list[dict[str, Any]]:
    from vauban.audits.choose import CHOICES
    from vauban.defences.catalog import DEFENCES

    return [*_loaded(DEFENCES), *_loaded(CHOICES)]


def _rules() -> list[dict[str, Any]]:
    from vauban.rules.catalog import RULES

    return _loaded(RULES)


def _demos() -> list[dict[str, Any]]:
    from vauban.data.demo import DEMOS as SETS
    from vauban.targets.demo import DEMOS as MODELS

    return [{"id": i, "name": "model"} for i in MODELS.ids()] + [{"id": i, "name": "data"} for i in SETS.ids()]


def _reports() -> list[dict[str, Any]]:
    from vauban.reports.catalog import REPORTERS

    return [{"id": i, "name": ""} for i in REPORTERS.ids()]


@verb(GROUP)
def explain(
    id: Annotated[
        str, typer.Argument(help="An attack, defence, rule or error code; or a model, with --data and --input.")
    ],
    data: o.Data = None,
    input: o.Input = None,
    method: o.Method = None,
    settings: o.Settings = None,
    baseline: o.Baseline = None,
    about: o.About = None,
    attack: o.Attack = None,
    threats: o.Threats = None,
    out: o.OutNew = None,
    factory: o.Factory = None,
    label: o.Label = None,
    bounds: o.Bounds = None,
    classes: o.Classes = None,
    kind: o.Kind = None,
    trust_pickle: o.TrustPickle = None,
    profile: o.Profile = None,
    seed: o.Seed = None,
    config: o.ConfigFile = None,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> Reply:
    """A page on one id; or, with --data and --input, what a model's answers to some test rows rest on."""
    given = locals()
    if any(value for name, value in given.items() if name not in ("id", "as_json", "debug")):
        from vauban.cli.explaining import explained

        return explained(given)
    return _page(id)


def _page(id: str) -> Reply:
    """What it does, what it needs, its settings, its sources."""
    from vauban.schema.errors import UnknownName

    for find in (_catalogued, _error):
        page = find(id)
        if page is not None:
            return Reply(page, render(page))
    near = difflib.get_close_matches(id, known_ids(), n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    raise UnknownName(
        f"There is no attack, defence, rule or error {id!r}{hint} `vauban list` shows what there is; a model's answers are "
        "explained with --data and --input."
    )


def known_ids() -> list[str]:
    """Everything that has a page."""
    return [name for _, catalogue in _catalogues() for name in catalogue.ids()] + sorted(_errors())


def _catalogues() -> list[tuple[str, Any]]:
    from vauban.attacks.catalog import ATTACKS
    from vauban.audits.choose import CHOICES
    from vauban.defences.catalog import DEFENCES
    from vauban.rules.catalog import RULES

    return [("attack", ATTACKS), ("defence", DEFENCES), ("defence", CHOICES), ("rule", RULES)]


def _catalogued(id: str) -> dict[str, Any] | None:
    for kind, catalogue in _catalogues():
        if id in catalogue:
            cls = catalogue.load(id)
            return {"kind": kind, **_entry(cls.card), "settings": _settings(cls), "text": _text(cls)}
    return None


def _settings(cls: type) -> list[dict[str, Any]]:
    if not dataclasses.is_dataclass(cls):
        return []
    return [{"name": f.name, "default": _default(f)} for f in dataclasses.fields(cls)]


def _default(field: dataclasses.Field[Any]) -> Any:
    value = field.default
    plain = isinstance(value, str | int | float | bool | None | list | tuple)
    return value if plain else "required" if value is dataclasses.MISSING else repr(value)


def _text(cls: type) -> str:
    return python_inspect.cleandoc(cls.__doc__ or "")


def _errors() -> dict[str, type[VaubanError]]:
    from vauban.schema import errors

    return {c.code: c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.VaubanError)}


def _error(id: str) -> dict[str, Any] | None:
    cls = _errors().get(id.upper())
    if cls is None:
        return None
    code, status = cls.code, cls.exit_code
    return {
        "kind": "error",
        "id": code,
        "name": cls.__name__,
        "exit_code": status,
        "text": _text(cls),
        "page": f"docs/errors.md#{code.lower()}",
    }


SHOWN: dict[str, Callable[[Any], str]] = {
    "summary": str,
    "meaning": str,
    "text": str,
    "measured": lambda v: f"Measured: {v}",
    "false_positives": lambda v: f"When it is wrong: {v}",
    "needs": lambda v: f"Needs: {', '.join(v)}",
    "spaces": lambda v: f"Searches: {', '.join(v)}",
    "tasks": lambda v: f"Tasks: {', '.join(v)}",
    "modalities": lambda v: f"Data: {', '.join(v)}",
    "adaptive": lambda v: f"Attacks that know it: {', '.join(v)}",
    "remedies": lambda v: "What to do:\n" + "\n".join(f"  - {r}" for r in v),
    "settings": lambda v: "Settings:\n" + "\n".join(f"  {s['name']} = {s['default']}" for s in v),
    "sources": lambda v: "Sources:\n" + "\n".join(f"  - {s['title']}. {s['where']}" for s in v),
    "exit_code": lambda v: f"Exit status: {v}",
    "page": lambda v: f"More: {v}",
}
"""What a page shows, in order, where there is something to show."""


def render(page: dict[str, Any]) -> str:
    """A page as text."""
    head = f"{page['id']}: {page['name']} ({page['kind']})"
    return "\n\n".join(
        [head, *(show(page[key]) for key, show in SHOWN.items() if page.get(key) not in (None, "", [], ()))]
    )
