"""Modules that are one linear layer behind scalers, and what scalers are made of."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.parts.exact.base import Floats


class Scale(nn.Module):
    """(x - shift) / width, cut to [low, high]; `[n, d]` float64."""

    def __init__(self, shift: Any, width: Any, low: float = -np.inf, high: float = np.inf) -> None:
        super().__init__()
        self.shift: Tensor
        self.width: Tensor
        self.register_buffer("shift", torch.as_tensor(np.array(shift, dtype=np.float64)))
        self.register_buffer("width", torch.as_tensor(np.array(width, dtype=np.float64)))
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        scaled = (x - self.shift) / self.width
        return scaled if self.low == -np.inf else scaled.clamp(self.low, self.high)


class LogSigmoids(nn.Module):
    """One-against-rest probabilities, normalised: softmax(log sigmoid(z)) = sigmoid(z) / sum of sigmoid(z)."""

    def forward(self, z: Tensor) -> Tensor:
        return F.logsigmoid(z)


class Affine(NamedTuple):
    """What such a module consists of."""

    layer: nn.Linear
    """The module's own, not a copy."""
    shift: Floats
    """`[d]`: what is taken from an input before the layer."""
    width: Floats
    """`[d]`: what it is then divided by."""
    end: tuple[nn.Module, ...]
    """What follows, and changes no order of scores."""

    def folded(self) -> tuple[Floats, Floats]:
        """Weights `[outputs, d]` and bias `[outputs]` for inputs in the data's own units, float64."""
        weights = self.layer.weight.detach().cpu().double().numpy() / self.width
        own = self.layer.bias
        bias = np.zeros(len(weights)) if own is None else own.detach().cpu().double().numpy()
        return weights, bias - weights @ self.shift


def affine(module: nn.Module) -> Affine | None:
    """How a module is one linear layer behind scalers, flat inputs taken for granted; None where it is not."""
    parts = list(module) if type(module) is nn.Sequential else [module]
    while parts and _idle(parts[0], START):
        parts = parts[1:]
    at = next((i for i, part in enumerate(parts) if type(part) is nn.Linear), None)
    if at is None or not all(_idle(part, END) for part in parts[at + 1 :]):
        return None
    layer, scalers = parts[at], parts[:at]
    assert isinstance(layer, nn.Linear)
    shift, width = np.zeros(layer.in_features), np.ones(layer.in_features)
    for scaler in scalers:
        if type(scaler) is not Scale or scaler.low != -np.inf:
            return None
        # ((x - shift) / width - s) / w = (x - (shift + s width)) / (width w)
        s, w = (scaler.get_buffer(name).detach().cpu().double().numpy() for name in ("shift", "width"))
        shift, width = shift + s * width, width * w
    return Affine(layer, shift, width, tuple(parts[at + 1 :]))


START: tuple[type[nn.Module], ...] = (nn.Flatten, nn.Identity, nn.Dropout)
"""Layers at the beginning that change nothing of flat inputs."""
END: tuple[type[nn.Module], ...] = (nn.Identity, nn.Dropout, nn.Softmax, nn.LogSoftmax, LogSigmoids)
"""Layers at the end that change no order of scores."""


def _idle(part: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    return type(part) in kinds and getattr(part, "dim", 1) in (1, -1) and getattr(part, "start_dim", 1) == 1
