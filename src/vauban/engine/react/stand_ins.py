"""Targets that answer as another does, and can be attacked where that one cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.target import Domain, Featured, Outputs, Recipe, Target, TorchBacked
from vauban.parts.losses import as_logits
from vauban.parts.softened import Rule, Softened, straight
from vauban.schema.access import Access
from vauban.schema.errors import BadTarget

Answer = Callable[[Target, Tensor], Outputs]


@dataclass(frozen=True, eq=False)
class StandIn:
    """`answer(inner, x)` in place of `inner.forward(x)`. Everything else is `inner`'s."""

    inner: Target
    answer: Answer
    suffix: str
    adds: Access = Access.NONE
    lacks: Access = Access.NONE

    @property
    def id(self) -> str:
        return f"{self.inner.id}+{self.suffix}"

    @property
    def domain(self) -> Domain:
        return self.inner.domain

    @property
    def offers(self) -> Access:
        return (self.inner.offers | self.adds) & ~self.lacks

    @property
    def recipe(self) -> Recipe | None:
        return self.inner.recipe

    def forward(self, x: Tensor) -> Outputs:
        return self.answer(self.inner, x)

    def forward_features(self, x: Tensor) -> tuple[Outputs, Tensor]:
        """Features of the model itself; its answer is this stand-in's."""
        if not isinstance(self.inner, Featured):
            raise BadTarget("The model has no layer whose inputs could be read as features.")
        return self.forward(x), self.inner.forward_features(x)[1]

    def sha256(self) -> str:
        return self.inner.sha256()

    def settled(self, domain: Domain) -> Target:
        return type(self)(self.inner.settled(domain), self.answer, self.suffix, self.adds, self.lacks)


@dataclass(frozen=True, eq=False)
class TorchStandIn(StandIn):
    """One around a module: rows are rounded alike in any batch, as those of the module are."""

    @property
    def module(self) -> nn.Module:
        return self._torch.module

    @property
    def _torch(self) -> Any:
        return self.inner

    def clone(self) -> nn.Module:
        module: nn.Module = self._torch.clone()
        return module

    def around(self, module: nn.Module, suffix: str) -> Target:
        return type(self)(self._torch.around(module, suffix), self.answer, self.suffix, self.adds, self.lacks)

    def read(self, raw: object) -> Outputs:
        outputs: Outputs = self._torch.read(raw)
        return outputs


def stand(inner: Target, answer: Answer, suffix: str, **more: Any) -> Target:
    kind = TorchStandIn if isinstance(inner, TorchBacked) else StandIn
    return kind(inner, answer, suffix, **more)


def softened(inner: Target, rules: Mapping[Any, Rule], suffix: str) -> Target:
    """The same code under other rules for gradients."""

    def answer(target: Target, x: Tensor) -> Outputs:
        with Softened(rules):
            return target.forward(x)

    return stand(inner, answer, suffix)


def unrounded(inner: Target, rules: Mapping[Any, Rule]) -> Target:
    """Log-probabilities as they were before a last softmax was rounded, instead of probabilities."""

    def answer(target: Target, x: Tensor) -> Outputs:
        with Softened(rules) as mode:
            out = target.forward(x)
        found = mode.logs.get(id(out.values))
        return out if found is None else Outputs(found[1].to(out.values.device), "logits")

    return stand(inner, answer, "logits", adds=Access.LOGITS)


def rescaled(inner: Target, factor: float) -> Target:
    """Logits times a factor: the same decisions, with a cross-entropy that is not saturated."""

    def answer(target: Target, x: Tensor) -> Outputs:
        out = target.forward(x)
        return Outputs(as_logits(out) * factor, "logits") if out.values.dim() == 2 else out

    return stand(inner, answer, f"scale{factor:.2g}")


def averaged(inner: Target, draws: int) -> Target:
    """A random model answered by the mean of `draws` answers (EOT: Athalye et al., ICML 2018, section 4)."""

    def answer(target: Target, x: Tensor) -> Outputs:
        several = [target.forward(x) for _ in range(draws)]
        if several[0].kind == "labels":
            return several[0]
        # logarithms of probabilities are averaged as they are: a mean of probabilities saturates
        return Outputs(torch.stack([a.values for a in several]).mean(0), several[0].kind)

    return stand(inner, answer, f"eot{draws}")


def voted(inner: Target, draws: int) -> Target:
    """How often a random model gives each answer, in `draws` answers; the mean prediction in a regression."""

    def answer(target: Target, x: Tensor) -> Outputs:
        several = [target.forward(x) for _ in range(draws)]
        values = torch.stack([a.values for a in several])
        if several[0].kind == "values":
            return Outputs(values.mean(0), "values")
        if several[0].kind == "labels":
            return Outputs(values.mode(0).values, "labels")
        votes = F.one_hot(values.argmax(2), values.shape[2]).to(values.dtype).mean(0)
        return Outputs(votes, "probabilities")

    return stand(inner, answer, f"vote{draws}")


def smoothed(inner: Target, width: float, draws: int = 8) -> Target:
    """The answer at the point itself, with the mean gradient at `draws` points around it, in opposite pairs."""

    def answer(target: Target, x: Tensor) -> Outputs:
        out = target.forward(x)
        if not (torch.is_grad_enabled() and x.requires_grad and out.values.is_floating_point()):
            return out
        generator = torch.Generator().manual_seed(0)
        total = torch.zeros_like(out.values)
        for _ in range(draws // 2):
            noise = (torch.rand(x.shape[1:], generator=generator) * 2 - 1).to(x) * width
            total = total + target.forward(x + noise).values + target.forward(x - noise).values
        return Outputs(straight(out.values, total / (draws // 2 * 2)), out.kind)

    return stand(inner, answer, "smooth")


def passing(inner: Target, names: frozenset[str], suffix: str = "bpda") -> Target:
    """A copy in which the layers of those names pass gradients straight through (BPDA with the identity)."""
    backed: Any = inner
    module = backed.clone()

    def hook(_layer: nn.Module, given: tuple[Any, ...], out: Any) -> Any:
        return straight(out, given[0])

    for name, layer in module.named_modules():
        if name in names:
            layer.register_forward_hook(hook)
    around: Target = backed.around(module, f"+{suffix}")
    return around
