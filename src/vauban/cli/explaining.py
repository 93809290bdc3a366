"""explain TARGET: what a model's answers to some test rows rest on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vauban.cli.auditing import fresh_folder, pairs, settle
from vauban.cli.verb import Reply, say

if TYPE_CHECKING:
    from vauban.audits.config import Config
    from vauban.audits.explaining import Question


def explained(given: Mapping[str, Any]) -> Reply:
    """The reply of `vauban explain TARGET --data DATA --input N`; `given` are the words of the command line."""
    from vauban.audits.explaining import explain
    from vauban.reports.explanation import HTML, text

    config = settle(given["config"], {**given, "target": given["id"], "settings": _settings(given)})
    folder = Path(config.out) if config.out else fresh_folder()
    found = explain(_question(config), folder)
    say(f"page: {folder / HTML}")
    return Reply(found.told, text(found.told))


def _settings(given: Mapping[str, Any]) -> dict[str, dict[str, str]] | None:
    """The method's settings under its name. Raises BadOption where no method is named."""
    from vauban.schema.errors import BadOption

    if not given["settings"]:
        return None
    if not given["method"]:
        raise BadOption("--set sets the method of explanation: name it, such as --method integrated_gradients.")
    return {given["method"]: pairs(given["settings"])}


def _question(config: Config) -> Question:
    from vauban.audits.build import load, threats
    from vauban.audits.explaining import USUAL_ATTACK, Question
    from vauban.schema.errors import BadOption

    if not config.input:
        raise BadOption("Which rows? Name test rows with --input, such as --input 0,3.")
    rooms = threats(config)
    if len(rooms) > 1:
        raise BadOption(f"{len(rooms)} threats were given: rows are attacked within one, such as --threat linf:0.1.")
    target, data = load(config)
    return Question(
        target=target,
        data=data,
        rows=tuple(config.input),
        method=config.method,
        settings=config.settings.get(config.method or "", {}),
        baseline=config.baseline,
        about=config.about,
        attack=config.attack,
        attack_settings=config.settings.get(config.attack or USUAL_ATTACK, {}),
        threat=next(iter(rooms), None),
        seed=config.seed,
        profile=config.profile,
    )
