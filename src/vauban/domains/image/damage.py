"""The space of common corruptions: one kind at a time, in whole severities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vauban.core.rng import Rng
from vauban.core.space import Radius, Validity
from vauban.domains.image.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from vauban.domains.image.knobs import Knobs
from vauban.parts.projections import flat_radius, per_row


@dataclass(frozen=True, eq=False)
class Corruption(Knobs):
    """One of twelve common corruptions, in a whole severity from 1 to the radius.

    A knob for each kind holds its severity; at most one is turned. Random parts are drawn from the picture's own number in
    the data, so that a picture is always corrupted alike.

    Source: Hendrycks and Dietterich 2019 (arXiv:1903.12261), with the severities of their set for pictures of 32 pixels
    where they carry over (noise, brightness, contrast, fog, zoom, pixelate, jpeg). Departures: what needs pictures of its own
    (frost, snow) and glass blur are left out; blurs and elastic distortion have lengths of this library's own, which grow with
    the picture's side; the cloud of fog is smooth noise in five octaves; brightness and contrast change all channels alike;
    enlarging after `pixelate` and clipping follow this library's rules.
    """

    name: ClassVar[str] = "corruption"
    unit: ClassVar[str] = "severity"
    knobs: ClassVar[tuple[str, ...]] = tuple(CORRUPTIONS)
    limits: ClassVar[tuple[float, float]] = (0.0, float(SEVERITIES))
    smooth: ClassVar[bool] = False
    bounded: ClassVar[bool] = True

    def draw(self, z: Tensor, x: Tensor, ids: np.ndarray) -> Tensor:
        dark, bright = self.range(x)
        width = torch.where(bright > dark, bright - dark, 1.0)
        unit, out = (x - dark) / width, x.clone()
        severity, kind = z.max(1)
        for number in kind[severity > 0].unique().tolist():
            rows = ((kind == number) & (severity > 0)).nonzero().flatten()
            level = severity[rows].round().clamp(1, SEVERITIES).long()
            name = self.knobs[number]
            out[rows] = (dark + width * corrupted(name, unit[rows], level, ids[rows.cpu().numpy()]))[...]
        return out

    def allowed(self, z: Tensor, x: Tensor) -> Validity:
        """As everywhere, and one kind alone, in a whole severity."""
        rules = super().allowed(z, x).rules
        return Validity({**rules, "one": (z != 0).sum(1) <= 1, "whole": (z == z.round()).all(1)})

    def within(self, x: Tensor, radius: Radius) -> Callable[[Tensor], Tensor]:
        most = per_row(flat_radius(radius, x).floor().clamp(0, SEVERITIES), x)

        def project(z: Tensor) -> Tensor:
            top, kind = z.max(1, keepdim=True)
            return torch.zeros_like(z).scatter(1, kind, torch.minimum(top.clamp_min(0), most).floor())

        return project

    def sample(self, x: Tensor, radius: Radius, rng: Rng, rows: Tensor) -> Tensor:
        """Any kind and any severity that the radius allows, equally likely."""
        most = flat_radius(radius, x).floor().clamp(0, SEVERITIES)
        kind = rng.integers(rows, len(self.knobs)).to(x.device)
        severity = (1 + rng.integers(rows, most.clamp_min(1)).to(x)).minimum(most[:, None])
        return torch.zeros_like(x).scatter(1, kind, severity)

    def lattice(self, start: Tensor, radius: float, most: int) -> Tensor:
        """Every kind in every severity, the worst first."""
        whole = min(int(radius), SEVERITIES)
        points = [torch.eye(len(self.knobs)) * severity for severity in range(whole, 0, -1)]
        return torch.cat([torch.zeros(0, len(self.knobs)), *points])[:most].to(start)

    def told(self, z: Tensor) -> list[str]:
        top, kind = z.max(1)
        return [f"{self.knobs[k]} {severity:g}" for k, severity in zip(kind.tolist(), top.tolist(), strict=True)]
