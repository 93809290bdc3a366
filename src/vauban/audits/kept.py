"""A defended model on disk: what was learnt as tensors, facts about it, and the model in the format that it came in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vauban.audits.store import guarded, write_whole
from vauban.core.defence import Hardened
from vauban.core.target import Portable, Target, TorchBacked
from vauban.schema.cards import DefenceCard
from vauban.schema.errors import CorruptFile

WEIGHTS, FACTS = "model.safetensors", "model.json"


def keep(made: Hardened, card: DefenceCard, original: Target, folder: Path) -> None:
    """Save the model first, then the facts: facts without a model never lie there."""
    module = made.target.module if isinstance(made.target, TorchBacked) else None
    state = own(made.state or (module.state_dict() if module is not None else {}))
    if not state or (folder / FACTS).exists():
        return
    files = made.target.files() if isinstance(made.target, Portable) else {}
    facts = {
        "defence": card.id,
        "facts": made.facts,
        "caveats": list(made.caveats),
        "sha256": made.target.sha256(),
        "module": type(made.target if module is None else module).__name__,
        "how_to_load": _how_to_load(made.target, original, sorted(files)),
    }
    with guarded(folder):
        for name, written in files.items():
            write_whole(folder / name, written)
        write_whole(folder / WEIGHTS, save(state, {"defence": card.id}))
        write_whole(folder / FACTS, as_json(facts))


def _how_to_load(target: Target, original: Target, files: list[str]) -> str:
    """In words; `files` hold the model in the format that it came in."""
    if files:
        return (
            f"{' and '.join(files)} is the defended model, of the same kind as the one that was given: load it as that one, "
            f"or audit it (vauban audit {files[0]} ...). {WEIGHTS} holds what was learnt as tensors, for resumption."
        )
    if not isinstance(target, TorchBacked):
        return f"{WEIGHTS} holds what was learnt as tensors: `after.target` in Python has the model whole."
    same = isinstance(original, TorchBacked) and _layout(original) == _layout(target)
    if same:
        return (
            f"{WEIGHTS} is a state dict of the same architecture as the model that was given: load it into that "
            "module, or audit it with --factory."
        )
    return (
        f"{WEIGHTS} is a state dict of a module that is not laid out like the one that was given (see facts): "
        "`after.target.module` in Python has it whole; a factory must build that module."
    )


def _layout(target: TorchBacked) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in target.module.state_dict().items() if isinstance(v, Tensor)}


def own(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state, each with memory of its own, as a file needs them."""
    return {k: v.detach().cpu().contiguous().clone() for k, v in state.items() if isinstance(v, Tensor)}


def weights(path: Path) -> dict[str, Tensor]:
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise CorruptFile(f"The saved model {path} cannot be read ({error}): name another folder.") from error


def read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found
    except (OSError, ValueError) as error:
        raise CorruptFile(f"{path} cannot be read ({error}): name another folder.") from error


def as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, default=str) + "\n").encode()
