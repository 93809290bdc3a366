"""inspect, init, doctor: before the first audit."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from vauban.cli import options as o
from vauban.cli.verb import Reply, verb

GROUP = "Find out"
EXTRAS = {"opacus": "privacy", "skops": "skops"}
TEMPLATE = """\
# A run of vauban. Every key is also an option (--time-limit) and a variable (VAUBAN_TIME_LIMIT); the command line wins.
version: 1

# The model: model.pt2, model.skops, weights.safetensors with a factory, module:attribute, demo:digits-cnn.
target: demo:digits-cnn
# factory: model.py:build
# bounds: [0, 1]          # smallest and largest valid input
# classes: 10

# The data: file.npz with x_train, y_train, x_test, y_test; a .csv with a label; demo:digits.
data: demo:digits
# label: target

out: run

# How far an attacker may move an input, in the data's own units.
threats: ["linf:0.1", "l2:1.0"]

# Families or attacks; everything that applies where empty. An exclusion gives its reason.
# include: [evasion, leakage]
# exclude:
#   - {id: extraction.substitute, reason: "the model is public"}

profile: standard         # smoke (under a minute), standard, deep
# samples: 256
# batch_size: 64
# time_limit: 10m
# query_limit: 200000
seed: 0

# settings:
#   evasion.pgd: {steps: 100}

# What fails the run: findings from this severity up, and thresholds of one's own.
fail_on: high
# gates:
#   - {check: evasion.apgd, metric: evasion.robust_accuracy, min: 0.4, use: low}

# Accepted findings: reason, owner and date are required; after the date they count again.
# suppress:
#   - {rule: evasion.not_robust, reason: "inputs come from our own scanner", owner: a@example.org, until: 2027-01-31}

formats: [json, html]
"""


@verb(GROUP)
def inspect(
    target: o.Target = None,
    data: o.Data = None,
    factory: o.Factory = None,
    label: o.Label = None,
    bounds: o.Bounds = None,
    classes: o.Classes = None,
    kind: o.Kind = None,
    trust_pickle: o.TrustPickle = None,
    threats: o.Threats = None,
    include: o.Include = None,
    exclude: o.Exclude = None,
    profile: o.Profile = None,
    samples: o.Samples = None,
    config: o.ConfigFile = None,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> Reply:
    """What a target offers, what the preflight finds, what an audit would do and cost. Nothing is attacked."""
    given = locals()
    from vauban.audits.build import build
    from vauban.audits.runner import left_to_others, prepare
    from vauban.cli.auditing import settle
    from vauban.cli.watch import estimate_text

    ready = prepare(build(settle(config, given)))
    case = ready.case
    estimate = ready.plan.estimate
    rows = [_row(unit) for unit in ready.plan.units]
    document = {
        "target": {"id": case.target.id, "sha256": case.target.sha256(), "offers": case.target.offers.words()},
        "task": case.domain.task,
        "kind": case.domain.kind,
        "classes": case.domain.classes,
        "samples": len(case.data.x_test),
        "facts": ready.facts,
        "preflight": [d.model_dump(mode="json") for d in ready.doubts],
        "plan": rows,
        "left": sorted({check.id for check in ready.plan.left}),
        "cost": {
            "queries": estimate.queries,
            "gradients": estimate.gradients,
            "trainings": estimate.trainings,
            "seconds": estimate.seconds,
        },
    }
    lines = [f"{case.target.id}: {case.domain.task} of {case.domain.kind} data, {case.domain.classes or 'no'} classes"]
    lines += [f"offers: {', '.join(case.target.offers.words())}", "", "preflight"]
    lines += [f"  {d.verdict:4}  {d.text}" for d in ready.doubts]
    lines += ["", f"plan ({ready.profile.id}, {len(case.data.x_test)} samples): {estimate_text(estimate)}"]
    lines += [f"  {r['check']} {r['threat']}: {r['reason'] or 'yes'}" for r in rows]
    lines += left_to_others(ready)
    return Reply(document, "\n".join(lines))


def _row(unit: Any) -> dict[str, Any]:
    no = unit.refusal
    return {
        "check": unit.check.id,
        "threat": unit.check.threat.id,
        "state": "planned" if no is None else no.state,
        "reason": "" if no is None else no.reason,
        "queries": unit.estimate.queries,
        "trainings": unit.estimate.trainings,
    }


@verb(GROUP)
def init(
    path: Annotated[str, typer.Argument(help="The file to write.")] = "vauban.yaml",
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> Reply:
    """Write a commented configuration. A file that is there is never overwritten."""
    from vauban.schema.errors import RunFolder

    try:
        with Path(path).open("x", encoding="utf-8") as file:
            file.write(TEMPLATE)
    except FileExistsError:
        raise RunFolder(f"{path} is there already and was left as it is: give another name.") from None
    except OSError as error:
        raise RunFolder(f"{path} cannot be written ({error.strerror}): give another name.") from None
    return Reply({"written": path}, f"{path} written. Next:  vauban audit --config {path}")


@verb(GROUP)
def doctor(as_json: o.Json = False, debug: o.Debug = False) -> Reply:
    """Versions, extras, threads, device, data folder; and whether catalogue rows of other packages load."""
    from vauban.audits.machine import machine, versions

    extras = {extra: importlib.util.find_spec(package) is not None for package, extra in EXTRAS.items()}
    named = os.environ.get("VAUBAN_DATA")
    folder = named if named and Path(named).is_dir() else None
    facts, broken = {**versions(), **machine()}, _broken()
    document = {
        "versions": versions(),
        "machine": machine(),
        "extras": extras,
        "data_folder": folder,
        "broken": broken,
    }
    lines = [f"{name:14} {value}" for name, value in facts.items()]
    lines += [
        f"extra {name:8} {'installed' if there else f'missing: pip install vauban[{name}]'}"
        for name, there in extras.items()
    ]
    lines += [f"{'data folder':14} {folder or 'none (set VAUBAN_DATA)'}"]
    lines += [f"{'broken':14} {name}: {why}" for name, why in broken.items()]
    return Reply(document, "\n".join(lines), exit_code=4 if broken else 0)


def _broken() -> dict[str, str]:
    """Catalogue rows that do not load, with the reason."""
    from vauban.attacks.catalog import ATTACKS
    from vauban.defences.catalog import DEFENCES
    from vauban.rules.catalog import RULES

    found: dict[str, str] = {}
    catalogues: tuple[Any, ...] = (ATTACKS, DEFENCES, RULES)
    for catalogue in catalogues:
        for name in catalogue.ids():
            try:
                catalogue.load(name)
            except Exception as error:
                found[name] = f"{type(error).__name__}: {error}"
    return found
