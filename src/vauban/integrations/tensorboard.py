"""A training's diary for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vauban.core.defence import Diary
from vauban.schema.errors import MissingExtra, RunFolder


@dataclass
class TensorBoard:
    """Figures become scalars and pictures images, by epoch. Nothing is written before the first of them."""

    folder: str
    make: Callable[[str], Any]
    writer: Any = None

    def write(self, epoch: int, figures: Mapping[str, float], pictures: Mapping[str, Tensor]) -> None:
        try:
            self.writer = self.writer or self.make(self.folder)
            for name, value in figures.items():
                self.writer.add_scalar(name, value, epoch)
            for name, shown in pictures.items():
                self.writer.add_images(name, shown, epoch)
            self.writer.flush()
        except OSError as error:
            raise RunFolder(
                f"The TensorBoard folder {self.folder} cannot be written ({error}): name another."
            ) from error


@contextmanager
def diary(folder: str | Path | None) -> Iterator[Diary | None]:
    """A diary whose event files lie in `folder`; None without a folder.

    Raises MissingExtra where tensorboard is not installed, RunFolder where the folder cannot be written.
    """
    if folder is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtra.of("A diary for TensorBoard", "tensorboard") from None
    book = TensorBoard(str(folder), SummaryWriter)
    try:
        yield book
    finally:
        if book.writer is not None:
            book.writer.close()
