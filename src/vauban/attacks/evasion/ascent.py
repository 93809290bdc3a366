"""The ascent of APGD: a step size for every row that adapts itself, and returns to the best point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from vauban.attacks.evasion.climbs import Climb, Dense, Sparse
from vauban.attacks.evasion.front import Front
from vauban.core.attack import EvasionScene
from vauban.core.oracle import Look, Loss

CLIMBS: Mapping[str, type[Climb]] = {"l1": Sparse}
"""Space -> the way to climb in it; `Dense` where there is none."""
WIDE = frozenset({"l2", "l1"})
"""Spaces in which a run may begin farther away than what counts. In linf that leads astray."""
BALLS = ((8.0, 0.2), (4.0, 0.2), (2.0, 0.2))
"""Radii as multiples of the scene's, and their shares of the steps; the rest is made within the scene's."""

Ask = Callable[[Loss, Tensor, Tensor], Look]
"""(loss, points, rows) -> the look: one of the oracle's questions."""


def _climb(scene: EvasionScene) -> type[Climb]:
    return CLIMBS.get(scene.space.name, Dense)


def ascend(scene: EvasionScene, front: Front, z: Tensor, loss: Loss, steps: int, ask: Ask | None = None) -> Tensor:
    """Maximise `loss` from `z` `[m, ...]` for the rows of `front`, until they are decided or after `steps` gradients.

    Gives the points of the largest loss, of the rows that `front` is left with. `ask` is the oracle's `value_and_grad` unless
    given. Within the scene's radius one query more than gradients: the last point counts, too.
    """
    ask, way = ask or scene.oracle.value_and_grad, _climb(scene)
    marks = way.reviews(steps)
    state: Climb | None = None
    since = 0
    for number in range(steps):
        look = ask(loss, z, front.rows)
        if state is None:
            state = way.start(z, look, front.x)
        else:
            state.record(look.value, look.grad)
        state = way(*front.narrow(look.open, *state.parts()))
        if not len(front):
            return state.best
        if number in marks:
            state.review(number - since, front.x)
            since = number
        state.move(scene, front, first=number == 0)
        z = state.at
    front.look(z)
    return z if state is None else state.best


def close_in(scene: EvasionScene, front: Front, start: Tensor, loss: Loss, steps: int, wide: bool = True) -> None:
    """`ascend` in balls that shrink to the scene's, where `wide`: each run begins where the one before it was best.

    Gradients that vanish around the input, as on models hardened in another norm, are found again farther away.
    Croce and Hein 2021 (arXiv:2103.01208, section 4.2), with radii of 8, 4, 2, 1 instead of 3, 2, 1, and in L2, too.
    """
    if wide and scene.space.name in WIDE:
        # what lies outside the radius must not become the best point
        scout = partial(scene.oracle.value_and_grad, keep=False)
        z, rows = front.x + _climb(scene).spread * (start - front.x), front.rows
        for ratio, share in BALLS:
            there, now = Front(scene, rows, ratio * scene.radius), round(share * steps)
            start = z = ascend(scene, there, there.project(z), loss, now, scout)
            rows = there.rows
            if not len(rows):
                return
        steps -= sum(round(share * steps) for _, share in BALLS)
        front = Front(scene, rows)
        start = front.project(start)
    ascend(scene, front, start, loss, steps)
