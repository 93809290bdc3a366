"""Pictures turned round and moved at random, so that a small training set is not learnt by heart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vauban.core.rng import Rng


@dataclass(frozen=True, eq=False)
class Moved:
    """What happens to each of `m` pictures."""

    mirrored: Tensor
    """bool `[m]`: left and right change places, before it is moved."""
    down: Tensor
    """int64 `[m]`, pixels."""
    right: Tensor

    def there(self, x: Tensor) -> Tensor:
        """`[m, ..., height, width]` as the model is shown it; where a picture leaves a gap, its edge goes on."""
        return _shifted(self._mirror(x), self.down, self.right)

    def back(self, x: Tensor) -> Tensor:
        """The inverse, but for what `there` pushed out of the picture."""
        return self._mirror(_shifted(x, -self.down, -self.right))

    def _mirror(self, x: Tensor) -> Tensor:
        return torch.where(self.mirrored.to(x.device).view(-1, *[1] * (x.dim() - 1)), x.flip(-1), x)


def drawn(rng: Rng, rows: Tensor, crop: int, flip: bool) -> Moved:
    """By up to `crop` pixels in each direction, mirrored half of the time where `flip`; `rows` `[m]` are numbers in `rng`."""
    mirrored, down, right = rng.uniform(rows.cpu(), (3,)).unbind(1)
    places = (torch.floor(part * (2 * crop + 1)).long() - crop for part in (down, right))
    return Moved((mirrored < 0.5) & flip, *places)


def _shifted(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    across = x.reshape(len(x), -1, height, width)
    i, j = (
        (torch.arange(side)[None] - by[:, None]).clamp(0, side - 1).to(x.device)
        for side, by in ((height, down), (width, right))
    )
    rows = torch.arange(len(x), device=x.device)[:, None, None]
    return across[rows, :, i[:, :, None], j[:, None, :]].movedim(-1, 1).reshape(x.shape)
