"""Any torch code, run as it is, with other gradients: operations that block them are passed through.

A mode sees every torch function that a forward pass calls, whoever wrote it, and whether or not it stands in a layer of
its own. The answers stay the same to rounding; only the way back changes. What a mode cannot see: TorchScript, custom
`autograd.Function`s, numpy, `inference_mode`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Rule = Callable[["Softened", Any, tuple[Any, ...], dict[str, Any]], Any]
"""What to do instead of `function(*args, **kwargs)`."""


class Softened(TorchFunctionMode):
    """Runs the functions in `rules` by those rules, all others as they are. `notes` is what rules keep for later."""

    def __init__(self, rules: Mapping[Any, Rule]) -> None:
        super().__init__()
        self.rules = rules
        self.grad = torch.is_grad_enabled()
        self.gates: dict[int, tuple[Tensor, Tensor]] = {}
        """A mask and its smooth twin, by the mask's identity; the mask is kept so that its identity is not used again."""
        self.sources: dict[int, tuple[Tensor, Tensor]] = {}
        """Whole numbers, and the real ones that they were made of."""
        self.logs: dict[int, tuple[Tensor, Tensor]] = {}
        """Probabilities, and their logarithms as they were before rounding."""
        self.calls = 0
        self.statistics: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule = self.rules.get(func)
        return func(*args, **(kwargs or {})) if rule is None else rule(self, func, args, kwargs or {})


def straight(hard: Tensor, smooth: Tensor) -> Tensor:
    """The value of `hard` with the gradient of `smooth` (straight-through estimator)."""
    return smooth + (hard - smooth).detach()


# Blocked gradients ------------------------------------------------------------------------------------------------


def _identity(mode: Softened, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    hard = func(*args, **kwargs)
    return straight(hard, args[0]) if _live(args[0]) and hard.shape == args[0].shape else hard


def _attached(mode: Softened, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if mode.grad and _live(args[0]) else func(*args, **kwargs)


def _always_on(mode: Softened, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return None if mode.grad else func(*args, **kwargs)


def _cast(mode: Softened, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Into whole numbers and back: what went in is remembered, and comes back with its gradient."""
    given = args[0]
    known = mode.sources.get(id(given))
    out = func(*args, **kwargs)
    if known is not None and out.is_floating_point():
        return straight(out, known[1].to(out))
    if known is None and _live(given) and not out.is_floating_point() and out.dtype != torch.bool:
        mode.sources[id(out)] = (out, given)
    return _gate_cast(mode, given, out)


def _arithmetic(mode: Softened, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    known = [mode.sources.get(id(a)) for a in args]
    real = [a if k is None else straight(k[0].to(k[1]), k[1]) for a, k in zip(args, known, strict=True)]
    return func(*real, **kwargs)


def _live(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad


_T = torch.Tensor
ROUNDING = ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn")
CASTS = ("to", "type", "type_as", "float", "double", "half", "int", "long", "short", "byte", "char", "bool")
DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]
THROUGH: Mapping[Any, Rule] = {
    **{getattr(place, name): _identity for name in ROUNDING for place in (_T, torch)},
    **{getattr(_T, name): _cast for name in CASTS},
    **{getattr(_T, name): _arithmetic for name in ("div", "mul", "add", "sub", "__truediv__", "__mul__", "__rmul__")},
    torch.div: _arithmetic,
    torch.mul: _arithmetic,
    _T.detach: _attached,
    torch.detach: _attached,
    DATA: _attached,
    torch._C._set_grad_enabled: _always_on,
}
"""Rounding, casts to whole numbers, `detach`, `.data` and `no_grad` let gradients through as if they were not there."""


# Thresholds -------------------------------------------------------------------------------------------------------

SHARP = 0.25
"""Width of a soft threshold as a share of the spread of what is compared."""


def _soft_gate(gap: Tensor, upwards: bool) -> Tensor:
    width = SHARP * gap.detach().std().clamp_min(1e-12)
    return torch.sigmoid(gap / width if upwards else -gap / width)


def _open_gate(gap: Tensor, upwards: bool) -> Tensor:
    return torch.full_like(gap, float(upwards)).detach()


def _compare(make: Callable[[Tensor, bool], Tensor], upwards: bool) -> Rule:
    def rule(mode: Softened, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask = func(*args, **kwargs)
        if any(_live(a) for a in args[:2]):
            mode.gates[id(mask)] = (mask, make(args[0] - args[1], upwards))
        return mask

    return rule


def _gate_cast(mode: Softened, given: Any, out: Any) -> Any:
    gate = mode.gates.get(id(given))
    if gate is not None:
        mode.gates[id(out)] = (out, gate[1])
    return out


def _keep_gate(mode: Softened, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _gate_cast(mode, args[0], func(*args, **kwargs))


def _turned(mode: Softened, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    out = func(*args, **kwargs)
    gate = mode.gates.get(id(args[0]))
    if gate is not None:
        mode.gates[id(out)] = (out, 1 - gate[1])
    return out


def _times(mode: Softened, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    hard = func(*args, **kwargs)
    for mask, value in ((args[0], args[1]), (args[1], args[0])):
        gate = mode.gates.get(id(mask))
        if gate is not None and isinstance(value, Tensor):
            return straight(hard, gate[1].to(value) * value)
    return hard


def _where(mode: Softened, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    hard = func(*args, **kwargs)
    gate = mode.gates.get(id(args[0])) if len(args) == 3 else None
    return hard if gate is None else straight(hard, gate[1] * args[1] + (1 - gate[1]) * args[2])


def _masked(mode: Softened, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    hard = func(*args, **kwargs)
    gate = mode.gates.get(id(args[1])) if len(args) > 1 else None
    return hard if gate is None or hard.shape != gate[1].shape else straight(hard, (1 - gate[1]) * args[0])


def _gates(make: Callable[[Tensor, bool], Tensor]) -> dict[Any, Rule]:
    compared = {"gt": True, "ge": True, "__gt__": True, "__ge__": True}
    compared |= {"lt": False, "le": False, "__lt__": False, "__le__": False}
    return {
        **{getattr(_T, name): _compare(make, up) for name, up in compared.items()},
        **{getattr(torch, name): _compare(make, up) for name, up in compared.items() if "_" not in name},
        **{getattr(_T, name): _keep_gate for name in CASTS},
        **dict.fromkeys((_T.logical_not, torch.logical_not, _T.__invert__, torch.bitwise_not, _T.bitwise_not), _turned),
        **dict.fromkeys((_T.mul, torch.mul, _T.__mul__, _T.__rmul__), _times),
        **dict.fromkeys((torch.where,), _where),
        **dict.fromkeys((_T.masked_fill, torch.masked_fill), _masked),
    }


SOFT_GATES: Mapping[Any, Rule] = _gates(_soft_gate)
"""Comparisons that mask something become smooth steps on the way back (k-WTA, sparsification)."""
OPEN_GATES: Mapping[Any, Rule] = _gates(_open_gate)
"""Masks of what is above a threshold count as open on the way back."""


# Softmax, batch statistics, watching ------------------------------------------------------------------------------


def _logged(mode: Softened, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    out = func(*args, **kwargs)
    dim = kwargs.get("dim", args[1] if len(args) > 1 and isinstance(args[1], int) else -1)
    mode.logs[id(out)] = (out, F.log_softmax(args[0].to(torch.promote_types(args[0].dtype, torch.float32)), dim))
    return out


LOGGED: Mapping[Any, Rule] = dict.fromkeys((F.softmax, _T.softmax, torch.softmax), _logged)
"""What a softmax gave is remembered as it was before its numbers were rounded to 0 and 1."""


def _noted(mode: Softened, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = args[0].detach()
    axes = [0, *range(2, given.dim())]
    mode.statistics.append((given.mean(axes), given.var(axes, unbiased=False)))
    return func(*args, **kwargs)


def frozen(statistics: list[tuple[Tensor, Tensor]]) -> Mapping[Any, Rule]:
    """Batch normalisations use `statistics`, one pair a call in the order of calls, whatever stands in the batch."""

    def rule(mode: Softened, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        named = dict(zip(("input", "running_mean", "running_var", "weight", "bias"), args, strict=False)) | kwargs
        mean, var = statistics[mode.calls % len(statistics)]
        mode.calls += 1
        return F.batch_norm(
            named["input"], mean, var, named.get("weight"), named.get("bias"), False, 0.0, named.get("eps", 1e-5)
        )

    return {F.batch_norm: rule}


NOTED: Mapping[Any, Rule] = {F.batch_norm: _noted}
"""The mean and variance of every batch that is normalised are kept in `statistics`."""


def _counted(mode: Softened, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    mode.calls += 1
    return func(*args, **kwargs)


OPTIMISING: Mapping[Any, Rule] = {
    torch.autograd.grad: _counted,
    torch.autograd.backward: _counted,
    _T.backward: _counted,
}
"""Gradients that a model takes of itself while it answers."""


LAYERS = frozenset({F.linear, F.batch_norm, torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, torch.matmul})
AFFINE = frozenset(
    getattr(_T, f"{name}{place}") for name in ("add", "sub", "mul", "div") for place in ("", "_")
) | frozenset({_T.__truediv__, _T.__mul__, _T.__add__, _T.__sub__, torch.add, torch.sub, torch.mul, torch.div})


class Entrance(TorchFunctionMode):
    """What constants are added to and multiplied with inputs of `shape` before the first layer: `last`, or None."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape
        self.last: Tensor | None = None
        self.inside = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.inside = self.inside or func in LAYERS
        if not self.inside and func in AFFINE and len(args) > 1 and self._prepares(args[0], args[1], out):
            self.last = out
        return out

    def _prepares(self, given: Any, constant: Any, out: Any) -> bool:
        if not isinstance(given, Tensor) or given.shape != self.shape or out.shape != self.shape:
            return False
        plain = not isinstance(constant, Tensor) or constant.numel() <= given[0].numel()
        return plain and (self.last is None or given is self.last)
