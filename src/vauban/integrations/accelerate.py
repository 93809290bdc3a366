"""Several processes that train one model: those that `torchrun` or `accelerate launch` started."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from vauban.core.crew import ALONE, Crew
from vauban.schema.errors import MissingExtra, Unassessed

T = TypeVar("T")
SEVERAL, ONE = "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"
"""Variables that a launcher sets: `torchrun`, and `accelerate launch` for a single process."""
PATIENCE = timedelta(days=1)
"""How long a process waits for the others: the first one judges whole epochs alone."""


_BUT_ONE = (
    "accelerate launch --cpu has started one process, however many were asked for: torchrun --nproc_per_node 2 -m vauban ..., or "
    "accelerate launch --multi_gpu --num_processes 2 -m vauban ..., starts two on CPUs, too"
)


@dataclass(frozen=True)
class Launched:
    """One of the processes that a launcher started."""

    rank: int
    size: int
    device: torch.device | None

    def total(self, values: Tensor) -> Tensor:
        from accelerate.utils import reduce

        with self._together():
            return cast(Tensor, reduce(values, reduction="sum"))

    def same(self, make: Callable[[], T]) -> T:
        from accelerate.utils import broadcast_object_list

        made = [make() if self.rank == 0 else None]
        with self._together():
            return cast(T, made[0] if self.size == 1 else broadcast_object_list(made)[0])

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Where one process fails, the others hear of it here; the first one says so, the others end with a word."""
        try:
            yield
        except RuntimeError as error:
            if self.rank:
                raise SystemExit(
                    f"process {self.rank} of {self.size} ends, as another did: {str(error)[:80]}"
                ) from None
            raise Unassessed(
                f"Another process of this training has ended ({str(error)[:80]}): what it said is above; run the same "
                "command again to resume."
            ) from error


def crew(tell: Callable[[str], None] = lambda text: None, environ: Mapping[str, str] = os.environ) -> Crew:
    """The processes that this one was launched with; itself alone where no launcher started it.

    Each process has a GPU of its own; on CPUs they talk through gloo. The group is left when the process ends. `tell` hears
    what a user should know. Raises MissingExtra where accelerate is not installed.
    """
    if SEVERAL not in environ and ONE not in environ:
        return ALONE
    if SEVERAL not in environ and "MASTER_PORT" in environ:
        tell(_BUT_ONE)
    try:
        from accelerate import PartialState
    except ImportError:
        raise MissingExtra.of("Training by a launcher", "train") from None
    settings: dict[str, Any] = {"timeout": PATIENCE} if SEVERAL in environ else {}
    accelerator = torch.accelerator.is_available() and environ.get("ACCELERATE_USE_CPU", "").lower() != "true"
    state = PartialState(cpu=not accelerator, **settings)
    if state.num_processes > 1:
        atexit.register(state.destroy_process_group)
    device = torch.device("cpu") if state.device.type == "cpu" else state.device  # which it numbers, too
    return Launched(state.process_index, state.num_processes, device)
