"""PyTorch modules: everything is offered."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.target import Domain, OutputKind, Outputs, Portable, Recipe
from vauban.parts.layout import memory_format, ordered
from vauban.parts.listening import holders, listening
from vauban.parts.modes import evaluating, in_training
from vauban.parts.training import Batch, fit, quiet_rng, reset
from vauban.schema.access import Access
from vauban.schema.errors import BadTarget
from vauban.targets.torch_script import copied, files, is_script

_ALWAYS = (
    Access.LABELS | Access.SCORES | Access.GRADIENTS | Access.WEIGHTS_READ | Access.WEIGHTS_WRITE | Access.ARTIFACT
)

_SMALL = 200_000


@dataclass(frozen=True, kw_only=True)
class Training:
    """How modules like the target are trained: a fresh module, and the settings of `parts.training.fit`.

    `factory` makes an untrained module; without one, a deep copy of the target is re-initialised layer by layer.
    """

    factory: Callable[[], nn.Module] | None = None
    epochs: int = 20
    batch_size: int = 64
    rate: float = 1e-3
    weight_decay: float = 0.0
    optimiser: Literal["adam", "sgd"] = "adam"
    schedule: Literal["constant", "cosine"] = "constant"

    def fresh(self, like: nn.Module, seed: int) -> nn.Module:
        """An untrained module of the same shape as `like`, on its device and in its dtype."""
        if self.factory is None:
            # frozen weights were learnt elsewhere: once they are reset, they must be learnt like the others
            return reset(copy.deepcopy(like), seed).requires_grad_(True)
        with quiet_rng(seed):
            return self.factory().to(*placement(like))


@dataclass(frozen=True, eq=False)
class TorchRecipe:
    """The recipe of a TorchTarget: `fit` gives the same target around newly trained weights."""

    target: TorchTarget
    training: Training

    def fit(self, x: Tensor, y: Tensor, seed: int) -> TorchTarget:
        how, target = self.training, self.target
        module = how.fresh(target.module, seed)
        device, dtype = placement(module)

        def step(module: nn.Module, batch: Batch) -> Tensor:
            return _loss(target.read(module(batch.x)), batch.y)

        with _threads_for(module):
            fit(
                module,
                x.to(device, dtype),
                y.to(device),
                seed=seed,
                epochs=how.epochs,
                batch_size=how.batch_size,
                rate=how.rate,
                weight_decay=how.weight_decay,
                optimiser=how.optimiser,
                schedule=how.schedule,
                step=step,
            )
        return target.around(module, f"+seed{seed}")


@contextlib.contextmanager
def _threads_for(module: nn.Module) -> Iterator[None]:
    """One thread for a small module: no slower, and the same weights whatever the number of cores."""
    before = torch.get_num_threads()
    if sum(parameter.numel() for parameter in module.parameters()) < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _loss(outputs: Outputs, y: Tensor) -> Tensor:
    if outputs.kind == "values":
        return F.mse_loss(outputs.values, y.to(outputs.values.dtype))
    if outputs.kind == "probabilities":
        return F.nll_loss(outputs.values.clamp_min(1e-7).log(), y)
    return F.cross_entropy(outputs.values, y)


Form = Callable[[nn.Module], dict[str, bytes]]
"""A module as files of the format that the model came in; empty where that format does not hold it."""


@dataclass(frozen=True, eq=False)
class TorchTarget:
    """An `nn.Module` under test.

    `output` says what the module returns: `logits` or `probabilities` `[n, classes]` (`[n]` or `[n, 1]` for a binary
    classifier with a single output), or `values` for a regression. Where it is None it is found at the first
    forward pass: rows that are nowhere negative and sum to 1 are probabilities.

    The module is evaluated in evaluation mode whatever mode it is in, and found again as it was, also after an
    exception; its `.grad` is never touched. Inputs are moved to the module's device and dtype, answers back to the
    device of the inputs. Raises BadTarget where the answer is not a float tensor with one row an input.
    """

    module: nn.Module
    id: str = "model"
    domain: Domain = field(default_factory=Domain)
    output: OutputKind | None = None
    training: Training | None = None
    own_recipe: Recipe | None = None
    """How models like it are trained outside torch; goes before `training`."""
    form: Form | None = None
    """How it is written in the format that it came in, where that is more than weights."""
    _found: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    """Facts learnt from the first pass: the kind of output, the order of memory, the layer that reads the features."""

    @property
    def offers(self) -> Access:
        access = _ALWAYS
        if not self.module.state_dict():  # frozen TorchScript: its weights are constants of the code
            access &= ~Access.WEIGHTS_WRITE
        if self.kind == "logits":
            access |= Access.LOGITS
        if len(holders(self.module)) > 1:
            access |= Access.FEATURES
        return access | Access.TRAINING if self.recipe else access

    @property
    def recipe(self) -> Recipe | None:
        return self.own_recipe or (TorchRecipe(self, self.training) if self.training else None)

    @property
    def kind(self) -> OutputKind | None:
        """What the module returns; None while nobody knows."""
        return "values" if self.domain.task == "regression" else self.output or self._found.get("output")

    def forward(self, x: Tensor) -> Outputs:
        device, dtype = placement(self.module)
        with evaluating(self.module):  # the order of memory is found by asking the module, too
            given = self._ordered(x.to(device, dtype))
            # a layer that works in place (nn.ReLU(inplace=True) first of all) must not reach the caller's inputs
            raw = self.module(given.clone() if given is x else given)
        outputs = self.read(raw)
        if len(outputs.values) != len(x):
            raise BadTarget(
                f"The model gave {len(outputs.values)} answers to {len(x)} inputs: it must give one row an input."
            )
        return replace(outputs, values=outputs.values.to(x.device))

    def _ordered(self, x: Tensor) -> Tensor:
        """Pictures in the order of memory that suits the module; found at the first pass."""
        if x.dim() != 4 or not len(x):
            return x
        if "order" not in self._found:
            self._found["order"] = memory_format(self.module, x)
        return ordered(x, self._found["order"])

    def forward_features(self, x: Tensor) -> tuple[Outputs, Tensor]:
        """The answer, and the flat activations `[n, d]` that enter the last linear layer (or the last layer with
        parameters, where none is linear), in the order of execution. Differentiable."""
        layers = holders(self.module)
        known = self._found.get("reader")
        with listening([known] if known is not None else layers) as heard:
            outputs = self.forward(x)
        if not heard:
            raise BadTarget("The model has no layer whose inputs could be read as features.")
        reader = next((layer for layer in reversed(heard) if isinstance(layer, nn.Linear)), list(heard)[-1])
        self._found["reader"] = reader
        return outputs, heard[reader].flatten(1).to(x.device)

    def read(self, raw: object) -> Outputs:
        """What the module returned, in the form that the rest of the house expects."""
        raw = getattr(raw, "logits", raw)
        if not isinstance(raw, Tensor) or not raw.is_floating_point():
            what = f"a tensor of {raw.dtype}" if isinstance(raw, Tensor) else f"a {type(raw).__name__}"
            raise BadTarget(
                f"The model returned {what}: it must return one float tensor [rows, classes]; "
                "wrap it in a module that gives only the scores."
            )
        column = raw.dim() == 1 or (raw.dim() == 2 and raw.shape[1] == 1)
        if self.domain.task == "regression":
            if not column:
                raise BadTarget(f"The model returned shape {tuple(raw.shape)} for a regression: it must be [rows].")
            return Outputs(raw.reshape(-1), "values")
        if raw.dim() != 2 and not column:
            raise BadTarget(f"The model returned shape {tuple(raw.shape)}: it must be [rows, classes].")
        guess = guess_output(raw) if self.kind is None else None
        if guess is not None:
            self._found["output"] = guess
        kind = self.kind or "logits"
        return Outputs(_two_columns(raw.reshape(-1), kind) if column else raw, kind)

    def sha256(self) -> str:
        """SHA-256 over the names, dtypes, shapes and bytes of the state dict, in order of name."""
        return state_digest(self.module.state_dict())

    def files(self) -> dict[str, bytes]:
        if self.form is not None:
            return self.form(self.module)
        return self.module.files() if isinstance(self.module, Portable) else files(self.module)

    def settled(self, domain: Domain) -> TorchTarget:
        return replace(self, domain=domain, output=self.output or self._found.get("output"))

    def clone(self) -> nn.Module:
        """A deep copy of the module in evaluation mode, without gradients.

        Layers of the copy do not work in place: per-sample gradients and other hooks cannot follow them, and the
        answers are the same.
        """
        module = copied(self.module)
        for part in in_training(module):
            part.training = False
        for part in module.modules():
            if getattr(part, "inplace", None) is True and not is_script(part):
                part.inplace = False  # type: ignore[assignment]
        for parameter in module.parameters():
            parameter.grad = None
        return module

    def around(self, module: nn.Module, suffix: str) -> TorchTarget:
        return replace(self, module=module, id=f"{self.id}{suffix}", output=self.output or self._found.get("output"))


def guess_output(raw: Tensor) -> OutputKind | None:
    """Probabilities where rows are nowhere negative and sum to 1 (a single column: where all lie within [0, 1]).

    None where a single column of fewer than 8 rows leaves it open.
    """
    values = raw.detach().double()
    if values.dim() == 1 or values.shape[1] == 1:
        if values.numel() < 8:
            return None
        return "probabilities" if bool(((values >= 0) & (values <= 1)).all()) else "logits"
    whole = bool(((values.sum(1) - 1).abs() < 1e-3).all())
    return "probabilities" if whole and bool((values >= 0).all()) else "logits"


def _two_columns(one: Tensor, kind: OutputKind) -> Tensor:
    other = 1 - one if kind == "probabilities" else torch.zeros_like(one)
    return torch.stack([other, one], 1)


def state_digest(state: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        if not isinstance(value, Tensor):
            digest.update(f"{name}={value!r};".encode())
            continue
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()


def placement(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the module's first floating-point parameter or buffer (CPU, float32 where it has none)."""
    for tensors in (module.parameters(), module.buffers()):
        for tensor in tensors:
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32


def retrainable(module: nn.Module) -> bool:
    """Whether re-initialising layer by layer reaches every parameter, so that a reset copy knows nothing any more."""
    reset = [part for part in module.modules() if callable(getattr(part, "reset_parameters", None))]
    reached = {id(own) for part in reset for own in part.parameters(recurse=False)}
    return bool(reached) and all(id(parameter) in reached for parameter in module.parameters())
