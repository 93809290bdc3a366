"""A data set, checked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vauban.schema.errors import BadData

Array = Any


@dataclass(frozen=True, eq=False)
class Data:
    """Training and test rows of one task.

    `x_*` are `[n, ...]` numbers (uint8 pictures become float32 in [0, 1] with `step` 1/255); `y_*` are `[n]` class
    numbers from 0, or real values for a regression. The training part may be missing: what needs it is then not
    assessed. Raises BadData with what is wrong and what to do.
    """

    x_train: Array = None
    y_train: Array = None
    x_test: Array = None
    y_test: Array = None
    id: str = "data"
    step: float | None = None
    """Inputs are stored on a grid of this size (1/255 for 8-bit pictures); None where they are real numbers."""
    label_names: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    kind: str | None = None
    """`image` or `tabular`, where the file says so."""
    ids: Array = field(default=None)
    """Stable numbers of the test rows, so that a subset draws the same random numbers; 0..n-1 by default."""

    @classmethod
    def of(cls, train: Any, test: Any, **facts: Any) -> Data:
        """All rows of torch loaders.

        Args:
            train: a DataLoader or Dataset of pairs (inputs, labels) for training; None for no training rows.
            test: one for the test rows.
            facts: the other fields of Data, such as `step=1 / 255` and `kind="image"`.

        Everything is held in memory, as float32: 4 bytes a number, 60,000 pictures of 3 x 32 x 32 take 0.7 GiB. Each row is
        drawn once: random changes of a loader stay as they fell, and its shuffling is always the same unless it has a
        generator of its own; global random state is left as found. Raises BadData for anything else than pairs of tensors.
        """
        x_train, y_train = (None, None) if train is None else drained(train, "train")
        x_test, y_test = drained(test, "test")
        return cls(x_train, y_train, x_test, y_test, **facts)

    def __post_init__(self) -> None:
        if self.x_test is None and self.x_train is None:
            raise BadData(
                "The data set is empty: it needs x_test and y_test (and x_train, y_train for training checks)."
            )
        step = self.step
        for part in ("train", "test"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            if x is None and y is None:
                continue
            if x is None or y is None:
                raise BadData(f"x_{part} and y_{part} belong together, but only one of them was given: give both.")
            x, grid = _inputs(x, f"x_{part}")
            object.__setattr__(self, f"x_{part}", x)
            object.__setattr__(self, f"y_{part}", _labels(y, len(x), f"y_{part}"))
            step = step or grid
        object.__setattr__(self, "step", step)
        if self.x_test is None:
            raise BadData("There are no test rows: give x_test and y_test, on which the audit is made.")
        if self.x_train is not None and self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise BadData(
                f"x_train rows have shape {tuple(self.x_train.shape[1:])} but x_test rows {tuple(self.x_test.shape[1:])}: "
                "both must have the same shape."
            )
        if self.ids is None:
            object.__setattr__(self, "ids", np.arange(len(self.x_test)))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x_test.shape[1:])

    @property
    def has_train(self) -> bool:
        return self.x_train is not None

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for name in ("x_train", "y_train", "x_test", "y_test"):
            value = getattr(self, name)
            if value is not None:
                digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
                digest.update(value.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def head(self, count: int, seed: int = 0) -> Data:
        """At most `count` test rows, drawn without regard to order but kept in order; the training rows stay."""
        if count >= len(self.x_test):
            return self
        pick = np.sort(np.random.default_rng(seed).permutation(len(self.x_test))[:count])
        return replace(self, x_test=self.x_test[pick], y_test=self.y_test[pick], ids=np.asarray(self.ids)[pick])


def drained(loader: Any, name: str) -> tuple[Tensor, Tensor]:
    """Inputs `[n, ...]` and labels `[n]` of a DataLoader or Dataset, in its order."""
    if not isinstance(loader, DataLoader | Dataset):
        raise BadData(
            f"{name} is a {type(loader).__name__}: give a torch DataLoader or Dataset of pairs (inputs, labels); arrays go into "
            "vauban.Data(x_train, y_train, x_test, y_test)."
        )
    whole = loader if isinstance(loader, DataLoader) else DataLoader(loader, batch_size=256)
    found: list[tuple[Tensor, Tensor]] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            for batch in whole:
                found.append(_pair(batch, name, whole.batch_size is None and whole.batch_sampler is None))
        except TypeError as error:
            raise BadData(
                f"{name} gives rows that torch cannot put together ({str(error)[:80]}): let it give tensors."
            ) from None
    if not found:
        raise BadData(f"{name} gives no rows: give at least one.")
    shapes = {tuple(x.shape[1:]) for x, _ in found}
    if len(shapes) > 1:
        raise BadData(f"{name} gives inputs of the shapes {sorted(shapes)[:3]}: all rows must have the same shape.")
    x, y = zip(*found, strict=True)
    return torch.cat(x), torch.cat(y)


def _pair(batch: Any, name: str, single: bool) -> tuple[Tensor, Tensor]:
    """Inputs and labels of a batch; of a loader that does not make batches, of a row."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        what = f"{len(batch)} parts" if isinstance(batch, tuple | list) else f"a {type(batch).__name__}"
        raise BadData(f"{name} gives {what} at a time: it must give pairs (inputs, labels).")
    x, y = batch
    if single:
        x, y = torch.as_tensor(x)[None], torch.as_tensor(y).reshape(1, -1)
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise BadData(f"{name} gives a {type(x).__name__} and a {type(y).__name__}: both must be tensors.")
    y = y.squeeze(1) if y.dim() == 2 and y.shape[1] == 1 else y
    return x.detach().cpu(), y.detach().cpu()


def _inputs(value: Array, name: str) -> tuple[Tensor, float | None]:
    try:
        x = torch.as_tensor(np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        kind = getattr(value, "dtype", type(value).__name__)
        raise BadData(f"{name} is {kind}, not an array of numbers: give numpy or torch numbers [rows, ...].") from None
    if x.numel() == 0 or x.dim() < 1 or len(x) == 0:
        raise BadData(f"{name} is empty (shape {tuple(x.shape)}): give at least one row.")
    if x.dim() < 2:
        raise BadData(
            f"{name} has shape {tuple(x.shape)}: it must be [rows, features] or [rows, channels, height, width]."
        )
    if x.is_complex() or x.dtype == torch.bool:
        x = x.to(torch.float32) if x.dtype == torch.bool else _refuse(name, x)
    grid = 1 / 255 if x.dtype == torch.uint8 else None
    x = x.to(torch.float32) / 255 if grid else x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    bad = ~torch.isfinite(x)
    if bad.any():
        rows = bad.flatten(1).any(1).nonzero().flatten()
        raise BadData(
            f"{name} holds NaN or infinite values in {len(rows)} of {len(x)} rows (first: row {int(rows[0])}): "
            "remove or impute them first."
        )
    return x.to(torch.float32), grid


def _refuse(name: str, x: Tensor) -> Tensor:
    raise BadData(f"{name} has dtype {x.dtype}: give real numbers.")


def _labels(value: Array, rows: int, name: str) -> Tensor:
    array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    if array.dtype.kind not in "iufb":
        raise BadData(f"{name} has dtype {array.dtype}: labels must be class numbers 0, 1, 2, ... or real values.")
    y = torch.as_tensor(np.ascontiguousarray(array))
    if y.dim() == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dim() != 1 or len(y) != rows:
        raise BadData(
            f"{name} has shape {tuple(y.shape)} for {rows} rows: it must hold one label a row, shape ({rows},)."
        )
    if y.is_floating_point():
        if not torch.isfinite(y).all():
            raise BadData(f"{name} holds NaN or infinite values: remove those rows first.")
        return y.to(torch.float64)
    return y.to(torch.int64)
