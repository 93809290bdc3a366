"""Pictures made brighter, harder, more colourful or less sharp."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vauban.domains.image.knobs import Knobs
from vauban.parts.projections import per_row

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in what an eye takes for bright (ITU-R BT.601)."""


@dataclass(frozen=True, eq=False)
class Brightness(Knobs):
    """The same amount, at most the radius in the input's own units, added to every pixel; cut at the ends of the range."""

    name: ClassVar[str] = "brightness"
    unit: ClassVar[str] = "input units"
    knobs: ClassVar[tuple[str, ...]] = ("brightness",)
    limits: ClassVar[tuple[float, float]] = (-torch.inf, torch.inf)

    def widest(self, low: Tensor, high: Tensor) -> float:
        """From black to white."""
        return float((torch.as_tensor(self.bright) - torch.as_tensor(self.dark)).max())

    def draw(self, z: Tensor, x: Tensor, ids: np.ndarray) -> Tensor:
        return x + per_row(z[:, 0], x)


@dataclass(frozen=True, eq=False)
class Contrast(Knobs):
    """Every pixel's distance from the picture's mean times 1 - radius to 1 + radius."""

    name: ClassVar[str] = "contrast"
    unit: ClassVar[str] = "share"
    knobs: ClassVar[tuple[str, ...]] = ("contrast",)
    limits: ClassVar[tuple[float, float]] = (-1.0, 8.0)

    def draw(self, z: Tensor, x: Tensor, ids: np.ndarray) -> Tensor:
        # in float64, so that no row's sum depends on its neighbours
        mean = per_row(x.double().flatten(1).mean(1).to(x), x)
        return mean + (x - mean) * (1 + per_row(z[:, 0], x))


@dataclass(frozen=True, eq=False)
class Gamma(Knobs):
    """Every pixel, as a share of its range, to the power of two to the radius: `gamma:1` is from the square root to the square."""

    name: ClassVar[str] = "gamma"
    unit: ClassVar[str] = "doublings"
    knobs: ClassVar[tuple[str, ...]] = ("gamma",)
    limits: ClassVar[tuple[float, float]] = (-4.0, 4.0)
    bounded: ClassVar[bool] = True

    def draw(self, z: Tensor, x: Tensor, ids: np.ndarray) -> Tensor:
        dark, bright = self.range(x)
        width = torch.where(bright > dark, bright - dark, 1.0).double()
        share = ((x.double() - dark.double()) / width).clamp(0, 1)
        power = torch.exp2(per_row(z[:, 0].double(), share))
        # black stays black, and has no logarithm for the slope
        shifted = torch.where(share > 0, torch.where(share > 0, share, 1.0) ** power, 0.0)
        return (dark.double() + shifted * width).to(x)


@dataclass(frozen=True, eq=False)
class Saturation(Knobs):
    """Every colour's distance from its grey times 1 - radius to 1 + radius; pictures of three channels."""

    name: ClassVar[str] = "saturation"
    unit: ClassVar[str] = "share"
    knobs: ClassVar[tuple[str, ...]] = ("saturation",)
    limits: ClassVar[tuple[float, float]] = (-1.0, 8.0)
    colours: ClassVar[bool] = True

    def draw(self, z: Tensor, x: Tensor, ids: np.ndarray) -> Tensor:
        grey = _grey(x)
        return grey + (x - grey) * (1 + per_row(z[:, 0], x))


@dataclass(frozen=True, eq=False)
class Hue(Knobs):
    """Every colour turned about the axis of greys (in YIQ), by at most the radius in degrees; pictures of three channels."""

    name: ClassVar[str] = "hue"
    unit: ClassVar[str] = "degrees"
    knobs: ClassVar[tuple[str, ...]] = ("hue",)
    limits: ClassVar[tuple[float, float]] = (-180.0, 180.0)
    colours: ClassVar[bool] = True

    def draw(self, z: Tensor, x: Tensor, ids: np.ndarray) -> Tensor:
        angle = z[:, 0].double() * (math.pi / 180)
        cosine, sine = (per_row(part, x[:, 0]) for part in (angle.cos().to(x), angle.sin().to(x)))
        red, green, blue = x.unbind(1)
        grey = _grey(x)[:, 0]
        i = 0.596 * red - 0.274 * green - 0.322 * blue
        q = 0.211 * red - 0.523 * green + 0.312 * blue
        i, q = cosine * i - sine * q, sine * i + cosine * q
        return torch.stack(
            [grey + 0.956 * i + 0.621 * q, grey - 0.272 * i - 0.647 * q, grey - 1.106 * i + 1.703 * q], 1
        )


@dataclass(frozen=True, eq=False)
class Blur(Knobs):
    """A Gaussian blur whose spread is at most the radius in pixels; beyond the edges the outermost pixels go on."""

    name: ClassVar[str] = "blur"
    unit: ClassVar[str] = "pixels"
    knobs: ClassVar[tuple[str, ...]] = ("blur",)
    limits: ClassVar[tuple[float, float]] = (0.0, 16.0)

    def draw(self, z: Tensor, x: Tensor, ids: np.ndarray) -> Tensor:
        return blurred(blurred(x, z[:, 0], 2), z[:, 0], 3)


def blurred(x: Tensor, spread: Tensor, dim: int) -> Tensor:
    """`x` `[m, c, h, w]` blurred along one axis, each row with its own spread `[m]` in pixels."""
    sigma = spread.double().clamp_min(1e-3)
    far = math.ceil(3 * float(spread.detach().max().clamp_min(0))) if len(spread) else 0
    steps = torch.arange(-far, far + 1, device=x.device)
    weights = torch.exp(-((steps[None] / sigma[:, None]) ** 2) / 2)
    # each row's own tails, not the longest of the batch
    weights = torch.where(steps[None].abs() <= torch.ceil(3 * sigma.detach())[:, None], weights, 0.0)
    total = torch.zeros_like(weights[:, 0])
    for column in weights.unbind(1):
        total = total + column
    out, places = torch.zeros_like(x), torch.arange(x.shape[dim], device=x.device)
    for step, weight in zip(steps.tolist(), (weights / total[:, None]).to(x).unbind(1), strict=True):
        moved = x.index_select(dim, (places + step).clamp(0, x.shape[dim] - 1))
        out = out + moved * per_row(weight, x)
    return out


def _grey(x: Tensor) -> Tensor:
    red, green, blue = x.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None].expand_as(x)
