"""Randomness that a sample keeps to itself: one counter-based stream per row.

A row's numbers depend on the seed, the row's own id and how many numbers it drew before; not on which rows stand
beside it, nor on the batch size. The generator is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) used as a counter:
one multiply-xor finaliser per number, vectorised over rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)


def _mix(z: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * _M1
        z = (z ^ (z >> np.uint64(27))) * _M2
    return z ^ (z >> np.uint64(31))


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable: the same parts give the same seed on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class Rng:
    """Streams for `n` rows. `ids` names the rows, so that row 5 of a set draws the same numbers in any batch."""

    def __init__(self, seed: int, ids: int | Sequence[int] | np.ndarray = 0) -> None:
        self.seed = int(seed)
        self.ids = np.arange(ids, dtype=np.int64) if isinstance(ids, int) else np.asarray(ids, dtype=np.int64)
        with np.errstate(over="ignore"):
            root = _mix(np.asarray([self.seed], dtype=np.int64).view(np.uint64) + _GOLDEN)
            self._keys = _mix(self.ids.view(np.uint64) * _GOLDEN + root)
        self._drawn = np.zeros(len(self.ids), dtype=np.uint64)

    def child(self, *name: object) -> Rng:
        """An independent generator for the same rows, e.g. one for each restart."""
        return Rng(derive_seed(self.seed, *name), self.ids)

    def numpy(self, *name: object) -> np.random.Generator:
        """One numpy generator for work that is not done row by row."""
        return np.random.default_rng(derive_seed(self.seed, *name))

    def torch(self, *name: object, device: torch.device | str = "cpu") -> torch.Generator:
        """One torch generator for work that is not done row by row."""
        return torch.Generator(device=device).manual_seed(derive_seed(self.seed, *name))

    def bits(self, rows: Tensor, count: int) -> np.ndarray:
        """uint64 [m, count]: the next `count` numbers of each row."""
        r = rows.detach().cpu().numpy()
        with np.errstate(over="ignore"):
            at = self._drawn[r][:, None] + np.arange(1, count + 1, dtype=np.uint64)[None, :]
            out = _mix(self._keys[r][:, None] + at * _GOLDEN)
        self._drawn[r] += np.uint64(count)
        return out

    def uniform(self, rows: Tensor, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        """float32 [m, *shape] in [low, high), on the device of `rows`."""
        unit = (self.bits(rows, _size(shape)) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        out = torch.from_numpy(unit).reshape(len(rows), *shape).to(rows.device)
        return out if (low, high) == (0.0, 1.0) else out * (high - low) + low

    def normal(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """float32 [m, *shape], standard normal (Box-Muller)."""
        count = _size(shape)
        pairs = (count + 1) // 2
        # in float64, whose last bits differ between vectorised and left-over elements, and are then rounded away
        raw = (self.bits(rows, 2 * pairs) >> np.uint64(40)).astype(np.float64)
        u, v = torch.from_numpy(raw).reshape(len(rows), 2, pairs).unbind(1)
        radius = torch.sqrt(-2.0 * torch.log((u + 1.0) * 2.0**-24))
        angle = v * (2.0**-24 * 2.0 * np.pi)
        flat = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], 1)[:, :count]
        return flat.reshape(len(rows), *shape).to(rows.device, torch.float32)

    def integers(self, rows: Tensor, high: int | Tensor, count: int = 1) -> Tensor:
        """int64 [m, count] in [0, high); `high` may differ from row to row."""
        unit = (self.bits(rows, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        top = torch.as_tensor(high, dtype=torch.float64).reshape(-1, 1)
        return torch.floor(torch.from_numpy(unit) * top.cpu()).to(torch.int64).to(rows.device)

    def signs(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """float32 [m, *shape] of -1 and +1."""
        odd = (self.bits(rows, _size(shape)) >> np.uint64(63)).astype(np.float32)
        return torch.from_numpy(odd * 2.0 - 1.0).reshape(len(rows), *shape).to(rows.device)


def _size(shape: Sequence[int]) -> int:
    size = 1
    for side in shape:
        size *= int(side)
    return size
