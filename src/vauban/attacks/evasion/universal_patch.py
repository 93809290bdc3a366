"""One patch for all pictures, wherever it is put."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import finite_radius
from vauban.attacks.evasion.patch import BROWN
from vauban.attacks.evasion.settings import at_least, one_of
from vauban.attacks.evasion.universal import affordable
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.parts import windows
from vauban.parts.losses import LOSSES
from vauban.parts.windows import upright
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard

FIRST, LAST = 0.2, 0.01
"""Sizes of the first and the last step, as shares of the range of a pixel."""
MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class UniversalPatch:
    """One square patch that fools the model on as many pictures as possible, at a random place in each.

    In every step the patch is put at another random place in every picture; the slopes of the loss at those pixels, summed over
    the pictures that it does not fool yet, move it. What counts is its success at places drawn afresh after training:
    the pictures given back carry it at one of them, and `facts` holds the patch (`patch`, channels first) and its share over
    several (`fooled`).

    Source: Brown et al. 2017 (arXiv:1712.09665, equation 1). Departures: the expectation is over pictures and places; the
    patch is neither turned nor scaled, because its room is counted in pixels; it is a square (or the nearest that fits);
    signed steps with momentum; any wrong class will do where no class is wanted.

    Args:
        steps: gradients for each picture.
        places: random places in each picture at which the finished patch is measured.
        loss: `margin` (difference of logits), `ce` (cross-entropy) or `dlr`.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.universal_patch",
        name="Universal adversarial patch",
        summary="Makes one patch that fools the model wherever it is put in whatever picture.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("patch",),
        tasks=("classification", "regression"),
        modalities=("image",),
        goals=("untargeted", "targeted"),
        joint=True,
        sources=(BROWN,),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 30, "places": 2},
        "deep": {"steps": 500, "places": 20},
    }

    steps: int = 100
    places: int = 5
    loss: str = "margin"

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        at_least("places", self.places, 1)
        one_of("loss", self.loss, LOSSES)

    def price(self, classes: int | None) -> Price:
        """A gradient a step and a query a place; twice the gradients in a regression."""
        steps = self.steps * (1 if classes else 2)
        sides = 1 if classes else 2
        return Price(queries=steps + sides * self.places + 1, gradients=steps)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Pictures `[n, ...]` that carry the patch. Raises BadThreat for an infinite radius."""
        radius = finite_radius(scene, self.card.name)
        rows = scene.oracle.rows
        h, w = upright(scene.x)[0].shape[2:]
        sizes = windows.shapes(h, w, radius)
        if not len(rows) or not sizes:
            return Perturbed(scene.x, facts={"patch": [], "fooled": None})
        shape = min(sizes, key=lambda size: abs(size[0] - size[1]))
        made = [
            self._train(scene, rows, shape, rng.child("train", side), loss)
            for side, loss in enumerate(scene.oracle.goal.objectives(self.loss))
        ]
        shares = [self._measured(scene, rows, patch, rng.child("measure")) for patch in made]
        best = max(range(len(made)), key=lambda number: shares[number])
        final = _pasted(scene, rows, made[best], rng.child("final"))[0]
        return Perturbed(
            torch.index_copy(scene.x, 0, rows, final), facts={"patch": made[best].tolist(), "fooled": shares[best]}
        )

    def _train(self, scene: EvasionScene, rows: Tensor, shape: tuple[int, int], rng: Rng, loss: Loss) -> Tensor:
        """The patch `[c, a, b]`."""
        x = scene.x[rows]
        low, high = (float(side) for side in _ends(scene, x))
        patch = torch.full((upright(x)[0].shape[1], *shape), (low + high) / 2, dtype=x.dtype, device=x.device)
        pace = torch.zeros_like(patch)
        for number in range(self.steps):
            if not affordable(scene.oracle, rows):
                break
            z, corners = _pasted(scene, rows, patch, rng)
            look = scene.oracle.value_and_grad(loss, z, rows)
            slope = _under(look.grad, corners, shape)[look.margin <= 0].sum(0)
            size = slope.abs().sum().clamp_min(torch.finfo(slope.dtype).tiny)
            pace = MOMENTUM * pace + slope / size
            share = FIRST * (LAST / FIRST) ** (number / self.steps)
            patch = torch.clamp(patch + pace.sign() * (share * (high - low)), low, high)
        return patch

    def _measured(self, scene: EvasionScene, rows: Tensor, patch: Tensor, rng: Rng) -> float:
        """The share of rows and random places at which the patch fools the model."""
        shares = [0.0]
        for _ in range(self.places):
            if not affordable(scene.oracle, rows):
                break
            margin = scene.oracle.margins(_pasted(scene, rows, patch, rng)[0], rows)
            shares.append(float((margin > 0).double().mean()))
        return sum(shares) / max(1, len(shares) - 1)


def _ends(scene: EvasionScene, x: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value of any pixel; of the pictures at hand where nobody declared them."""
    low, high = scene.space.low.to(x).min(), scene.space.high.to(x).max()
    return torch.where(low.isfinite(), low, x.min()), torch.where(high.isfinite(), high, x.max())


def _places(corners: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of picture, row and column of the pixels under the patch, which broadcast to `[m, a, b]`."""
    a, b = (torch.arange(side, device=corners.device) for side in shape)
    pictures = torch.arange(len(corners), device=corners.device)[:, None, None]
    return pictures, (corners[:, :1] + a)[:, :, None], (corners[:, 1:] + b)[:, None, :]


def _under(g: Tensor, corners: Tensor, shape: tuple[int, int]) -> Tensor:
    """`[m, c, a, b]`: what lies under the patch."""
    return upright(g)[0].movedim(1, -1)[_places(corners, shape)].movedim(-1, 1)


def _pasted(scene: EvasionScene, rows: Tensor, patch: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
    """The pictures of those rows with the patch at a random place in each, and its upper left corners `[m, 2]`."""
    x = scene.x[rows]
    pictures, back = upright(x)
    shape = (patch.shape[1], patch.shape[2])
    room = [side - own + 1 for side, own in zip(pictures.shape[2:], shape, strict=True)]
    corners = torch.cat([rng.integers(rows, most) for most in room], 1).to(x.device)
    covered = pictures.movedim(1, -1).clone()
    covered[_places(corners, shape)] = patch.movedim(0, -1)
    low, high = scene.space.low.to(x), scene.space.high.to(x)
    return torch.clamp(back(covered.movedim(-1, 1)), low, high), corners
