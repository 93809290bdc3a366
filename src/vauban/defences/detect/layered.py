"""Detectors that score several layers, and what is made of their scores."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vauban.core.rng import Rng
from vauban.defences.detect.view import LOOKED, Detector, Look, View
from vauban.defences.detect.watch import Held, Watch

LEARNT = 200
"""Rows at most that an attack is made on to learn from: a layer has one weight."""


@dataclass(frozen=True, kw_only=True)
class Layered(Watch):
    """A detector with one score a hidden layer. They become one as a mean of standardised scores, or, where `attacks` names some,
    by a logistic regression between clean rows, rows with noise of the same size, and what these attacks made of them."""

    counts: ClassVar[tuple[str, ...]] = ("layers",)

    layers: int = 3
    attacks: str = ""

    def weighed(self, held: Held) -> dict[str, Tensor]:
        """From attacks where some are named; a single score needs no weight."""
        learnt = super().weighed(held)
        if not self.attacks or not learnt:
            return learnt
        from sklearn.linear_model import LogisticRegression

        changed = torch.cat([_fooling(held, name.strip()) for name in self.attacks.split(",")])
        quiet = held.scores(torch.cat([held.x, _noisy(held)]))
        if not len(changed):
            return learnt
        both = (torch.cat([quiet, held.scores(changed)]) - learnt["centre"]) / learnt["spread"]
        attacked = torch.arange(len(both)) >= len(quiet)
        fitted = LogisticRegression(max_iter=1000, class_weight="balanced").fit(both.cpu().numpy(), attacked.numpy())
        return learnt | {"weights": torch.from_numpy(fitted.coef_[0]).to(learnt["weights"])}


def _fooling(held: Held, id: str) -> Tensor:
    """What the attack made of the rows that are answered rightly, where it fooled the model alone."""
    with torch.no_grad():
        right = (held.model.forward(held.x).labels == held.y).nonzero().flatten()[:LEARNT]
    x, y = held.x[right], held.y[right]
    rng = held.rng.child("examples", id)
    found: Tensor = held.context.attack(id)(held.model, x, y, Rng(rng.seed, len(x)), held.model.domain)
    with torch.no_grad():
        return found[held.model.forward(found).labels != y]


def _noisy(held: Held) -> Tensor:
    """The rows kept aside with noise within the threat."""
    space, radius = held.context.space, held.context.radius
    assert space is not None, "who asks for attacks has a room"
    assert radius is not None
    rng = held.rng.child("noise")
    return space.sample(held.x, radius, Rng(rng.seed, len(held.x)), torch.arange(len(held.x)))


class LayeredDetector(Detector):
    """A score for each of the last `layers` hidden layers, or of all where there are fewer."""

    learnt: ClassVar[tuple[str, ...]] = ()
    """Names of what is learnt of each layer."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = layers
        self.keep(**{f"{name}{place}": torch.zeros(1, 1) for place in range(layers) for name in self.learnt})

    @abstractmethod
    def remember(self, seen: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """What is learnt, in the order of `learnt`, from a layer's features `[n, d]` of rows of classes `y` `[n]`."""

    @abstractmethod
    def score(self, seen: Tensor, answered: Tensor, *learnt: Tensor) -> Tensor:
        """Float64 `[n]` from a layer's features `[n, d]`, the classes answered `[n]`, and what was learnt of that layer."""

    def learn(self, look: Look, x: Tensor, y: Tensor) -> None:
        with torch.no_grad():
            parts = [look(part).hidden for part in x.split(LOOKED)]
        for place, layer in enumerate(zip(*parts, strict=True)):
            found = self.remember(torch.cat(layer), y)
            self.keep(**{f"{name}{place}": value for name, value in zip(self.learnt, found, strict=True)})

    def forward(self, view: View) -> Tensor:
        answered = view.logits.argmax(1)
        scores = []
        for place, seen in enumerate(view.hidden):
            known = [self.get_buffer(f"{name}{place}") for name in self.learnt]
            scores.append(self.score(seen, answered, *known))
        return torch.stack(scores, 1)
