"""Every defence: id -> where its class lives. One row adds one."""

from __future__ import annotations

from vauban.core.defence import Defence
from vauban.core.registry import Catalogue

DEFENCES: Catalogue[type[Defence]] = Catalogue(
    "defence",
    "vauban.defences",
    {
        "certify.smoothing": "vauban.defences.certify.smoothing:RandomisedSmoothing",
        "distill.defensive": "vauban.defences.distill.defensive:DefensiveDistillation",
        "preprocess.squeeze": "vauban.defences.preprocess.squeeze:Squeeze",
        "privacy.dp_sgd": "vauban.defences.privacy.dp_sgd:DPSGD",
        "train.pgd": "vauban.defences.train.pgd:PGDTraining",
    },
)
