"""Data from torch loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import vauban
from vauban.core.data import Data
from vauban.data.load import load_data
from vauban.schema.errors import BadData

X, Y = torch.arange(30.0).reshape(10, 3), torch.arange(10) % 2


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter((x, int(y)) for x, y in zip(X, Y, strict=True))


class Rows(Dataset[Any]):
    """Whatever `make` makes of a row."""

    def __init__(self, make: Callable[[int], Any], count: int = 10) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Any:
        if row >= self.count:
            raise IndexError
        return self.make(row)


@pytest.mark.parametrize(
    "loader",
    [
        TensorDataset(X, Y),
        DataLoader(TensorDataset(X, Y), batch_size=4),
        DataLoader(TensorDataset(X, Y), batch_size=None),
        DataLoader(TensorDataset(X, Y[:, None]), batch_size=3),
        Stream(),
        DataLoader(Stream(), batch_size=4),
        Rows(lambda row: (X[row].numpy(), int(Y[row]))),
    ],
    ids=["dataset", "loader", "rows", "column", "stream", "stream loader", "numpy"],
)
def test_every_kind_of_loader_gives_the_same_rows(loader: Any) -> None:
    data = vauban.Data.of(loader, TensorDataset(X[:2], Y[:2]), id="rows", kind="tabular")
    assert torch.equal(data.x_train, X)
    assert torch.equal(data.y_train, Y)
    assert (len(data.x_test), data.id, data.kind) == (2, "rows", "tabular")
    assert data.sha256() == Data(X, Y, X[:2], Y[:2]).sha256()
    assert not Data.of(None, loader).has_train


def test_shuffling_is_the_same_each_time_and_leaves_global_numbers_alone() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)
    before = torch.get_rng_state()
    first = Data.of(loader, loader)
    torch.rand(3)
    second = Data.of(loader, loader)
    torch.set_rng_state(before)
    Data.of(loader, loader)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.sha256() == second.sha256()
    assert not torch.equal(first.x_train, X)
    assert torch.equal(first.x_train.sort(0).values, X)
    assert torch.equal(first.x_train[:, 0].long() // 3 % 2, first.y_train)


def test_a_loader_by_itself_is_told_where_it_belongs() -> None:
    with pytest.raises(BadData, match=r"give vauban\.Data\.of\(train_loader, test_loader\)"):
        load_data(DataLoader(TensorDataset(X, Y)))


def test_regression_and_pictures_keep_their_kinds() -> None:
    shown = TensorDataset(torch.full((4, 1, 2, 2), 255, dtype=torch.uint8), torch.rand(4))
    data = Data.of(None, shown)
    assert (data.step, float(data.x_test.max())) == (1 / 255, 1.0)
    assert data.y_test.is_floating_point()


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        ([(X, Y)], "test is a list: give a torch DataLoader or Dataset"),
        (Rows(lambda row: {"x": X[row], "y": 0}), "test gives a dict at a time: it must give pairs"),
        (Rows(lambda row: (X[row], 0, 1)), "test gives 3 parts at a time"),
        (Rows(lambda row: (X[row], "cat")), "test gives a Tensor and a tuple: both must be tensors"),
        (Rows(lambda row: (object(), 1)), "rows that torch cannot put together"),
        (Rows(lambda row: (X[row], 1), 0), "test gives no rows"),
        (DataLoader(Rows(lambda row: (X[row, : 1 + row // 5], 1)), batch_size=5), "inputs of the shapes"),
    ],
    ids=["list", "dict", "three", "words", "objects", "empty", "ragged"],
)
def test_other_structures_are_refused(loader: Any, words: str) -> None:
    with pytest.raises(BadData, match=words):
        Data.of(None, loader)
