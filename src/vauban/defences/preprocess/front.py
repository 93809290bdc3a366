"""What stands in front of a model and changes its inputs; and the same for an attacker who knows that it is there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from vauban.core.data import Data
from vauban.core.defence import Context, Hardened
from vauban.core.rng import Rng
from vauban.core.target import Domain, Recipe, Target
from vauban.defences.common import Defended, Redone, TorchModel, around, loaded, placement, torch_backed
from vauban.schema.cards import DefenceCard
from vauban.schema.errors import NotOffered


@dataclass(frozen=True, kw_only=True)
class Preprocessing(ABC):
    """A defence that puts a module in front of the model. Subclasses say which."""

    card: ClassVar[DefenceCard]
    smooth: ClassVar[bool] = False
    """Whether gradients pass through the module as they are; the others hide them."""

    @abstractmethod
    def cleanser(self, model: TorchModel, data: Data, rng: Rng, context: Context) -> nn.Module:
        """Changes inputs `[n, ...]` and gives as many of the same shape. Raises NotOffered where it cannot."""

    def blank(self, model: TorchModel, data: Data) -> nn.Module:
        """A cleanser of the same layout, whose weights are put in afterwards."""
        return self.cleanser(model, data, Rng(0), cast(Context, None))

    def facts(self) -> dict[str, Any]:
        """What the report says of it."""
        return {}

    def __call__(self, target: Target, data: Data, rng: Rng, context: Context) -> Hardened:
        model = torch_backed(target, self.card)
        return Hardened(self._around(model, self.cleanser(model, data, rng, context)), self.facts())

    def restore(self, target: Target, data: Data, state: Mapping[str, Tensor]) -> Target:
        model = torch_backed(target, self.card)
        defended = self._around(model, self.blank(model, data))
        return defended.around(loaded(defended.clone(), state), "")

    def _around(self, model: TorchModel, cleanser: nn.Module) -> Defended:
        kind = Defended if self.smooth else Hiding

        def made(model: TorchModel, recipe: Recipe | None) -> Defended:
            return kind(around(model, Cleansed(cleanser, model.clone()).eval(), f"+{self.card.id}"), recipe)

        plain = model.recipe
        if plain is None:
            return made(model, None)
        return made(model, Redone(lambda x, y, seed: made(cast(TorchModel, plain.fit(x, y, seed)), None)))


class Through(torch.autograd.Function):
    """Forward a function, backward the identity (the straight-through estimator of BPDA)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(x).view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


@runtime_checkable
class Many(Protocol):
    """A cleanser that changes an input in one of several ways."""

    def views(self, x: Tensor) -> Iterator[Tensor]:
        """The input changed in each of them."""
        ...


class Cleansed(nn.Module):
    """A cleanser in front of a model; `soft` passes gradients straight through the cleanser, or the mean of all its ways."""

    def __init__(self, cleanser: nn.Module, model: nn.Module, soft: bool = False) -> None:
        super().__init__()
        self.cleanser, self.model, self.soft = cleanser, model, soft

    def forward(self, x: Tensor) -> Any:
        if self.soft and isinstance(self.cleanser, Many):
            return self._mean_slope(x, self.cleanser)
        z: Tensor = Through.apply(x, self.cleanser) if self.soft else self.cleanser(x)
        return self.model(z.clone())  # it may begin with a layer that works in place

    def _mean_slope(self, x: Tensor, cleanser: Many) -> Tensor:
        """The model's answer; its gradient is that of the mean over the ways, for the next input goes another one."""
        picked = raw(self.model(self.cleanser(x)))
        if not (torch.is_grad_enabled() and x.requires_grad):
            return picked
        mean = torch.stack([raw(self.model(z)) for z in cleanser.views(x)]).mean(0)
        return picked.detach() + (mean - mean.detach())


def raw(answer: Any) -> Tensor:
    """The tensor in what a module returned."""
    values: Tensor = getattr(answer, "logits", answer)
    return values


@dataclass(frozen=True, eq=False)
class Hiding(Defended):
    """A target whose inputs are changed by what has no slope; `softened` is what an attacker who knows this differentiates."""

    def softened(self) -> Target:
        """The same answers; gradients are those of the model at the changed input."""
        whole = cast(Cleansed, self.module)
        return self.inner.around(Cleansed(whole.cleanser, whole.model, soft=True).eval(), "+soft")


def sides(model: TorchModel, data: Data) -> tuple[Tensor, Tensor]:
    """Lowest and highest valid inputs, on the model's device; where the domain does not say, those of the data."""
    device, dtype = placement(model.module)
    low, high = _box(model.domain, data)
    return low.to(device, dtype), high.to(device, dtype)


def _box(domain: Domain, data: Data) -> tuple[Tensor, Tensor]:
    x = data.x_train if data.has_train else data.x_test
    low = x.amin(0) if domain.low is None else torch.as_tensor(domain.low)
    high = x.amax(0) if domain.high is None else torch.as_tensor(domain.high)
    finite = bool(low.isfinite().all()) and bool(high.isfinite().all())
    return (low, high) if finite else (x.amin(0), x.amax(0))


def need_pictures(data: Data, card: DefenceCard) -> None:
    """Raises NotOffered for rows that are not pictures `[channels, height, width]` or `[height, width]`."""
    if len(data.shape) not in (2, 3):
        raise NotOffered(
            f"{card.id} is for pictures [rows, channels, height, width], and the rows have shape {data.shape}."
        )
