"""The data audit: which training rows look as if somebody had put them there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vauban.core.attack import PoisonScene, Price
from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.core.target import Featured
from vauban.parts import poison_scores as detect
from vauban.parts.triggers import picture_like
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source
from vauban.schema.errors import BadData

WIDEST = 1024
"""Rows wider than this are projected at random to half as many numbers (Johnson and Lindenstrauss)."""


@dataclass(frozen=True)
class Suspicion:
    """What the audit thinks of each training row."""

    scores: np.ndarray
    """`[n]`, larger is more suspicious."""
    threshold: float
    detectors: Mapping[str, np.ndarray]
    """The score `[n]` of each detector."""
    clean: int
    """How many held-out rows the threshold was calibrated on; 0 where it comes from the training rows themselves."""
    features: str
    """Where the spectral score was computed: `inputs` or `model`."""

    @property
    def flagged(self) -> np.ndarray:
        """bool `[n]`."""
        return self.scores > self.threshold


@dataclass(frozen=True, kw_only=True)
class DataAudit:
    """Score every training row by three detectors, combine them, and flag what exceeds a calibrated threshold.

    Detectors: label disagreement among `neighbours` nearest rows, robust Mahalanobis distance to the class, spectral
    signature of the class. Each score becomes a p-value against held-out rows of the same kind (the test rows, held to
    be clean), and the three are combined by Fisher's sum. With `enough` held-out rows the threshold is their conformal
    quantile at `alarms` (expected share of clean rows flagged; 1 / (rows + 1) where that is more); with fewer, scores
    and threshold come from exponential tails through the bulk of the training rows themselves. `model` computes the spectral score on the last hidden layer of a model trained on the
    data as in the paper, where a recipe is there; otherwise, and by default, on the inputs. `reference`: at most so
    many training rows serve as neighbours.

    Sources: Paudice et al., arXiv:1803.00992 (neighbours); Rousseeuw and Van Driessen 1999 (robust distance); Tran, Li,
    Madry, NeurIPS 2018 (spectral signatures). The combination and its calibration are ours.
    """

    neighbours: int = 10
    alarms: float = 0.005
    enough: int = 99
    model: bool = False
    reference: int = 10_000

    card: ClassVar[AttackCard] = AttackCard(
        id="poisoning.data_audit",
        name="Training data audit",
        summary="Looks for training rows that were tampered with: wrong labels, strange inputs, hidden marks.",
        needs=Access.DATA_READ,
        goals=("untargeted", "targeted"),
        sources=(
            Source(title="Label sanitization against label flipping poisoning attacks", where="arXiv:1803.00992"),
            Source(title="A fast algorithm for the minimum covariance determinant", where="Technometrics 1999"),
            Source(title="Spectral signatures in backdoor attacks", where="NeurIPS 2018, algorithm 1"),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {}, "deep": {"model": True}}

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.reference < 1:
            raise ValueError("neighbours and reference must be at least 1")
        if not 0 < self.alarms < 0.5:
            raise ValueError(f"alarms is {self.alarms:g}: the share of clean rows flagged must lie between 0 and 0.5")

    def price(self, classes: int | None) -> Price:
        """No model, unless features of one are asked for."""
        return Price(trainings=int(self.model))

    def __call__(self, scene: PoisonScene, rng: Rng) -> Suspicion:
        data = scene.data
        if not data.has_train:
            raise BadData("There are no training rows to examine: give x_train and y_train.")
        x, held = _rows(data, rng)
        deep = self._features(scene, rng)
        mine, theirs = self._scores(x, held, deep or (x, held), data, rng)
        clean = len(held) if len(held) >= self.enough else 0
        if clean:
            scores = detect.fisher(*(detect.p_values(mine[name], theirs[name]) for name in mine))
            null = detect.fisher(*(detect.own_p_values(theirs[name]) for name in theirs))
            threshold = detect.conformal_threshold(null, max(self.alarms, 1 / (clean + 1)))
        else:
            scores = np.sum([detect.tail_surprise(mine[name]) for name in mine], axis=0)
            threshold = detect.tail_threshold(scores, self.alarms)
        return Suspicion(scores, threshold, mine, clean, "model" if deep else "inputs")

    def _scores(
        self, x: np.ndarray, held: np.ndarray, deep: tuple[np.ndarray, np.ndarray], data: Data, rng: Rng
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Each detector's scores of the training rows, and of the held-out rows."""
        y, t, k = data.y_train.numpy(), data.y_test.numpy(), self.neighbours
        among = np.sort(rng.numpy("reference").permutation(len(x))[: self.reference])
        mine = {
            "neighbours": detect.neighbour_disagreement(x, y, k=k, among=among),
            "distance": detect.class_distance(x, y, generator=rng.numpy("folds")),
            "spectral": detect.spectral(deep[0], y),
        }
        theirs = {
            "neighbours": detect.neighbour_disagreement(x, y, held, t, k=k, among=among),
            "distance": detect.class_distance(x, y, held, t),
            "spectral": detect.spectral(deep[0], y, deep[1], t),
        }
        return mine, theirs

    def _features(self, scene: PoisonScene, rng: Rng) -> tuple[np.ndarray, np.ndarray] | None:
        if not self.model or scene.recipe is None:
            return None
        trained = scene.recipe.fit(scene.data.x_train, scene.data.y_train, rng.child("model").seed)
        if not isinstance(trained, Featured):
            return None
        return _activations(trained, scene.data.x_train), _activations(trained, scene.data.x_test)


def _activations(model: Featured, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return torch.cat([model.forward_features(part)[1].cpu() for part in x.split(512)]).double().numpy()


def _rows(data: Data, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Flat training and test rows; columns of tables in units of their spread, pixels as they are."""
    x, held = (part.flatten(1).double().numpy() for part in (data.x_train, data.x_test))
    if not picture_like(data.shape):
        x, held = detect.standardised(x, held)
    if x.shape[1] > WIDEST:
        project = rng.numpy("projection").standard_normal((x.shape[1], WIDEST // 2)) / np.sqrt(WIDEST // 2)
        x, held = x @ project, held @ project
    return x, held
