"""Weights stored as 8-bit integers: one scale a tensor, symmetric, two's complement; and flips of their bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

BITS = 8
_STEPS = torch.tensor([1, 2, 4, 8, 16, 32, 64, -128], dtype=torch.int16)
"""What bit b adds to the number when it is set."""


@dataclass(frozen=True)
class Stored:
    """A weight tensor as it is stored: `codes` int8 and `scale` > 0; the weight is codes * scale."""

    codes: Tensor
    scale: float

    @property
    def weights(self) -> Tensor:
        """float32, of the codes' shape."""
        return self.codes.to(torch.float32) * self.scale


def quantise(weights: Tensor) -> Stored:
    """Round to the nearest of 255 levels from -127 to 127 times max |w| / 127 (all zero: scale 1).

    Raises ValueError where a weight is not finite.
    """
    largest = float(weights.detach().abs().max()) if weights.numel() else 0.0
    if not np.isfinite(largest):
        raise ValueError("weights that are not finite cannot be quantised")
    scale = largest / 127 if largest > 0 else 1.0
    levels = torch.round(weights.detach().to(torch.float32) / scale).clamp(-127, 127)
    return Stored(levels.to(torch.int8).contiguous(), scale)


def bit_steps(codes: Tensor) -> Tensor:
    """int16 `[*codes.shape, 8]`: how much each code changes when one of its bits is flipped."""
    steps = _STEPS.to(codes.device)
    set_ = (codes.to(torch.int16)[..., None] >> torch.arange(BITS, device=codes.device)) & 1
    return torch.where(set_ == 1, -steps, steps)


def flip_bit(code: int, bit: int) -> int:
    """An int8 with one bit flipped, 0 the lowest and 7 the sign."""
    raw = (code & 0xFF) ^ (1 << bit)
    return raw - 256 if raw > 127 else raw


def weight_tensors(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are stored as int8: floating-point weights of two axes or more. Biases and norms are not."""
    return {n: p for n, p in module.named_parameters() if p.dim() >= 2 and p.is_floating_point()}


class QuantisedWeights:
    """The int8 weights of a module, which always holds their values. Changes `module` in place: give it a clone."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.parameters = weight_tensors(module)
        self.stored = {name: quantise(p) for name, p in self.parameters.items()}
        for name in self.stored:
            self._write(name)

    @property
    def bits(self) -> int:
        """How many bits there are in all."""
        return BITS * sum(s.codes.numel() for s in self.stored.values())

    def flip(self, name: str, place: int, bit: int) -> tuple[float, float]:
        """Flip one bit of the weight at a flat index; the weight before and after. The same call takes it back."""
        stored = self.stored[name]
        codes = stored.codes.view(-1)[place : place + 1]
        before = codes.to(torch.float32) * stored.scale
        codes.fill_(flip_bit(int(codes), bit))
        # the same product as in Stored.weights, so that a flip taken back leaves the very same number
        after = codes.to(torch.float32) * stored.scale
        with torch.no_grad():
            parameter = self.parameters[name]
            parameter[np.unravel_index(place, parameter.shape)] = after.to(parameter)[0]
        return float(before), float(after)

    def flip_at_random(self, count: int, generator: np.random.Generator) -> None:
        """Flip `count` different bits, each equally likely."""
        names = list(self.stored)
        ends = np.cumsum([BITS * self.stored[name].codes.numel() for name in names])
        for where in _distinct(int(ends[-1]), count, generator):
            tensor = int(np.searchsorted(ends, where, side="right"))
            place, bit = divmod(int(where) - (int(ends[tensor - 1]) if tensor else 0), BITS)
            self.flip(names[tensor], place, bit)

    def _write(self, name: str) -> None:
        with torch.no_grad():
            parameter = self.parameters[name]
            parameter.copy_(self.stored[name].weights.to(parameter))


def _distinct(total: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` different numbers below `total` (all where there are fewer), without a list of them all."""
    if count * 4 >= total:
        return generator.permutation(total)[:count]
    seen: dict[int, None] = {}
    while len(seen) < count:
        seen[int(generator.integers(total))] = None
    return np.fromiter(seen, dtype=np.int64)


def collapse_level(classes: int) -> float:
    """The accuracy under which a classifier counts as collapsed: 0.2 from 10 classes on, chance + 0.1 below."""
    return max(0.2, 1 / classes + 0.1)
