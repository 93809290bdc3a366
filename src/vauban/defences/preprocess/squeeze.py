"""Feature squeezing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.data import Data
from vauban.core.defence import Context, Hardened
from vauban.core.rng import Rng
from vauban.core.target import Domain, Recipe, Target
from vauban.defences.common import Defended, Redone, TorchModel, around, loaded, placement, torch_backed
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source
from vauban.schema.errors import NotOffered


@dataclass(frozen=True, kw_only=True)
class Squeeze:
    """Coarsens inputs in front of the model: fewer grey levels, and for pictures a median over small windows.

    `bits` rounds every feature to 2^bits levels between its lowest and highest valid value; `median` then replaces
    every pixel by the median of a window of that side (of an even window the lower median; edges are mirrored). Small
    changes are rounded away, and so are the gradients: they are zero almost everywhere, which stops gradient attacks
    without removing adversarial inputs. The adaptive attack goes through (BPDA, Athalye et al. 2018): forward as it
    is, backward as if the squeezer were the identity. The defended target offers that version as `softened()`.

    Source: Xu et al. 2018 (arXiv:1704.01155, section III).
    Departure: the paper compares the answers with and without squeezing to detect attacks; here the squeezed input
    simply goes to the model, in front of which nothing is rejected.

    Args:
        bits: levels are 2^bits, 1 to 8; 0 leaves the levels as they are.
        median: side of the window, 2 or more; 0 for none.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="preprocess.squeeze",
        name="Feature squeezing",
        summary="Rounds inputs to a few levels before the model sees them; breaks naive attacks, not ones that know it.",
        needs=Access.WEIGHTS_READ,
        tasks=("classification", "regression"),
        adaptive=("evasion.apgd", "evasion.pgd", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="Feature squeezing: detecting adversarial examples in deep neural networks",
                where="Xu, Evans, Qi, NDSS 2018, arXiv:1704.01155, section III",
            ),
            Source(
                title="Obfuscated gradients give a false sense of security (the adaptive attack)",
                where="Athalye, Carlini, Wagner, ICML 2018, arXiv:1802.00420, section 4.1",
            ),
        ),
    )

    bits: int = 3
    median: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.bits <= 8:
            raise ValueError(f"bits must be 1 to 8 (or 0 for none), got {self.bits}")
        if self.median < 0 or self.median == 1:
            raise ValueError(f"median is the side of a window, 2 or more (or 0 for none), got {self.median}")
        if not self.bits and not self.median:
            raise ValueError("bits and median are both 0: nothing would be squeezed")

    def __call__(self, target: Target, data: Data, rng: Rng, context: Context) -> Hardened:
        model = torch_backed(target, self.card)
        if self.median and len(data.shape) < 2:
            raise NotOffered(
                f"preprocess.squeeze takes a median over windows of pictures, and the inputs have shape {data.shape}: "
                "set median=0."
            )
        if self.median and min(data.shape[-2:]) < self.median:
            raise NotOffered(
                f"preprocess.squeeze cannot lay a window of {self.median} x {self.median} over {data.shape[-2]} x "
                f"{data.shape[-1]} pixels: set a smaller median."
            )
        facts: dict[str, Any] = {
            "bits": self.bits,
            "median": self.median,
            "levels": 2**self.bits if self.bits else None,
        }
        return Hardened(self._around(model, data), facts)

    def restore(self, target: Target, data: Data, state: Mapping[str, Tensor]) -> Target:
        defended = self._around(torch_backed(target, self.card), data)
        return defended.around(loaded(defended.clone(), state), "")

    def _around(self, model: TorchModel, data: Data) -> SqueezedTarget:
        device, dtype = placement(model.module)
        low, high = (side.to(device, dtype) for side in _box(model.domain, data))
        squeezer = Squeezer(low, high, self.bits, self.median)
        defended = _squeezed(model, squeezer)
        if model.recipe is None:
            return defended
        plain: Recipe = model.recipe
        again = Redone(lambda x, y, seed: _squeezed(cast(TorchModel, plain.fit(x, y, seed)), squeezer))
        return replace(defended, recipe=again)


def _box(domain: Domain, data: Data) -> tuple[Tensor, Tensor]:
    """Lowest and highest valid inputs; where the domain does not say, those of the data."""
    x = data.x_train if data.has_train else data.x_test
    low = x.amin(0) if domain.low is None else torch.as_tensor(domain.low)
    high = x.amax(0) if domain.high is None else torch.as_tensor(domain.high)
    finite = bool(low.isfinite().all()) and bool(high.isfinite().all())
    return (low, high) if finite else (x.amin(0), x.amax(0))


class Squeezer(nn.Module):
    """Rounds inputs `[n, ...]` to levels between `low` and `high`, then takes medians of windows."""

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor, bits: int, median: int) -> None:
        super().__init__()
        self.register_buffer("low", low.clone())
        self.register_buffer("high", high.clone())
        self.bits, self.median = bits, median

    def forward(self, x: Tensor) -> Tensor:
        if self.bits:
            x = self._rounded(x)
        return self._smoothed(x) if self.median else x

    def _rounded(self, x: Tensor) -> Tensor:
        steps, span = 2**self.bits - 1, self.high - self.low
        share = torch.where(span > 0, (x - self.low) / span, 0.0).clamp(0, 1)
        return self.low + span * (share * steps).round() / steps

    def _smoothed(self, x: Tensor) -> Tensor:
        side = self.median
        before, after = (side - 1) // 2, side // 2
        planes = x.reshape(-1, 1, *x.shape[-2:])
        padded = F.pad(planes, (before, after, before, after), mode="reflect")
        return padded.unfold(2, side, 1).unfold(3, side, 1).flatten(4).median(-1).values.view_as(x)


class _Through(torch.autograd.Function):
    """Forward a function, backward the identity (the straight-through estimator of BPDA)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(x).view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class Squeezed(nn.Module):
    """A squeezer in front of a model; `soft` passes gradients straight through the squeezer."""

    def __init__(self, squeezer: Squeezer, model: nn.Module, soft: bool = False) -> None:
        super().__init__()
        self.squeezer, self.model, self.soft = squeezer, model, soft

    def forward(self, x: Tensor) -> Any:
        z: Tensor = _Through.apply(x, self.squeezer) if self.soft else self.squeezer(x)
        return self.model(z.clone())  # it may begin with a layer that works in place


@dataclass(frozen=True, eq=False)
class SqueezedTarget(Defended):
    """A target whose inputs are squeezed; `softened` is what an attacker who knows this differentiates."""

    def softened(self) -> Target:
        """The same answers; gradients are those of the model at the squeezed input."""
        whole = cast(Squeezed, self.module)
        return self.inner.around(Squeezed(whole.squeezer, whole.model, soft=True).eval(), "+soft")


def _squeezed(model: TorchModel, squeezer: Squeezer) -> SqueezedTarget:
    return SqueezedTarget(around(model, Squeezed(squeezer, model.clone()).eval(), "+preprocess.squeeze"), None)
