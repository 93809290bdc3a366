"""What the defences share: reading a target, fresh weights, losses, and how defended models are trained again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from vauban.core.data import Data
from vauban.core.target import Domain, Outputs, Portable, Recipe, Target, TorchBacked
from vauban.parts.losses import cross_entropy
from vauban.parts.modes import evaluating, still
from vauban.parts.training import reset
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard
from vauban.schema.errors import BadData, NotOffered


class TorchModel(Target, TorchBacked, Protocol):
    """A target around an `nn.Module`: what every defence here works on."""


class _Training(Protocol):
    factory: Callable[[], nn.Module] | None

    def fresh(self, like: nn.Module, seed: int) -> nn.Module: ...


@runtime_checkable
class _Taught(Protocol):
    """A target that knows how its module is made anew."""

    @property
    def training(self) -> _Training | None: ...


@runtime_checkable
class _Layer(Protocol):
    def reset_parameters(self) -> None: ...


def torch_backed(target: Target, card: DefenceCard) -> TorchModel:
    """The target, if there is a module to work on; raises NotOffered."""
    if isinstance(target, TorchBacked):
        return cast(TorchModel, target)
    raise NotOffered(
        f"{card.id} works on the layers of a PyTorch module, and {target.id} offers {', '.join(target.offers.words())} "
        "only: give the model as an nn.Module or with a factory (linear scikit-learn models and MLPs have a twin)."
    )


def training_rows(target: TorchModel, data: Data, card: DefenceCard) -> tuple[Tensor, Tensor]:
    """Inputs `[n, ...]` in the module's dtype and labels `[n]`, on the CPU; raises BadData or NotOffered."""
    if not data.has_train:
        raise BadData(f"{card.id} trains the model, and {data.id} has no training rows: give x_train and y_train.")
    task = target.domain.task or ("regression" if data.y_train.is_floating_point() else "classification")
    if task not in card.tasks:
        raise NotOffered(f"{card.id} is made for {' and '.join(card.tasks)}, and this is a {task}.")
    return data.x_train.to(placement(target.module)[1]), data.y_train


def lessons(target: TorchModel, data: Data, card: DefenceCard) -> tuple[Tensor, Tensor]:
    """The training rows, for a defence that trains the model's own weights; raises NotOffered where it has none, too."""
    if not any(True for _ in target.module.parameters()):
        raise NotOffered(
            f"{card.id} trains the weights of a model, and {target.id} has none that could be (frozen TorchScript keeps them as "
            "constants): give the model before it was frozen, or use a defence in front of it (vauban list defences)."
        )
    return training_rows(target, data, card)


def placement(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the module's first floating-point tensor (CPU, float32 where it has none)."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32


def fresh(target: TorchModel, seed: int, card: DefenceCard) -> nn.Module:
    """An untrained module like the target's: by its factory, or by each layer's own initialiser.

    Raises NotOffered where some parameter would keep its trained values: a model that is said to be trained anew must
    know nothing of the old one.
    """
    training = target.training if isinstance(target, _Taught) else None
    if training is not None and training.factory is not None:
        return training.fresh(target.module, seed)
    stuck = [
        name or type(part).__name__
        for name, part in target.module.named_modules()
        if any(True for _ in part.parameters(recurse=False)) and not isinstance(part, _Layer)
    ]
    if stuck:
        raise NotOffered(
            f"{card.id} trains from scratch, and nobody knows how to initialise {', '.join(stuck[:3])} of {target.id} "
            "anew: give a factory that makes an untrained model (--factory file.py:function)."
        )
    return reset(target.clone(), seed)


def row_losses(outputs: Outputs, y: Tensor) -> Tensor:
    """`[m]`: cross-entropy for classes (from logits or probabilities), squared error for values."""
    if outputs.kind == "values":
        return (outputs.values - y.to(outputs.values.dtype)).square()
    return cross_entropy(outputs, y)


@contextmanager
def only_inputs(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no weight gradients inside: an attack on one's own model costs half a backward pass."""
    with evaluating(module), still(module):
        yield


@dataclass(frozen=True)
class Redone:
    """The recipe of a defended model: `train(x, y, seed)` goes all the way again, the defence included.

    Reference models of a leakage attack must be made like the model under attack; made without the defence, they
    would know less of it than an attacker does.
    """

    train: Callable[[Tensor, Tensor, int], Target]

    def fit(self, x: Tensor, y: Tensor, seed: int) -> Target:
        return self.train(x, y, seed)


@dataclass(frozen=True, eq=False)
class Defended:
    """A target around a defended module whose recipe is the defence's own."""

    inner: TorchModel
    recipe: Recipe | None

    @property
    def id(self) -> str:
        return self.inner.id

    @property
    def domain(self) -> Domain:
        return self.inner.domain

    @property
    def offers(self) -> Access:
        return self.inner.offers | (Access.TRAINING if self.recipe else Access.NONE)

    @property
    def module(self) -> nn.Module:
        return self.inner.module

    def forward(self, x: Tensor) -> Outputs:
        return self.inner.forward(x)

    def forward_features(self, x: Tensor) -> tuple[Outputs, Tensor]:
        featured: Any = self.inner
        answer: tuple[Outputs, Tensor] = featured.forward_features(x)
        return answer

    def read(self, raw: object) -> Outputs:
        return self.inner.read(raw)

    def sha256(self) -> str:
        return self.inner.sha256()

    def files(self) -> dict[str, bytes]:
        return self.inner.files() if isinstance(self.inner, Portable) else {}

    def settled(self, domain: Domain) -> Defended:
        return replace(self, inner=cast(TorchModel, self.inner.settled(domain)))

    def clone(self) -> nn.Module:
        return self.inner.clone()

    def around(self, module: nn.Module, suffix: str) -> Defended:
        return replace(self, inner=around(self.inner, module, suffix))


class Reader:
    """How a target reads what its module returns, for inputs like `x` `[n, ...]`: the `kind` of it, and how many `classes`.

    Shared by copies of the module, which must not copy a target.
    """

    def __init__(self, model: TorchModel, x: Tensor) -> None:
        with torch.no_grad():
            outputs = model.forward(x)
        self.target = around(model, nn.Identity(), "")
        self.kind, self.classes = outputs.kind, outputs.values.shape[1]

    def __call__(self, raw: object) -> Outputs:
        return self.target.read(raw)

    def __deepcopy__(self, memo: dict[int, Any]) -> Reader:
        return self


def around(target: TorchModel, module: nn.Module, suffix: str) -> TorchModel:
    """`target.around(module)`, known to be a torch target still."""
    return cast(TorchModel, target.around(module, suffix))


@torch.no_grad()
def row_batches(answer: Callable[[Tensor], Tensor], count: int, size: int = 512) -> Tensor:
    """`answer(rows)` for all `count` rows, a piece at a time, on the CPU."""
    return torch.cat([answer(rows).cpu() for rows in torch.arange(count).split(size)])


def loaded(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """`module` with these weights, in evaluation mode; raises RuntimeError where names or shapes differ."""
    module.load_state_dict(dict(state))
    return module.eval()
