"""A configuration made into a request: model and data are loaded here."""

from __future__ import annotations

from vauban.audits.config import Config
from vauban.audits.plan import FAMILY_THREATS, Request
from vauban.core.data import Data
from vauban.core.target import Target
from vauban.data.load import load_data
from vauban.rules import suppress
from vauban.schema.errors import BadOption
from vauban.schema.threat import ThreatModel
from vauban.targets.load import load_target


def build(config: Config, argv: tuple[str, ...] = ()) -> Request:
    """Load what the configuration names. Raises the errors of loading, and BadOption where target or data is missing."""
    target, data = load(config)
    return Request(
        target=target,
        data=data,
        target_spec=config.target or "",
        data_spec=config.data or "",
        threats=threats(config),
        include=tuple(config.include),
        exclude={e.id: e.reason for e in config.exclude},
        profile=config.profile,
        seed=config.seed,
        samples=config.samples,
        batch_size=config.batch_size,
        time_limit=config.time_limit,
        query_limit=config.query_limit,
        settings=config.settings,
        suppressions=tuple(suppress.read([s.model_dump() for s in config.suppress])),
        gates=tuple(config.gates),
        fail_on=config.fail_on,
        formats=tuple(config.formats),
        lang=tuple(config.lang),
        executor=config.executor,
        options=options(config),
        argv=argv,
    )


def load(config: Config) -> tuple[Target, Data]:
    """The model and the data that a configuration names."""
    if not config.target:
        raise BadOption("No target: name a model file, module:attribute or demo:digits-cnn.")
    if not config.data:
        raise BadOption("No data: name a file such as data.npz, or demo:digits, with --data.")
    data = load_data(config.data, label=config.label)
    target = load_target(
        config.target,
        factory=config.factory,
        bounds=config.bounds,
        classes=config.classes,
        kind=config.kind,
        trust_pickle=config.trust_pickle,
    )
    return target, data


def threats(config: Config) -> tuple[ThreatModel, ...]:
    """The rooms that the configuration names. The name of a family's own attacker (`queries`) needs no room."""
    own = {t.id for t in FAMILY_THREATS.values()}
    return tuple(ThreatModel.of(text) for text in config.threats if text not in own)


def options(config: Config) -> tuple[str, ...]:
    """Words that a command needs besides target, data, samples and seed to make the same numbers again."""
    said = [("--factory", config.factory), ("--label", config.label), ("--kind", config.kind)]
    said += [("--classes", str(config.classes) if config.classes else None)]
    said += [("--bounds", ",".join(f"{b:g}" for b in config.bounds) if config.bounds else None)]
    said += [("--profile", None if config.profile == "standard" else config.profile)]
    return tuple(word for name, value in said if value for word in (name, str(value)))
