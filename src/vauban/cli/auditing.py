"""audit, attack, harden, demo."""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vauban.cli import options as o
from vauban.cli.verb import Reply, say, verb

if TYPE_CHECKING:
    from vauban.audits.config import Config
    from vauban.schema.log import AuditLog

GROUP = "Attack and harden"
EXIT = {"pass": 0, "fail": 1, "inconclusive": 3}
NOT_CONFIG = frozenset({"config", "as_json", "debug"})


@verb(GROUP)
def audit(
    target: o.Target = None,
    data: o.Data = None,
    out: o.Out = None,
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
    batch_size: o.BatchSize = None,
    seed: o.Seed = None,
    time_limit: o.TimeLimit = None,
    query_limit: o.QueryLimit = None,
    fail_on: o.FailOn = None,
    executor: o.Executor = None,
    formats: o.Formats = None,
    lang: o.Lang = None,
    config: o.ConfigFile = None,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> Reply:
    """Plan, attack, judge, report. The same command on the same --out resumes."""
    settled = settle(config, locals())
    return run(settled)


@verb(GROUP)
def attack(
    id: Annotated[str, typer.Argument(help="An attack: `vauban list` shows them.")],
    target: o.Target = None,
    data: o.Data = None,
    threats: o.Threats = None,
    out: o.Out = None,
    settings: o.Settings = None,
    factory: o.Factory = None,
    label: o.Label = None,
    bounds: o.Bounds = None,
    classes: o.Classes = None,
    kind: o.Kind = None,
    trust_pickle: o.TrustPickle = None,
    profile: o.Profile = None,
    samples: o.Samples = None,
    batch_size: o.BatchSize = None,
    seed: o.Seed = None,
    time_limit: o.TimeLimit = None,
    query_limit: o.QueryLimit = None,
    fail_on: o.FailOn = None,
    formats: o.Formats = None,
    config: o.ConfigFile = None,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> Reply:
    """One attack, in full: the same as an audit that includes nothing else."""
    given = locals()
    from vauban.attacks.catalog import ATTACKS

    ATTACKS.load(id)
    given |= {"include": [id], "settings": {id: pairs(settings)} if settings else None}
    return run(settle(config, given), whole_families=False)


@verb(GROUP)
def harden(
    target: o.Target = None,
    defence: Annotated[str | None, typer.Option("--with", help="A defence: `vauban list` shows them.")] = None,
    data: o.Data = None,
    threats: o.Threats = None,
    out: o.Out = None,
    settings: o.Settings = None,
    factory: o.Factory = None,
    label: o.Label = None,
    bounds: o.Bounds = None,
    classes: o.Classes = None,
    kind: o.Kind = None,
    trust_pickle: o.TrustPickle = None,
    include: o.Include = None,
    exclude: o.Exclude = None,
    profile: o.Profile = None,
    samples: o.Samples = None,
    batch_size: o.BatchSize = None,
    seed: o.Seed = None,
    time_limit: o.TimeLimit = None,
    query_limit: o.QueryLimit = None,
    fail_on: o.FailOn = None,
    formats: o.Formats = None,
    tensorboard: o.TensorBoard = None,
    config: o.ConfigFile = None,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> Reply:
    """Defend a model, audit it before and after on the same samples, save the new model."""
    given = locals()
    given["settings"] = {defence: pairs(settings)} if settings and defence else None
    return run_harden(settle(config, given))


@verb(GROUP)
def demo(out: o.Out = None, seed: o.Seed = None, as_json: o.Json = False, debug: o.Debug = False) -> Reply:
    """A whole audit of a small model, before and after hardening; needs no file and no network."""
    from vauban.cli.demo import configuration, one_thread

    with one_thread():
        shown = run_harden(settle(None, {**configuration(), "out": out or "vauban-demo", "seed": seed}, environ={}))
    return replace(shown, exit_code=0)  # it shows what is found; it does not judge


def settle(path: str | None, given: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Config:
    """The configuration that the words of the command line come to."""
    import os

    from vauban.audits.config import Config, resolve

    said = {k: v for k, v in given.items() if k in Config.model_fields and k not in NOT_CONFIG}
    return resolve(said, path, os.environ if environ is None else environ)


def pairs(words: list[str] | None) -> dict[str, str]:
    """`["steps=100"]` as `{"steps": "100"}`."""
    from vauban.schema.errors import BadOption

    bad = [word for word in words or [] if "=" not in word]
    if bad:
        raise BadOption(f"--set {bad[0]!r} has no value: write name=value, such as steps=100.")
    return {name.strip(): value.strip() for name, _, value in (word.partition("=") for word in words or [])}


def run(config: Config, whole_families: bool = True) -> Reply:
    """Audit, and answer with the log."""
    from vauban.audits.build import build
    from vauban.audits.runner import audit as carry_out
    from vauban.cli.watch import watching

    request = replace(build(config, tuple(sys.argv[1:])), whole_families=whole_families)
    folder = Path(config.out) if config.out else fresh_folder()
    with watching() as watcher:
        log = carry_out(request, folder, watcher)
    return answer(log, folder)


def run_harden(config: Config) -> Reply:
    """Harden, and answer with the log of the hardened model."""
    from vauban.audits.assist import assist
    from vauban.audits.build import build
    from vauban.audits.harden import harden as carry_out
    from vauban.cli.watch import watching
    from vauban.integrations.accelerate import crew
    from vauban.integrations.tensorboard import diary
    from vauban.schema.errors import BadOption

    if not config.defence:
        raise BadOption("No defence: name one with --with, such as --with train.pgd; `vauban list` shows them.")
    together = crew(say)
    request = build(config, tuple(sys.argv[1:]))
    if together.rank:
        assist(request, config.defence, together)
        return Reply(None)
    folder = Path(config.out) if config.out else fresh_folder()
    with watching() as watcher, diary(config.tensorboard) as pages:
        after = carry_out(request, config.defence, folder, watcher, together, pages)
    return answer(after.log, folder)


def answer(log: AuditLog, folder: Path) -> Reply:
    page = folder / "report.html"
    say(f"report: {page if page.exists() else folder / 'report.json'}")
    return Reply(log, summary(log), EXIT[log.verdict.state])


def summary(log: AuditLog) -> str:
    """The log as text, coloured by where it goes: stdout, which is set aside while a verb runs."""
    from vauban.reports.terminal import render

    with contextlib.redirect_stdout(sys.__stdout__):
        return render(log)


def fresh_folder() -> Path:
    """A folder of its own for a run that was given none."""
    return Path("vauban-runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
