"""Estimators from `.skops` files: types are checked before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vauban.artifacts.loading import corrupt
from vauban.schema.errors import MissingExtra, UntrustedFile
from vauban.targets.options import Options


def load(path: Path, asked: Options) -> Any:
    """The estimator in a skops file whose types are all known to skops as harmless.

    Raises UntrustedFile naming the others (unless `trust_pickle`), CorruptFile, MissingExtra.
    """
    try:
        from skops import io
    except ImportError:
        raise MissingExtra.of("Reading .skops files", "skops") from None
    try:
        unknown = sorted(io.get_untrusted_types(file=path))
    except Exception:  # damaged archives make it raise nearly anything
        raise corrupt(path, "a .skops file") from None
    if unknown and not asked.trust_pickle:
        raise UntrustedFile(
            f"{path} holds types that can run code when they are loaded ({', '.join(unknown[:5])}): save a model of "
            "scikit-learn's own types, or say --trust-pickle if you trust where it comes from."
        )
    try:
        return io.load(path, trusted=unknown)
    except Exception as error:
        raise corrupt(path, "a .skops file") from error
