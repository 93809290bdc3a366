"""What the demonstration audits: small enough for two minutes on two cores, and nothing is left out of the five families."""

from __future__ import annotations

from typing import Any


def configuration() -> dict[str, Any]:
    """Keys of `audits.config.Config`."""
    return {
        "target": "demo:digits-cnn",
        "data": "demo:digits",
        "threats": ["linf:0.1"],
        "defence": "train.pgd",
        "profile": "smoke",
        "samples": 64,
        "include": "evasion,extraction,leakage,leakage.lira,poisoning,tampering",
        "settings": {"train.pgd": {"epochs": 15, "steps": 4}},
        "time_limit": "10m",
        "formats": "json,html,sarif,junit,md",
    }
