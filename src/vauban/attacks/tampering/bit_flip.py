"""Bit flips: the few stored bits that a model cannot do without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vauban.core.attack import Flip, Patch, Price, TamperScene
from vauban.core.rng import Rng
from vauban.core.target import Outputs, Target, TorchBacked
from vauban.parts.quantize import QuantisedWeights, bit_steps, collapse_level
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source
from vauban.schema.errors import NotOffered

STEEPEST = 16
"""Weights looked at in each tensor, as a multiple of the bits wanted of it."""
Place = tuple[str, int, int]
"""Tensor, flat index, bit."""


@dataclass(frozen=True, kw_only=True)
class BitFlip:
    """Search the bits of the int8 weights one after the other: rank by gradient, try the best, keep the worst for the model.

    All weight tensors of a clone are quantised (one scale a tensor, symmetric, two's complement); biases and
    normalisation stay as they are. In each round every bit of every tensor is ranked by the first-order change of the
    loss, gradient times the change of the weight; the `candidates` best are tried, and the one that leaves the lowest
    accuracy (at equal accuracy the highest loss) is flipped. A bit is flipped once. The search ends when the edits are
    spent or `scene.evaluate`, which guides no choice, falls under `accuracy` (-1: 0.2, or chance + 0.1 with few classes).

    Source: Rakin, He, Fan, "Bit-flip attack: crushing neural network with progressive bit search", ICCV 2019,
    arXiv:1903.12269, section 4. Departures: candidates come from all layers at once instead of one layer at a time, and
    accuracy on the attacker's rows is looked at before the loss, which can grow on a few rows alone; in each tensor the
    bits of the weights with the steepest gradients are ranked, 16 weights for each candidate, to bound memory.
    """

    candidates: int = 20
    accuracy: float = -1.0

    card: ClassVar[AttackCard] = AttackCard(
        id="tampering.bit_flip",
        name="Progressive bit search",
        summary="Finds the few bits of the stored weights that, once flipped, make the model useless.",
        needs=Access.WEIGHTS_READ | Access.WEIGHTS_WRITE | Access.GRADIENTS,
        goals=("untargeted",),
        sources=(Source(title="Bit-flip attack", where="ICCV 2019, arXiv:1903.12269, section 4"),),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {"candidates": 10}, "deep": {"candidates": 50}}

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ValueError(f"candidates is {self.candidates}: one bit at least must be tried in a round")
        if self.accuracy != -1 and not 0 <= self.accuracy <= 1:
            raise ValueError(
                f"accuracy is {self.accuracy:g}: it must lie between 0 and 1, or be -1 for the usual level"
            )

    def price(self, classes: int | None) -> Price:
        """Per flip, in evaluations of all the attacker's rows: one gradient, and the candidates."""
        return Price(queries=self.candidates + 2, gradients=1)

    def __call__(self, scene: TamperScene, rng: Rng) -> Patch:
        if not isinstance(scene.target, TorchBacked):
            raise NotOffered("bit flips need the weights of an nn.Module, and this target has none to write")
        module = scene.target.clone()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        weights = QuantisedWeights(module)
        if not weights.stored:
            raise NotOffered("the model has no weight matrix whose bits could be flipped")
        target = scene.target.around(module, "+int8")
        level = self.accuracy if self.accuracy != -1 else collapse_level(_classes(target, scene.x))
        flips: list[Flip] = []
        seen, unseen = [_judge(target, scene.x, scene.y)[0]], [scene.evaluate(module)]
        gone: set[Place] = set()
        while len(flips) < scene.edits and unseen[-1] >= level:
            places = _ranked(weights, _slopes(target, weights, scene.x, scene.y), self.candidates, gone)
            if not places:
                break
            best = max(places, key=lambda place: _harm(weights, target, scene, place))
            flips.append(_flipped(weights, best))
            gone.add(best)
            seen.append(_judge(target, scene.x, scene.y)[0])
            unseen.append(scene.evaluate(module))
        facts = {"level": level, "unseen_accuracy": unseen, "bits": weights.bits, "scales": _scales(weights)}
        return Patch(flips=flips, module=module, accuracy=seen, facts=facts)


def _classes(target: Target, x: Tensor) -> int:
    with torch.no_grad():
        return int(target.forward(x[:1]).values.shape[1])


def _loss(outputs: Outputs, y: Tensor) -> Tensor:
    """Mean cross-entropy."""
    if outputs.kind == "probabilities":
        return F.nll_loss(outputs.values.clamp_min(1e-12).log(), y)
    return F.cross_entropy(outputs.values, y)


def _judge(target: Target, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Accuracy and loss; a loss that is not a number counts as none."""
    with torch.no_grad():
        outputs = target.forward(x)
        loss = float(_loss(outputs, y))
    return float((outputs.labels == y).double().mean()), loss if np.isfinite(loss) else 0.0


def _slopes(target: Target, weights: QuantisedWeights, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The gradient of the loss with respect to each weight tensor; nothing stays in `.grad`."""
    parameters = list(weights.parameters.values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            loss = _loss(target.forward(x), y)
            if not loss.requires_grad:
                raise NotOffered("the model passes no gradients to its weights, by which the bits are ranked")
            slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
    found = zip(weights.parameters, parameters, slopes, strict=True)
    return {name: torch.zeros_like(p) if slope is None else slope for name, p, slope in found}


def _ranked(weights: QuantisedWeights, slopes: Mapping[str, Tensor], count: int, gone: set[Place]) -> list[Place]:
    """The bits that raise the loss most to first order, over all tensors; those flipped before are left out."""
    pool: list[tuple[float, Place]] = []
    for name, stored in weights.stored.items():
        slope, wanted = slopes[name].reshape(-1), count + len(gone)
        steep = slope.abs().topk(min(STEEPEST * wanted, len(slope))).indices
        gain = (bit_steps(stored.codes.view(-1)[steep]) * (slope[steep] * stored.scale)[:, None]).reshape(-1)
        best = gain.topk(min(wanted, len(gain)))
        places = ((name, int(steep[where // 8]), where % 8) for where in best.indices.tolist())
        pool += [(g, place) for g, place in zip(best.values.tolist(), places, strict=True) if place not in gone]
    pool.sort(key=lambda entry: (-entry[0], entry[1]))
    return [place for _, place in pool[:count]]


def _harm(weights: QuantisedWeights, target: Target, scene: TamperScene, place: Place) -> tuple[float, float]:
    """What flipping one bit would do, larger is worse for the model; the bit is put back."""
    weights.flip(*place)
    accuracy, loss = _judge(target, scene.x, scene.y)
    weights.flip(*place)
    return -accuracy, loss


def _flipped(weights: QuantisedWeights, place: Place) -> Flip:
    name, flat, bit = place
    before, after = weights.flip(*place)
    index = tuple(int(i) for i in np.unravel_index(flat, weights.stored[name].codes.shape))
    return Flip(tensor=name, index=index, bit=bit, before=before, after=after)


def _scales(weights: QuantisedWeights) -> dict[str, float]:
    return {name: stored.scale for name, stored in weights.stored.items()}
