"""seal, verify: model files as files. Nothing in them is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vauban.cli import options as o
from vauban.cli.verb import Reply, verb

GROUP = "Model files"
ModelPath = Annotated[str, typer.Argument(help="A model file.")]
Key = Annotated[str | None, typer.Option("--key", help="File with a secret that the seal is made and checked with.")]


@verb(GROUP)
def seal(path: ModelPath, key: Key = None, as_json: o.Json = False, debug: o.Debug = False) -> Reply:
    """Write a manifest of every tensor of a model file beside it."""
    from vauban.artifacts.seal import seal as carry_out

    made = carry_out(Path(path), key=secret(key))
    return Reply(made, str(made))


@verb(GROUP)
def verify(path: ModelPath, key: Key = None, as_json: o.Json = False, debug: o.Debug = False) -> Reply:
    """Compare a model file with its seal: which tensor, element and bit changed. Exit 1 if one did."""
    from vauban.artifacts.seal import verify as carry_out

    found = carry_out(Path(path), key=secret(key))
    return Reply(found, str(found))


def secret(path: str | None) -> bytes | None:
    """The bytes of a key file."""
    from vauban.schema.errors import UnknownName

    if path is None:
        return None
    try:
        return Path(path).read_bytes().strip()
    except OSError as error:
        raise UnknownName(f"The key file {path} cannot be read ({error.strerror}).") from None
