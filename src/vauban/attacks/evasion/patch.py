"""A patch for every picture: where it hurts, filled by gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.attacks.evasion.front import Front, finite_radius
from vauban.attacks.evasion.settings import at_least
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.oracle import Loss
from vauban.core.rng import Rng
from vauban.parts import windows
from vauban.parts.projections import per_row
from vauban.parts.windows import upright
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

MOMENTUM = 0.75
FIRST, LAST = 0.5, 0.02
"""Sizes of the first and the last step, as shares of the range of a pixel."""
SHIFTS = ((-1, 0), (1, 0), (0, -1), (0, 1), (-2, 0), (2, 0), (0, -2), (0, 2))
LEGS = 4
"""Parts that the long climb is made of; between two of them the patch is moved."""
BROWN = Source(title="Adversarial patch", where="Brown et al., NIPS 2017 workshop, arXiv:1712.09665")


@dataclass(frozen=True, kw_only=True)
class AdversarialPatch:
    """Covers the most sensitive part of each picture with a patch, and fills it so that the answer changes.

    Places are proposed by gradients: the rectangle whose pixels, each pushed to the end of its range, would close most of
    the gap to another class, were the model linear. Each of several proposals (one for each of the likeliest classes, then
    places that do not share pixels) is filled by a few steps; the best goes on for the rest of the steps, and is moved by a pixel or
    two in between where that helps.

    Source: Brown et al. 2017 (arXiv:1712.09665) for the threat; a patch and a place of its own for each picture as in LaVAN
    (Karmon et al. 2018, arXiv:1801.02608). Departures: the place is searched, not drawn; rectangles of any shape; signed
    steps with momentum between the ends of a pixel's range; no expectation over places, for the attacker pastes it himself:
    `evasion.universal_patch` is one patch for any picture and place; in a regression there are two runs, upwards and downwards.

    Args:
        places: proposals that are tried.
        trial: gradient steps for each proposal.
        steps: gradient steps for the best of them.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.patch",
        name="Adversarial patch",
        summary="Covers a small part of each picture with a pattern that changes the answer.",
        needs=Access.LABELS | Access.SCORES | Access.GRADIENTS,
        spaces=("patch",),
        tasks=("classification", "regression"),
        modalities=("image",),
        goals=("untargeted", "targeted"),
        sources=(
            BROWN,
            Source(
                title="LaVAN: localized and visible adversarial noise",
                where="Karmon et al., ICML 2018, arXiv:1801.02608",
            ),
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"places": 3, "trial": 4, "steps": 12},
        "deep": {"places": 12, "trial": 15, "steps": 150},
    }

    places: int = 6
    trial: int = 8
    steps: int = 40

    def __post_init__(self) -> None:
        at_least("places", self.places, 1)
        at_least("trial", self.trial, 1)
        at_least("steps", self.steps, 0)

    def price(self, classes: int | None) -> Price:
        """Gradients for proposals, trials and the long climb; a query for each, and eight for each move. Twice in a regression."""
        gradients = self.places + self.places * self.trial + self.steps
        queries = 2 + self.places * (self.trial + 1) + self.steps + LEGS * (1 + len(SHIFTS))
        sides = 1 if classes else 2
        return Price(queries=sides * queries, gradients=sides * gradients)

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Pictures `[n, ...]` with at most `radius` of their area changed. Raises BadThreat for an infinite radius."""
        radius = finite_radius(scene, self.card.name)
        h, w = upright(scene.x)[0].shape[2:]
        sizes = windows.shapes(h, w, radius)
        for loss in scene.oracle.goal.objectives("margin"):
            front = Front(scene)
            if len(front) and sizes:
                self._run(scene, front, _proposed(scene, front, loss, sizes, self.places), loss)
        return Perturbed(scene.oracle.best.x)

    def _run(self, scene: EvasionScene, front: Front, work: _Work, loss: Loss) -> None:
        work = work.cut(front, scene.oracle.open(front.rows))
        for number in range(work.boxes.shape[1]):
            if not len(front):
                return
            work.begin(front.x, number, scene)
            work = _climb(scene, front, work, loss, self.trial, FIRST)
        legs = [self.steps * (leg + 1) // LEGS - self.steps * leg // LEGS for leg in range(LEGS)]
        for leg, steps in enumerate(legs):
            if not len(front) or not steps:
                return
            work = _moved(scene, front, work, loss)
            if len(front):
                work = _climb(scene, front, work, loss, steps, FIRST * (LAST / FIRST) ** (leg / LEGS))


@dataclass
class _Work:
    """Per row, `[m, ...]`."""

    boxes: Tensor
    """Proposed rectangles `[m, p, 4]`."""
    slopes: Tensor
    """For each proposal, the gradient at the clean picture, `[m, p, ...]`."""
    z: Tensor
    box: Tensor
    top: Tensor
    """The largest loss so far."""
    best: Tensor
    best_box: Tensor

    @classmethod
    def start(cls, x: Tensor, boxes: Tensor, slopes: Tensor) -> _Work:
        worst = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        return cls(boxes, slopes, x, boxes[:, 0], worst, x, boxes[:, 0])

    def cut(self, front: Front, stay: Tensor) -> _Work:
        return _Work(*front.narrow(stay, *self.parts()))

    def parts(self) -> list[Tensor]:
        return [getattr(self, part.name) for part in fields(self)]

    def begin(self, x: Tensor, number: int, scene: EvasionScene) -> None:
        """A proposal: every pixel inside at the wall that its gradient points to."""
        self.box, slope = self.boxes[:, number], self.slopes[:, number]
        low, high = _box(scene, x)
        self.z = torch.clamp(x + windows.walls(slope, x, low, high) * self.mask(x), low, high)

    def mask(self, x: Tensor) -> Tensor:
        """bool, as `x`: inside the rectangle."""
        h, w = upright(x)[0].shape[2:]
        return windows.spread(windows.covered(self.box, h, w), x)

    def note(self, value: Tensor) -> None:
        better = value > self.top
        self.top = torch.where(better, value, self.top)
        self.best = torch.where(per_row(better, self.z).bool(), self.z, self.best)
        self.best_box = torch.where(better[:, None], self.box, self.best_box)


def _box(scene: EvasionScene, x: Tensor) -> tuple[Tensor, Tensor]:
    return scene.space.low.to(x), scene.space.high.to(x)


def _proposed(scene: EvasionScene, front: Front, loss: Loss, sizes: list[tuple[int, int]], places: int) -> _Work:
    """Rectangles in the order of what they promise, and the gradients that speak for them."""
    slopes = _slopes(scene, front, loss, places)
    low, high = _box(scene, front.x)
    gains = [upright(g.double() * windows.walls(g, front.x, low, high).double())[0].sum(1) for g in slopes.unbind(1)]
    h, w = gains[0].shape[1:]
    boxes, chosen = [], []
    for number in range(places):
        which = number % len(gains)
        box, _ = windows.best(gains[which], sizes)
        boxes.append(box)
        chosen.append(slopes[:, which])
        # the next for this class lies elsewhere
        gains[which] = torch.where(windows.covered(box, h, w), 0.0, gains[which])
    return _Work.start(front.x, torch.stack(boxes, 1), torch.stack(chosen, 1))


def _slopes(scene: EvasionScene, front: Front, loss: Loss, most: int) -> Tensor:
    """Gradients `[m, k, ...]` at the clean pictures: towards each of the likeliest wrong classes, or of the loss alone."""
    oracle, classes = scene.oracle, scene.classes
    if classes is None or classes < 3 or oracle.goal.targeted:
        return oracle.value_and_grad(loss, front.x, front.rows).grad[:, None]
    true = oracle.goal.labels.to(front.x.device)[front.rows]
    scores = oracle.scores(front.x, front.rows)
    near = scores.scatter(1, true[:, None], -torch.inf).topk(min(most, classes - 1), 1).indices
    return oracle.class_slopes(front.x, front.rows, near, true).grad


def _climb(scene: EvasionScene, front: Front, work: _Work, loss: Loss, steps: int, first: float) -> _Work:
    """Fill the patches by signed steps with momentum, until they are decided."""
    low, high = _box(scene, front.x)
    span = torch.where((high - low).isfinite(), high - low, 1.0)
    pace = torch.zeros_like(work.z)
    for number in range(steps):
        look = scene.oracle.value_and_grad(loss, work.z, front.rows)
        work.note(look.value)
        grad, pace, *parts = front.narrow(look.open, look.grad, pace, *work.parts())
        work = _Work(*parts)
        if not len(front):
            return work
        mask = work.mask(front.x)
        size = (grad.double().abs() * mask).flatten(1).sum(1).clamp_min(torch.finfo(torch.float64).tiny)
        pace = MOMENTUM * pace + torch.where(mask, grad / per_row(size, grad), 0.0)
        work.z = torch.clamp(work.z + pace.sign() * span * (first * (LAST / first) ** (number / steps)), low, high)
    work.note(scene.oracle.values(loss, work.z, front.rows).to(work.top))
    return work.cut(front, scene.oracle.open(front.rows))


def _moved(scene: EvasionScene, front: Front, work: _Work, loss: Loss) -> _Work:
    """From the best patch so far: the same patch a pixel or two aside, where that is better."""
    h, w = upright(front.x)[0].shape[2:]
    for down, right in SHIFTS:
        if not len(front):
            return work
        top, left, height, width = work.best_box.unbind(1)
        work.box = torch.stack(
            [
                (top + down).clamp_min(0).minimum(h - height),
                (left + right).clamp_min(0).minimum(w - width),
                height,
                width,
            ],
            1,
        )
        here, back = upright(work.best)
        aside = back(here.roll((down, right), (2, 3)))
        work.z = torch.where(work.mask(front.x), aside, front.x)
        work.note(scene.oracle.values(loss, work.z, front.rows).to(work.top))
        work = work.cut(front, scene.oracle.open(front.rows))
    work.z, work.box = work.best, work.best_box
    return work
