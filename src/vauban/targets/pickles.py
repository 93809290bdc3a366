"""Pickled objects: refused, unless the user says that they may run code. Nothing else in the house unpickles."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from vauban.artifacts.loading import corrupt
from vauban.schema.errors import UntrustedFile
from vauban.targets.options import Options


def load(path: Path, asked: Options) -> Any:
    """What a `.pkl`, `.pickle` or `.joblib` file holds. Raises UntrustedFile without `trust_pickle`, CorruptFile."""
    if not asked.trust_pickle:
        raise UntrustedFile(
            f"{path} is a pickle, which can run code when it is loaded: save the model in another format (skops, "
            "safetensors, torch.export), or say --trust-pickle if you trust where it comes from."
        )
    import joblib

    try:
        return joblib.load(path)
    except Exception:  # damaged pickles raise nearly anything
        raise corrupt(path, "a pickle") from None


def unpickled_by_torch(path: Path) -> Any:
    """Whatever a `.pt` file holds. Only for callers who have the user's word that it may run code."""
    with warnings.catch_warnings():  # of a TorchScript archive torch says that there is another call for it
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=False)
