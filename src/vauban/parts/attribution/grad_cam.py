"""Attribution by what the last convolution of a network sees."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.parts.attribution.base import Means, Score, values
from vauban.parts.batching import filled, slices
from vauban.parts.windows import upright
from vauban.schema.access import Access
from vauban.schema.errors import NotOffered


@dataclass(frozen=True, kw_only=True)
class GradCam:
    """The maps of the last convolution, each weighted by the mean gradient of the score on it, and enlarged.

    The last convolution is the last to be called, found by one look at the first input. Every channel of a pixel gets
    the pixel's value.

    Source: Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra, "Grad-CAM", ICCV 2017, section 3, equations 1 and 2.
    Departures: none; enlarged bilinearly, as in the authors' examples.

    Args:
        positive: show only what speaks for the score, as in the paper; False keeps what speaks against it, too.

    Raises NotOffered where no convolution is seen at work.
    """

    needs: ClassVar[Access] = Access.GRADIENTS
    kinds: ClassVar[tuple[str, ...]] = ("image",)
    complete: ClassVar[bool] = False

    positive: bool = True

    def __call__(self, score: Score, x: Tensor, means: Means) -> Tensor:
        pictures, back = upright(x)
        if not len(x):
            return torch.zeros_like(x)
        layer = last_convolution(means.module, score, x, means)
        maps = []
        for cut in slices(len(x), max(1, means.batch)):
            rows = torch.arange(cut.start, cut.stop, device=x.device)
            seen, slope = _seen(layer, score, filled(x[cut], means.multiple), filled(rows, means.multiple))
            # in float64, so that the order of summation does not show
            weighted = slope.double().mean((2, 3), keepdim=True) * seen.double()
            maps.append(weighted.sum(1, keepdim=True)[: len(rows)])
        found = torch.cat(maps)
        found = found.relu() if self.positive else found
        large = F.interpolate(found, pictures.shape[2:], mode="bilinear", align_corners=False)
        return back(large.to(x).expand_as(pictures)).contiguous()


def last_convolution(module: nn.Module | None, score: Score, x: Tensor, means: Means) -> nn.Module:
    """The last convolution of pictures that is called when the first row is scored. Raises NotOffered."""
    layers: list[nn.Module] = [p for p in module.modules() if isinstance(p, nn.Conv2d)] if module is not None else []
    called: list[nn.Module] = []

    def note(layer: nn.Module, _inputs: object, _output: object) -> None:
        called.append(layer)

    with _hooked(layers, note):
        values(score, x[:1], torch.zeros(1, dtype=torch.int64, device=x.device), means)
    if not called:
        raise NotOffered(
            "grad_cam needs a network with a convolution that can be seen at work, and this model shows none: choose "
            "integrated_gradients, smooth_grad or occlusion."
        )
    return called[-1]


def _seen(layer: nn.Module, score: Score, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What the layer gave out at its last call, `[m, k, h, w]`, and the gradient of the score on it."""
    kept: list[Tensor] = []

    def keep(_layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()  # the next layer may work in place

    with _hooked([layer], keep), torch.enable_grad():
        value = score(x.detach().clone().requires_grad_(True), rows)  # a graph even where the weights are frozen
        slope = torch.autograd.grad(value.sum(), kept[-1], allow_unused=True)[0] if value.requires_grad else None
    seen = kept[-1].detach()
    return seen, torch.zeros_like(seen) if slope is None else slope


@contextlib.contextmanager
def _hooked(layers: list[nn.Module], hook: object) -> Iterator[None]:
    handles = []
    try:
        for layer in layers:
            handles.append(layer.register_forward_hook(hook))  # type: ignore[arg-type]
        yield
    finally:
        for handle in handles:
            handle.remove()
