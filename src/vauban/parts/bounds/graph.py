"""A feed-forward torch module as a short list of nodes that bounds can be propagated through."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from vauban.parts.bounds.ops import Bend, Conv, Dense, Linear, Op, Scale, Shape, Smooth


class Unprovable(Exception):
    """The model holds something that no bound is known for; the message says what, in plain words."""


@dataclass(frozen=True, eq=False)
class Node:
    """`op` is None for the input of the model, node 0."""

    op: Op | None
    inputs: tuple[int, ...]
    shape: Shape

    @property
    def linear(self) -> Linear | None:
        return self.op if isinstance(self.op, Linear) else None

    @property
    def bent(self) -> Bend | Smooth | None:
        return self.op if isinstance(self.op, Bend | Smooth) else None


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in order of evaluation, all constants in float64. `unit` is the rounding unit of the model's own type
    (2^-24 for float32): a proof has to hold for the model as it is computed, not for the ideal one."""

    nodes: tuple[Node, ...]
    unit: float
    sum_unit: float
    """The unit in which the model adds up products: float32's for half-precision models."""

    @property
    def bends(self) -> list[int]:
        """Numbers of the nodes that are activations."""
        return [i for i, node in enumerate(self.nodes) if node.bent is not None]

    @property
    def last(self) -> int:
        return len(self.nodes) - 1

    @property
    def piecewise(self) -> bool:
        """Whether every activation is made of two straight pieces, so that splitting them ends in exact answers."""
        return all(isinstance(self.nodes[i].op, Bend) for i in self.bends)

    def forward(self, x: Tensor) -> Tensor:
        """The scores for `x` `[n, ...]` in float64; differentiable."""
        values: list[Tensor] = [x.double()]
        for node in self.nodes[1:]:
            assert node.op is not None
            values.append(node.op.forward(*(values[i] for i in node.inputs)))
        return values[-1]


class Builder:
    """Grows a graph: what the table of known operations writes to."""

    def __init__(self, shape: Shape) -> None:
        self.nodes = [Node(None, (), shape)]

    def add(self, op: Op, *inputs: int) -> int:
        sample = [torch.zeros(1, *self.nodes[i].shape, dtype=torch.float64) for i in inputs]
        shape = tuple(op.forward(*sample).shape[1:])
        self.nodes.append(Node(op, inputs, shape))
        return len(self.nodes) - 1

    def shape(self, at: int) -> Shape:
        return self.nodes[at].shape


@dataclass(frozen=True)
class Ref:
    """Stands for a node among the arguments of a traced call."""

    at: int
    final: bool = False
    """After a softmax: nothing but the end of the model may follow."""


Rule = Callable[..., Ref]
"""(builder, the call's arguments with `Ref` for what depends on the input) -> the node made."""

_UNITS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
_SAMPLES = 3
"""Rows of the traced example: more than one, so that a reshape which mixes rows shows."""
_ALIKE = 1e-9


def trace(module: nn.Module, x: Tensor) -> Graph:
    """The graph of `module` in evaluation mode, for inputs like the rows of `x` `[n, ...]` (at least one).

    A final softmax or log-softmax is cut off: it changes no order. The module is copied; nothing of it changes. The
    graph is compared with the module on the rows of `x` and on others beside them, so that a module which answers
    differently from call to call, or decides by its input outside tensors, is refused. Raises Unprovable.
    """
    kind = next((p.dtype for p in [*module.parameters(), *module.buffers()] if p.is_floating_point()), torch.float32)
    if kind not in _UNITS:
        raise Unprovable(f"the model computes in {kind}, whose rounding is not known")
    example = _example(x)
    try:
        exact = copy.deepcopy(module).double()
        for part in exact.modules():
            part.training = False
        for parameter in exact.parameters():
            parameter.requires_grad_(False)
        with torch.no_grad():
            traced = make_fx(exact, pre_dispatch=True)(example)
    except Exception as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise Unprovable(f"the model cannot be followed step by step ({first[0][:160]})") from error
    build = Builder(tuple(example.shape[1:]))
    _walk(build, traced)
    nodes = _folded(build.nodes)
    unit = _UNITS[kind]
    graph = Graph(tuple(nodes), unit, min(unit, 2.0**-24))
    _check(graph, exact, example)
    return graph


def _example(x: Tensor) -> Tensor:
    if not len(x):
        raise Unprovable("there is no input to follow the model with")
    if not x.is_floating_point():
        raise Unprovable("the inputs are whole numbers, between which nothing moves")
    return x[torch.arange(_SAMPLES) % len(x)].detach().double()


def _walk(build: Builder, traced: torch.fx.GraphModule) -> None:
    from vauban.parts.bounds.table import RULES

    known: dict[torch.fx.Node, Any] = {}
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            known[node] = Ref(0)
        elif node.op == "get_attr":
            known[node] = getattr(traced, node.target)
        elif node.op == "call_function":
            args = torch.fx.node.map_arg(node.args, known.__getitem__)
            kwargs = torch.fx.node.map_arg(node.kwargs, known.__getitem__)
            if not _depends([*args, *kwargs.values()]):
                known[node] = node.target(*args, **kwargs)
                continue
            name = _name(node.target)
            if _after_end([*args, *kwargs.values()]) and name not in _HARMLESS:
                raise Unprovable("the model goes on after a softmax")
            if name not in RULES:
                raise Unprovable(f"no bound is known for the operation `{name}`")
            known[node] = RULES[name](build, *args, **kwargs)
        else:
            result = known[node.args[0]] if isinstance(node.args[0], torch.fx.Node) else None
            _finish(build, result)


def _finish(build: Builder, result: Any) -> None:
    if not isinstance(result, Ref):
        raise Unprovable("the model does not return one tensor that depends on its input")
    if result.at != len(build.nodes) - 1:
        build.nodes = build.nodes[: result.at + 1]
    if len(build.nodes[-1].shape) != 1:
        raise Unprovable(
            f"the model returns {build.nodes[-1].shape} numbers for a row: a proof needs one list of scores"
        )


def _depends(values: Sequence[Any]) -> bool:
    return any(_depends(v) if isinstance(v, list | tuple) else isinstance(v, Ref) for v in values)


def _after_end(values: Sequence[Any]) -> bool:
    return any(_after_end(v) if isinstance(v, list | tuple) else isinstance(v, Ref) and v.final for v in values)


_HARMLESS = ("detach", "alias", "clone", "getitem")


def _name(target: Any) -> str:
    """`aten.conv2d.default` -> `conv2d`; an operation in place goes by its plain name."""
    name = str(getattr(target, "_opname", None) or getattr(target, "__name__", target))
    return name.rstrip("_") if not name.startswith("__") else name


def _check(graph: Graph, exact: nn.Module, example: Tensor) -> None:
    stream = torch.Generator().manual_seed(0)
    # beside the examples too, each by its own amount: what only looks like a function of the input does not follow
    beside = torch.rand(example.shape, generator=stream, dtype=torch.float64).to(example) - 0.5
    for x in (example, example + 0.1 * beside, example + beside * example.abs().amax().clamp_min(1)):
        with torch.no_grad():
            ours, theirs = graph.forward(x), exact(x.clone())
        theirs = getattr(theirs, "logits", theirs)
        same = [ours, ours.log_softmax(1), ours.softmax(1)]
        size = 1 + float(theirs.abs().nan_to_num().max())
        if not any(a.shape == theirs.shape and bool(((a - theirs).abs() <= _ALIKE * size).all()) for a in same):
            raise Unprovable("the model answers differently from call to call, or decides outside tensors")


def _folded(nodes: list[Node]) -> list[Node]:
    """A constant factor a channel (batch norm) taken into the convolution or matrix before it, dead nodes dropped."""
    users: dict[int, int] = {}
    for node in nodes:
        for i in node.inputs:
            users[i] = users.get(i, 0) + 1
    nodes = list(nodes)
    stands: dict[int, int] = {}
    for at, node in enumerate(nodes):
        inputs = tuple(stands.get(i, i) for i in node.inputs)
        nodes[at] = node = replace(node, inputs=inputs)
        if isinstance(node.op, Scale) and users.get(node.inputs[0]) == 1:
            before = nodes[node.inputs[0]]
            merged = _merge(before, node.op)
            if merged is not None and before.shape == node.shape:
                nodes[node.inputs[0]] = replace(before, op=merged)
                stands[at] = node.inputs[0]
                users[node.inputs[0]] = users.get(at, 0)
    return _reachable(nodes, stands.get(len(nodes) - 1, len(nodes) - 1))


def _merge(before: Node, scale: Scale) -> Linear | None:
    op = before.op
    if not isinstance(op, Dense | Conv):
        return None
    channels = op.weight.shape[0]
    per = (channels, *(1,) * (len(before.shape) - 1)) if isinstance(op, Conv) else (channels,)
    if isinstance(op, Dense) and len(before.shape) != 1:
        return None
    factor = scale.factor
    if factor.numel() not in (1, channels) or (factor.numel() == channels and tuple(factor.shape) != per):
        return None
    factor = factor.expand(per) if factor.numel() == 1 else factor
    weight = op.weight * factor.reshape(channels, *(1,) * (op.weight.dim() - 1))
    parts = [None if o is None else o * f for o, f in ((op.offset, factor), (op.heft, factor.abs()))]
    return replace(
        op,
        weight=weight,
        offset=_plus(parts[0], scale.offset),
        heft=_plus(parts[1], scale.heft),
        terms=op.terms + scale.terms + 2,
    )


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _reachable(nodes: list[Node], end: int) -> list[Node]:
    needed, stack = {0}, [end]
    while stack:
        at = stack.pop()
        if at not in needed:
            needed.add(at)
            stack.extend(nodes[at].inputs)
    order = sorted(needed)
    new = {old: i for i, old in enumerate(order)}
    return [replace(nodes[old], inputs=tuple(new[i] for i in nodes[old].inputs)) for old in order]
