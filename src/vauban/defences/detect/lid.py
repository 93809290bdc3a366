"""Local intrinsic dimensionality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vauban.core.data import Data
from vauban.defences.common import TorchModel
from vauban.defences.detect.distances import apart
from vauban.defences.detect.layered import Layered, LayeredDetector
from vauban.defences.detect.view import Detector
from vauban.defences.detect.watch import JOINT
from vauban.schema.cards import DefenceCard, Source

TINY = 1e-12
"""Distances below this are taken for it: a row that is known already is no reason for an infinite score."""


@dataclass(frozen=True, kw_only=True)
class LIDDetector(Layered):
    """Suspects inputs around whose hidden features the training rows fill many dimensions.

    The local intrinsic dimensionality is estimated from how fast the distances to the nearest rows grow. Adversarial inputs
    leave the surface on which the data lie, and have a higher one. It falls to attacks of high confidence (Athalye et al. 2018,
    arXiv:1802.00420, section 5.2) and to those that descend the estimate.

    Source: Ma et al. 2018 (arXiv:1801.02613, equation 4 and algorithm 1).
    Departures: neighbours are sought among a fixed set of training rows instead of the minibatch at hand, so that an answer depends
    on its input alone; the layers make a mean of standardised scores unless attacks to learn from are named, when they are
    weighed as in the paper.

    Args:
        layers: hidden layers that are looked at, from the last one back.
        neighbours: k, the nearest rows of which distances are taken, 2 or more.
        references: training rows among which neighbours are sought, at most.
        attacks: ids of attacks, separated by commas, by which the layers are weighed; none where empty.
        policy: `reject` (a class more, for refusing), `flag` or `pass`.
        alarms: share of clean rows that may be refused or flagged, between 0 and 1.
        aside: share of the training rows that the threshold is set on.
        rows: training rows looked at, at most.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="detect.lid",
        name="Local intrinsic dimensionality",
        summary="Refuses inputs around which the training data fill many dimensions; falls to confident attacks.",
        sources=(
            Source(
                title="Characterizing adversarial subspaces using local intrinsic dimensionality",
                where="Ma et al., ICLR 2018, arXiv:1801.02613, algorithm 1",
            ),
            Source(
                title="Obfuscated gradients give a false sense of security (breaks it)",
                where="Athalye, Carlini, Wagner, ICML 2018, arXiv:1802.00420, section 5.2",
            ),
            Source(
                title="Adversarial examples are not easily detected (how detectors are attacked)",
                where="Carlini, Wagner, AISec 2017, arXiv:1705.07263, section 3",
            ),
        ),
        **JOINT,
    )
    counts: ClassVar[tuple[str, ...]] = ("layers", "references")

    neighbours: int = 20
    references: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours < 2:
            raise ValueError(f"neighbours must be at least 2, got {self.neighbours}: one distance shows no growth")

    def detector(self, model: TorchModel, data: Data) -> Detector:
        return LID(self.layers, self.neighbours, self.references)


class LID(LayeredDetector):
    """The dimensionality at each layer."""

    learnt: ClassVar[tuple[str, ...]] = ("seen",)

    def __init__(self, layers: int, neighbours: int, references: int) -> None:
        super().__init__(layers)
        self.neighbours, self.references = neighbours, references

    def remember(self, seen: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return (seen[: self.references],)

    def score(self, seen: Tensor, answered: Tensor, *learnt: Tensor) -> Tensor:
        return dimension(apart(seen, learnt[0]), self.neighbours)


def dimension(distances: Tensor, neighbours: int) -> Tensor:
    """Maximum-likelihood dimensionality `[n]` from distances `[n, m]` to reference rows (Amsaleg et al. 2015).

    `-1 / mean(log(r_i / r_k))` over the k nearest; k is m where there are fewer.
    """
    near = distances.topk(min(neighbours, distances.shape[1]), dim=1, largest=False).values.clamp_min(TINY)
    growth = (near / near[:, -1:]).log().mean(1)
    return -1 / growth.clamp_max(-TINY)
