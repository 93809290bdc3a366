"""What every kind of data made of real numbers shares: Lp balls in a box, and a storage grid."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from vauban.core.space import Continuous
from vauban.core.target import Domain
from vauban.parts.projections import SPACES
from vauban.schema.errors import BadThreat


class Boxed:
    """Spaces `linf`, `l2`, `l1`, `l0` between `domain.low` and `domain.high`; rounding to `domain.step`."""

    kind: str
    spaces: ClassVar[tuple[str, ...]] = tuple(SPACES)

    def space(self, name: str, domain: Domain) -> Continuous:
        """The ball of that name. Raises BadThreat, naming the spaces of this kind of data."""
        if name not in SPACES:
            raise BadThreat(
                f"There is no space {name!r} for {self.kind} data: use one of {', '.join(self.spaces)}, "
                f"such as {self.spaces[0]}:0.1."
            )
        low, high = edges(domain)
        return SPACES[name](low, high)

    def stored(self, x: Tensor, clean: Tensor | None, domain: Domain) -> Tensor:
        """`x` on the grid of multiples of `domain.step`, each coordinate rounded towards `clean`.

        Changes only shrink, so that no norm grows; where `clean` itself lies off the grid, a coordinate may end up to
        one step on its other side. To the nearest where `clean` is None. Without a step, `x` as it is.
        """
        if domain.step is None:
            return x
        per_unit = 1.0 / domain.step
        per_unit = round(per_unit) if abs(per_unit - round(per_unit)) < 1e-6 else per_unit
        low, high = (side.to(x) for side in edges(domain))
        exact = x.double() * per_unit
        if clean is None:
            return (torch.round(exact) / per_unit).to(x).clamp(low, high)
        origin = clean.double() * per_unit
        # float32 coordinates that stand for a grid point miss it by a few units in the last place
        blur = 4 * torch.finfo(x.dtype).eps * exact.abs().clamp_min(1)
        level = torch.where(exact >= origin, torch.floor(exact + blur), torch.ceil(exact - blur))
        still = (level - origin).abs() <= blur
        return torch.where(still, clean, (level / per_unit).to(x)).clamp(low, high)

    def looks(self, changed: Tensor, clean: Tensor, domain: Domain) -> dict[str, Tensor]:
        """Nothing: rows of numbers are not looked at."""
        return {}


def edges(domain: Domain) -> tuple[Tensor, Tensor]:
    """Lowest and highest inputs, broadcastable to one row; infinite where nobody declared them."""
    low = -torch.inf if domain.low is None else domain.low
    high = torch.inf if domain.high is None else domain.high
    return torch.as_tensor(low, dtype=torch.float32), torch.as_tensor(high, dtype=torch.float32)
