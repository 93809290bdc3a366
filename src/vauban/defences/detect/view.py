"""What a detector sees of an input: the model's answer to it, its hidden layers, and answers to other inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn

from vauban.defences.common import Reader, placement
from vauban.parts.listening import holders, listening
from vauban.parts.losses import as_logits

LOOKED = 256
"""Rows at a time where a detector learns."""


class View:
    """Inputs `x` `[n, ...]` in front of a model. It is asked once, when the answer is first wanted.

    `layers` hidden layers are listened to, counted from the last one back: all of them where there are fewer.
    """

    def __init__(self, model: nn.Module, read: Reader, x: Tensor, layers: int = 0) -> None:
        self.x, self._model, self._read, self._layers = x, model, read, layers

    @cached_property
    def _heard(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        with listening(holders(self._model) if self._layers else []) as heard:
            raw = self._model(self.x.clone())  # it may begin with a layer that works in place
        entered = list(heard.values())
        # what enters the first layer is the input itself, and counts only where there is nothing else
        hidden = entered[1:] or entered
        return as_logits(self._read(raw)), tuple(_flat(part) for part in hidden[-self._layers :])

    @property
    def logits(self) -> Tensor:
        """`[n, classes]`; log-probabilities where the model gives probabilities."""
        return self._heard[0]

    @property
    def hidden(self) -> tuple[Tensor, ...]:
        """What enters the last layers, float64 `[n, d]` each; of feature maps, the mean over their positions."""
        return self._heard[1]

    def of(self, x: Tensor) -> View:
        """The same model's view of other inputs."""
        return View(self._model, self._read, x, self._layers)


def _flat(entered: Tensor) -> Tensor:
    # in float64: distances are differences of large numbers, and must not depend on a row's place in the batch
    return (entered.flatten(2).mean(2) if entered.dim() > 2 else entered).double()


Look = Callable[[Tensor], View]


class Learnt(nn.Module):
    """A module whose buffers were learnt: they are saved with it, and come back in whatever size they were saved."""

    def keep(self, **learnt: Tensor) -> None:
        """Remember these, on the device where they are."""
        for name, value in learnt.items():
            self.register_buffer(name, value.detach().clone())

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        # how much was learnt is seen only from what is put back
        for name, own in list(self._buffers.items()):
            given = state.get(prefix + name)
            if given is not None and own is not None:
                self.register_buffer(name, own.new_empty(given.shape, dtype=given.dtype))
        super()._load_from_state_dict(state, prefix, *rest)


class Detector(Learnt, ABC):
    """Scores of inputs, the larger the more suspicious. What it has learnt are buffers, saved with the model."""

    layers: int = 0
    """Hidden layers that it looks at."""

    def learn(self, look: Look, x: Tensor, y: Tensor) -> None:
        """From clean training rows `x` `[n, ...]` and their classes `y` `[n]`; many have nothing to learn."""
        return

    @abstractmethod
    def forward(self, view: View) -> Tensor:
        """Float64 `[n, parts]`: one score, or several that are put together afterwards. Differentiable."""


@torch.no_grad()
def gathered(look: Look, x: Tensor, what: Callable[[View], Tensor]) -> Tensor:
    """`what` of the views of all rows of `x`, `[n, ...]`, a few at a time."""
    return torch.cat([what(look(part)) for part in x.split(LOOKED)])


def nothing(model: nn.Module, *shape: int) -> Tensor:
    """Zeros where a detector has not learnt yet, on the model's device."""
    return torch.zeros(shape, dtype=torch.float64, device=placement(model)[0])
