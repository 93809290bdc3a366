"""seal, verify: model files as files. Nothing in them is run."""

from __future__ import annotations

from typing import Annotated

import typer

from vauban.cli import options as o
from vauban.cli.verb import Reply, verb

GROUP = "Model files"
ModelPath = Annotated[str, typer.Argument(help="A model file.")]
Key = Annotated[
    str | None, typer.Option("--key", help="File with a secret that signs the seal; else VAUBAN_SEAL_KEY, else none.")
]


@verb(GROUP)
def seal(
    path: ModelPath,
    key: Key = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a seal that is there.")] = False,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> Reply:
    """Write a manifest of every tensor of a model file beside it."""
    from vauban.artifacts.seal import read_key
    from vauban.artifacts.seal import seal as carry_out

    made = carry_out(path, key=read_key(key), force=force)
    return Reply(made.as_dict(), str(made))


@verb(GROUP)
def verify(
    path: ModelPath,
    key: Key = None,
    against: Annotated[
        str | None, typer.Option("--against", help="An intact copy: then every change is named.")
    ] = None,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> Reply:
    """Compare a model file with its seal: which tensor, element and bit changed. Exit 1 if one did."""
    from vauban.artifacts.seal import read_key
    from vauban.artifacts.seal import verify as carry_out

    found = carry_out(path, key=read_key(key), against=against)
    return Reply(found.as_dict(), str(found), 0 if found.intact else 1)
