"""Distance to the nearest training rows in feature space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from vauban.core.data import Data
from vauban.defences.common import TorchModel
from vauban.defences.detect.distances import apart
from vauban.defences.detect.layered import Layered, LayeredDetector
from vauban.defences.detect.view import Detector
from vauban.defences.detect.watch import JOINT
from vauban.schema.cards import DefenceCard, Source


@dataclass(frozen=True, kw_only=True)
class NeighbourDetector(Layered):
    """Suspects inputs whose features are far from those of training rows of the class that is answered.

    The score of a layer is the distance, between features of length 1, to the k-th nearest training row that carries the label
    which the model answers. Early layers see an adversarial input among rows of its true class, far from those of the class
    it is taken for. An attacker who descends the distance, too, moves the features to rows of a wrong class (Sitawarin and Wagner
    2019, arXiv:1903.08333, broke deep nearest neighbours so).

    Source: Papernot and McDaniel 2018 (arXiv:1803.04765, section 4: neighbours at several layers and their labels); Sun et al. 2022
    (arXiv:2204.06507, section 3: the distance to the k-th neighbour, features of length 1).
    Departures: labels choose the rows to which distances are taken instead of being counted, which gives a score with
    a slope; layers make a mean of standardised scores instead of a sum of counts, unless attacks to learn from are named.

    Args:
        layers: hidden layers that are looked at, from the last one back.
        neighbours: k.
        attacks: ids of attacks, separated by commas, by which the layers are weighed; none where empty.
        policy: `reject` (a class more, for refusing), `flag` or `pass`.
        alarms: share of clean rows that may be refused or flagged, between 0 and 1.
        aside: share of the training rows that the threshold is set on.
        rows: training rows looked at, at most.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="detect.neighbours",
        name="Deep nearest neighbours",
        summary="Refuses inputs that hidden layers see far from training rows of the class answered; falls to attacks on both.",
        sources=(
            Source(
                title="Deep k-nearest neighbors: towards confident, interpretable and robust deep learning",
                where="Papernot, McDaniel, 2018, arXiv:1803.04765, section 4",
            ),
            Source(
                title="Out-of-distribution detection with deep nearest neighbors",
                where="Sun et al., ICML 2022, arXiv:2204.06507, section 3",
            ),
            Source(
                title="On the robustness of deep k-nearest neighbors (breaks it)",
                where="Sitawarin, Wagner, 2019, arXiv:1903.08333",
            ),
        ),
        **JOINT,
    )
    counts: ClassVar[tuple[str, ...]] = ("layers", "neighbours")

    neighbours: int = 5

    def detector(self, model: TorchModel, data: Data) -> Detector:
        return Neighbours(self.layers, self.neighbours)


class Neighbours(LayeredDetector):
    """The distance to the k-th nearest row of the class answered, at each layer."""

    learnt: ClassVar[tuple[str, ...]] = ("seen", "labels")

    def __init__(self, layers: int, neighbours: int) -> None:
        super().__init__(layers)
        self.neighbours = neighbours

    def remember(self, seen: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return F.normalize(seen, dim=1), y

    def score(self, seen: Tensor, answered: Tensor, *learnt: Tensor) -> Tensor:
        rows, labels = learnt
        alike = apart(F.normalize(seen, dim=1), rows).masked_fill(labels[None] != answered[:, None], FAR)
        return alike.topk(min(self.neighbours, alike.shape[1]), dim=1, largest=False).values[:, -1]


FAR = 2.0
"""The largest distance between vectors of length 1: taken where fewer than k rows carry a label."""
