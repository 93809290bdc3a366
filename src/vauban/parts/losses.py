"""Losses of classifiers, each a pure function of the answers `[m, classes]` and one class a row `[m]`.

All are to be *maximised*: the untargeted ones are given the true class and grow as the answer leaves it, the targeted
ones are given the wanted class and grow as the answer comes to it. Probabilities are turned into their logarithms
first, which are logits up to a constant a row, so that every loss here has the same value for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from vauban.core.target import OutputKind, Outputs

ClassLoss = Callable[[Outputs, Tensor], Tensor]
"""(answers of m rows, one class a row) -> [m]."""


def _same(values: Tensor) -> Tensor:
    return values


def _log(values: Tensor) -> Tensor:
    return values.clamp_min(torch.finfo(values.dtype).tiny).double().log().to(values.dtype)


_AS_LOGITS: Mapping[OutputKind, Callable[[Tensor], Tensor]] = {"logits": _same, "probabilities": _log}


def as_logits(outputs: Outputs) -> Tensor:
    """`[m, classes]` logits, or log-probabilities where the model gives probabilities.

    Raises ValueError for bare labels and regression values, which have none.
    """
    convert = _AS_LOGITS.get(outputs.kind)
    if convert is None:
        raise ValueError(f"a loss over classes needs logits or probabilities, the model answers with {outputs.kind}")
    return convert(outputs.values)


def log_probabilities(outputs: Outputs) -> Tensor:
    """`[m, classes]` natural logarithms of the probabilities, without overflow for logits of any size."""
    return F.log_softmax(as_logits(outputs), 1)


def _split(outputs: Outputs, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The class's own logit `[m]`, and all logits with that one at minus infinity `[m, classes]`."""
    z, at = as_logits(outputs), classes[:, None]
    return z.gather(1, at).squeeze(1), z.scatter(1, at, -torch.inf)


def cross_entropy(outputs: Outputs, true: Tensor) -> Tensor:
    """Minus the logarithm of the true class's probability, in nats.

    Written as softplus(log-sum-exp of the others - true), so that value and gradient stay right where the model is so
    sure that its probability rounds to one.
    """
    own, others = _split(outputs, true)
    # in float64: float32 kernels round the left-over elements of a batch differently from the rest
    return F.softplus((others.logsumexp(1) - own).double()).to(own.dtype)


def log_likelihood(outputs: Outputs, wanted: Tensor) -> Tensor:
    """The logarithm of the wanted class's probability."""
    return -cross_entropy(outputs, wanted)


def margin(outputs: Outputs, true: Tensor) -> Tensor:
    """Largest other logit minus the true one: positive where misclassified."""
    own, others = _split(outputs, true)
    return others.amax(1) - own


def targeted_margin(outputs: Outputs, wanted: Tensor) -> Tensor:
    """Wanted logit minus the largest other: positive where the wanted class is predicted."""
    return -margin(outputs, wanted)


def _spread(z: Tensor, places: tuple[int, ...]) -> Tensor:
    """Largest logit minus the mean of those at `places` in descending order, never below a tiny positive number."""
    ordered = z.topk(places[-1] + 1, 1).values
    return (ordered[:, 0] - ordered[:, list(places)].mean(1)).clamp_min(1e-12)


def dlr(outputs: Outputs, true: Tensor) -> Tensor:
    """Difference of logits ratio: the margin over (largest - third largest logit), free of the logits' scale.

    Croce and Hein 2020 (arXiv:2003.01690, equation 6). With two classes there is no third logit and the ratio would be
    constant, so the plain margin is given.
    """
    z = as_logits(outputs)
    value = margin(outputs, true)
    return value / _spread(z, (2,)) if z.shape[1] > 2 else value


def _targeted_spread(z: Tensor) -> Tensor | float:
    return _spread(z, (2, 3)) if z.shape[1] > 3 else 1.0


def dlr_between(outputs: Outputs, true: Tensor, wanted: Tensor) -> Tensor:
    """Targeted DLR: (wanted - true logit) over (largest - mean of third and fourth largest).

    Croce and Hein 2020 (arXiv:2003.01690, equation 7). With fewer than four classes there is no such mean, and the
    difference is given as it is: dividing by (largest - third) would reward spreading the logits while it is negative.
    """
    z = as_logits(outputs)
    gap = z.gather(1, wanted[:, None]).squeeze(1) - z.gather(1, true[:, None]).squeeze(1)
    return gap / _targeted_spread(z)


def targeted_dlr(outputs: Outputs, wanted: Tensor) -> Tensor:
    """As `dlr_between`, measured against the largest other logit, for when the true class does not matter."""
    return targeted_margin(outputs, wanted) / _targeted_spread(as_logits(outputs))


UNTARGETED: Mapping[str, ClassLoss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
TARGETED: Mapping[str, ClassLoss] = {"ce": log_likelihood, "margin": targeted_margin, "dlr": targeted_dlr}
LOSSES = tuple(UNTARGETED)
"""Names that an attack's `loss` may have."""
