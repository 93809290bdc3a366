"""seal, verify: model files as files. Nothing in them is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vauban.cli import options as o
from vauban.cli.verb import Reply, verb

if TYPE_CHECKING:
    from vauban.artifacts.seal import Report

GROUP = "Model files"
SHOWN = 20
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

    where, content = carry_out(path, key=read_key(key), force=force)
    signed = (
        "signed" if content.get("signature") else "not signed: whoever can change the model can change the seal too"
    )
    return Reply({"seal": str(where), "content": content}, f"{where} written ({signed})")


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
    from dataclasses import asdict

    from vauban.artifacts.seal import read_key
    from vauban.artifacts.seal import verify as carry_out

    found = carry_out(path, key=read_key(key), against=against)
    return Reply(asdict(found), "\n".join(lines(found)), 0 if found.intact else 1)


def lines(found: Report) -> list[str]:
    """What has become of a sealed file, for people."""
    out = [f"{found.path}: {'intact' if found.intact else 'CHANGED'} (signature: {found.signature})"]
    out += [
        f"  {c.tensor}{list(c.index)}: bit {', '.join(map(str, c.bits))}: {c.before} -> {c.after}"
        for c in found.changes[:SHOWN]
    ]
    out += [f"  {r.tensor}: elements {r.first} to {r.last} (flat) hold changes" for r in found.regions[:SHOWN]]
    for words, names in (("missing", found.missing), ("added", found.added), ("another shape", found.reshaped)):
        out += [f"  {words}: {name}" for name in names]
    left = len(found.changes) + len(found.regions) - min(len(found.changes), SHOWN) - min(len(found.regions), SHOWN)
    out += [f"  and {left} more: --json names them"] if left else []
    return out + [f"  {note}" for note in found.notes]
