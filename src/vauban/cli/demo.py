"""What the demonstration audits: small enough for two minutes on two cores, and nothing is left out of the five families."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


def configuration() -> dict[str, Any]:
    """Keys of `audits.config.Config`. Fewer steps, queries and models than the profile has."""
    return {
        "target": "demo:digits-cnn",
        "data": "demo:digits",
        "threats": ["linf:0.1"],
        "defence": "train.pgd",
        "profile": "standard",
        "samples": 200,
        "settings": {
            "train.pgd": {"epochs": 15, "steps": 4},
            "evasion.apgd": {"steps": 50},
            "evasion.cascade": {"tier": "screen"},
            "evasion.apgd_targeted": {"steps": 25, "targets": 4},
            "evasion.hop_skip_jump": {"queries": 600},
            "evasion.square": {"queries": 300},
            "extraction.substitute": {"queries": 1000, "steps": 300, "budgets": 3},
            "leakage.inversion": {"steps": 40},
            "leakage.lira": {"references": 10},
            "leakage.rmia": {"references": 10},
            "poisoning.blended": {"rates": ()},
            "poisoning.label_flip": {"rates": ()},
            "tampering.bit_flip": {"candidates": 10},
        },
        "time_limit": "10m",
        "formats": "json,html,sarif,junit,md",
    }


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside: a model this small loses more by sharing work out than it gains."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
