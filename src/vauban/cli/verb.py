"""What all verbs share: one JSON document on stdout, everything else on stderr, one place for exit codes."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

app = typer.Typer(
    name="vauban",
    help="Attack, harden and audit machine-learning models: evasion, poisoning, tampering, extraction, leakage.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
INTERRUPTED = 130
INTERNAL = 4


@dataclass(frozen=True)
class Reply:
    """What a verb answers: a document for machines (None for no answer at all), text for people, an exit status."""

    document: Any
    text: str = ""
    exit_code: int = 0


def verb(group: str, name: str | None = None) -> Callable[[Callable[..., Reply]], Callable[..., None]]:
    """Register a function as a verb. It returns a Reply; whatever it raises ends in a sentence and an exit status."""

    def register(function: Callable[..., Reply]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(**given: Any) -> None:
            as_json, debug = given.get("as_json", False), given.get("debug", False)
            reply = _answer(lambda: function(**given), debug)
            _print(reply, as_json)
            raise typer.Exit(reply.exit_code)

        app.command(name or function.__name__, rich_help_panel=group)(run)
        return run

    return register


def _answer(call: Callable[[], Reply], debug: bool) -> Reply:
    """The reply, or an error made into one. What a model or a library prints goes to stderr."""
    from vauban.schema.errors import VaubanError

    try:
        with contextlib.redirect_stdout(sys.stderr):
            return call()
    except VaubanError as error:
        _trace(debug)
        say(f"error[{error.code}]: {error}\n  see {error.page}, or `vauban explain {error.code}`")
        return Reply({"error": {"code": error.code, "message": str(error), "page": error.page}}, "", error.exit_code)
    except KeyboardInterrupt:
        say("interrupted: finished units are kept; run the same command with the same --out to resume")
        return Reply({"error": {"code": "VB-INTERRUPTED", "message": "interrupted, resumable"}}, "", INTERRUPTED)
    except Exception as error:
        kept = _trace(debug)
        hint = f"traceback in {kept}" if kept else "run it again with --debug for a traceback"
        say(
            f"error[VB-INTERNAL]: {type(error).__name__}: {error}\n  this is a defect of vauban, or of the model's own code; {hint}"
        )
        message = f"{type(error).__name__}: {error}"
        return Reply({"error": {"code": "VB-INTERNAL", "message": message}}, "", INTERNAL)


def _trace(debug: bool) -> str | None:
    """Write the traceback to a file where that was asked for; its name."""
    if not debug:
        return None
    handle, name = tempfile.mkstemp(prefix="vauban-traceback-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        traceback.print_exc(file=file)
    return name


def _print(reply: Reply, as_json: bool) -> None:
    if reply.document is None:  # a process that only helped another
        return
    text = to_json(reply.document) if as_json else reply.text
    if not text:
        return
    try:
        sys.stdout.write(text.rstrip("\n") + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has gone; nothing more can be said, and Python must not try at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def to_json(document: Any) -> str:
    """One JSON document; NaN and infinity, which JSON has not, become null."""
    dump = getattr(document, "model_dump_json", None)
    return str(dump(indent=2)) if callable(dump) else json.dumps(_plain(document), indent=2, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    return str(value) if isinstance(value, Path) else value


def say(text: str) -> None:
    """To stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
