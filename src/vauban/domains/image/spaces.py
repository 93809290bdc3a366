"""Spaces that pictures alone have: name of a threat -> what makes the space from the smallest and largest pixel."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from vauban.core.space import Continuous
from vauban.domains.image import colours, moves
from vauban.domains.image.damage import Corruption
from vauban.domains.image.knobs import Knobs
from vauban.domains.image.patch import Patch

TURNED: tuple[type[Knobs], ...] = (
    moves.Rotation,
    moves.Translation,
    moves.Rigid,
    moves.Flow,
    colours.Brightness,
    colours.Contrast,
    colours.Gamma,
    colours.Saturation,
    colours.Hue,
    colours.Blur,
    Corruption,
)
"""Spaces of knobs."""

PICTURES: Mapping[str, Callable[[Tensor, Tensor], Continuous]] = {
    **{space.name: space.between for space in TURNED},
    Patch.name: Patch,
}
