"""Mahalanobis distance in feature space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vauban.core.data import Data
from vauban.defences.common import TorchModel
from vauban.defences.detect.layered import Layered, LayeredDetector
from vauban.defences.detect.view import Detector
from vauban.defences.detect.watch import JOINT
from vauban.schema.cards import DefenceCard, Source

WIDE = 512
"""Features of a layer that are told apart at most: the covariance of more would take long to invert."""


@dataclass(frozen=True, kw_only=True)
class MahalanobisDetector(Layered):
    """Suspects inputs whose hidden features lie far from those of every class.

    Features of each class are taken for Gaussian with a mean of its own and one covariance for all; the score is the squared
    Mahalanobis distance to the nearest class. An attacker who descends that distance, too, brings the features to the mean of
    a wrong class (Carlini and Wagner 2017 did so with the detectors of their day; Tramer et al. 2020, arXiv:2002.08347, with
    later ones).

    Source: Lee et al. 2018 (arXiv:1807.03888, equations 2 to 4 and section 2.2).
    Departures: inputs are not pushed by a step before they are scored; covariances are shrunk, for directions in which features do
    not vary have no inverse; several layers make a mean of standardised scores unless attacks to learn from are named.

    Args:
        layers: hidden layers that are looked at, from the last one back.
        shrinkage: weight of a round covariance of the same size that is mixed in, above 0 to 1.
        attacks: ids of attacks, separated by commas, by which the layers are weighed; none where empty.
        policy: `reject` (a class more, for refusing), `flag` or `pass`.
        alarms: share of clean rows that may be refused or flagged, between 0 and 1.
        aside: share of the training rows that the threshold is set on.
        rows: training rows looked at, at most.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="detect.mahalanobis",
        name="Mahalanobis distance",
        summary="Refuses inputs whose hidden features are far from those of every class; falls to attacks on both together.",
        sources=(
            Source(
                title="A simple unified framework for detecting out-of-distribution samples and adversarial attacks",
                where="Lee et al., NeurIPS 2018, arXiv:1807.03888, section 2",
            ),
            Source(
                title="Adversarial examples are not easily detected (how detectors are attacked)",
                where="Carlini, Wagner, AISec 2017, arXiv:1705.07263, section 3",
            ),
        ),
        **JOINT,
    )

    shrinkage: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.shrinkage <= 1:
            raise ValueError(f"shrinkage is a share above 0, at most 1, got {self.shrinkage}")

    def detector(self, model: TorchModel, data: Data) -> Detector:
        return Mahalanobis(self.layers, self.shrinkage)


class Mahalanobis(LayeredDetector):
    """`min_c (f - m_c)' C^-1 (f - m_c)` a layer, with the class means `m_c` and the covariance `C` of clean features `f`."""

    learnt: ClassVar[tuple[str, ...]] = ("means", "white")

    def __init__(self, layers: int, shrinkage: float) -> None:
        super().__init__(layers)
        self.shrinkage = shrinkage

    def remember(self, seen: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        present, which = y.unique(return_inverse=True)
        means = torch.stack([seen[y == c].mean(0) for c in present])
        few = projection(seen.shape[1]).to(seen)
        return means, few @ whitening((seen - means[which]) @ few, self.shrinkage)

    def score(self, seen: Tensor, answered: Tensor, *learnt: Tensor) -> Tensor:
        means, white = learnt
        # in the white space the distance is the plain one
        away = (seen @ white)[:, None] - (means @ white)[None]
        return away.square().sum(2).amin(1)


def projection(width: int) -> Tensor:
    """`[width, d]`: onto WIDE random directions where there are more; distances keep their proportions (Johnson and Lindenstrauss
    1984)."""
    if width <= WIDE:
        return torch.eye(width, dtype=torch.float64)
    return torch.randn(width, WIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / WIDE**0.5


def whitening(apart: Tensor, shrinkage: float) -> Tensor:
    """`[d, d]`: W with W W' the inverse of the shrunk covariance of rows `[n, d]` whose mean is zero."""
    covariance = apart.T @ apart / len(apart)
    size = covariance.diagonal().mean().clamp_min(1e-12)
    covariance = (1 - shrinkage) * covariance + shrinkage * size * torch.eye(len(covariance)).to(covariance)
    values, vectors = torch.linalg.eigh(covariance)
    return vectors / values.clamp_min(1e-300).sqrt()
