"""Reconstruction error of an autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, nn

from vauban.core.data import Data
from vauban.core.defence import Context
from vauban.core.rng import Rng
from vauban.defences.common import TorchModel
from vauban.defences.detect.view import Detector, View
from vauban.defences.detect.watch import JOINT, Watch
from vauban.defences.detect.watched import Watched
from vauban.defences.preprocess.denoise import Denoising
from vauban.schema.cards import DefenceCard, Source


@dataclass(frozen=True, kw_only=True)
class ReconstructionDetector(Watch):
    """Suspects inputs that a denoising autoencoder, trained on clean rows, changes much.

    The network is that of `preprocess.denoise`. What has noise on it is suspected like what was attacked: see its
    false alarms on noisy data. An attacker who descends the error, too, finds small changes that the network leaves alone (Carlini
    and Wagner 2017, arXiv:1711.08478).

    Source: Meng and Chen 2017 (arXiv:1705.09064, MagNet, section 4.2: detectors by reconstruction error).
    Departures: the network learns what to take off instead of what to keep; the detectors by the divergence of the answers are
    left out.

    Args:
        power: p of the mean p-th power of the change, 1 or 2 in the paper, above 0.
        noise: standard deviation of the noise that the network learns to take off, in widths of the valid range.
        epochs: passes over the training rows.
        width: channels, or hidden units.
        policy: `reject` (a class more, for refusing), `flag` or `pass`.
        alarms: share of clean rows that may be refused or flagged, between 0 and 1.
        aside: share of the training rows that the threshold is set on.
        rows: training rows looked at, at most.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="detect.reconstruction",
        name="Reconstruction error",
        summary="Refuses inputs that an autoencoder of clean inputs changes much; falls to attacks on both together.",
        sources=(
            Source(
                title="MagNet: a two-pronged defense against adversarial examples",
                where="Meng, Chen, CCS 2017, arXiv:1705.09064, section 4.2",
            ),
            Source(
                title="MagNet and 'Efficient defenses against adversarial attacks' are not robust (breaks it)",
                where="Carlini, Wagner, 2017, arXiv:1711.08478",
            ),
        ),
        **JOINT,
    )
    counts: ClassVar[tuple[str, ...]] = ("epochs", "width")

    power: float = 1.0
    noise: float = 0.1
    epochs: int = 10
    width: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("power", "noise"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    @property
    def _how(self) -> Denoising:
        return Denoising(noise=self.noise, epochs=self.epochs, width=self.width)

    def detector(self, model: TorchModel, data: Data) -> Detector:
        return Reconstruction(self._how.blank(model, data), self.power)

    def taught(self, model: TorchModel, watched: Watched, data: Data, rng: Rng, context: Context) -> None:
        """The autoencoder is trained."""
        cast(Reconstruction, watched.detector).network = self._how.cleanser(model, data, rng, context)


class Reconstruction(Detector):
    """The mean of `|x - A(x)|^p`, with the autoencoder A."""

    def __init__(self, network: nn.Module, power: float) -> None:
        super().__init__()
        self.network, self.power = network, power

    def forward(self, view: View) -> Tensor:
        change = (view.x - self.network(view.x)).double().abs()
        return change.pow(self.power).flatten(1).mean(1, keepdim=True)
