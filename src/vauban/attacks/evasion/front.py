"""The rows that an attack still works on, and what it knows of each."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vauban.core.attack import EvasionScene
from vauban.schema.errors import BadThreat


class Front:
    """Row numbers `rows` `[m]`, their clean inputs `x` `[m, ...]` and their projection, made anew only when rows leave.

    A decided row costs nothing more, because it is no longer asked about.
    """

    def __init__(self, scene: EvasionScene, rows: Tensor | None = None, radius: float | None = None) -> None:
        """`radius` is the scene's unless given: a search may look farther than what counts."""
        self._scene = scene
        self.rows = scene.oracle.rows if rows is None else rows
        self.radius = scene.radius if radius is None else radius
        self._index()

    def __len__(self) -> int:
        return len(self.rows)

    def _index(self) -> None:
        scene = self._scene
        whole = len(self.rows) == len(scene.x)
        self.x = scene.x if whole and _in_order(self.rows) else scene.x[self.rows]
        self.project: Callable[[Tensor], Tensor] = scene.space.within(self.x, self.radius)

    def narrow(self, stay: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Go on with the rows where `stay` `[m]` holds; gives each tensor of per-row state `[m, ...]` cut alike."""
        if bool(stay.all()):
            return state
        self.rows = self.rows[stay]
        self._index()
        return tuple(part[stay] for part in state)

    def look(self, z: Tensor) -> None:
        """Ask about `z` `[m, ...]` once more, unless it may lie farther than what counts."""
        if self.radius <= self._scene.radius:
            self._scene.oracle.margins(z, self.rows)


def _in_order(rows: Tensor) -> bool:
    return bool((rows == torch.arange(len(rows), device=rows.device)).all())


def finite_radius(scene: EvasionScene, name: str) -> float:
    """The scene's radius; raises BadThreat where it is infinite and the attack works within a given one."""
    if not math.isfinite(scene.radius):
        raise BadThreat(
            f"{name} works within a radius and was given none: name one, such as {scene.space.name}:0.1, or use "
            "evasion.hop_skip_jump, which looks for the nearest success."
        )
    return scene.radius
