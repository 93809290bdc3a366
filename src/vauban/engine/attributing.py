"""The attributions of a target's answers: the score that is explained, the baseline, what the method may use."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vauban.core.data import Data
from vauban.core.registry import configure
from vauban.core.rng import Rng
from vauban.core.target import Adaptive, Domain, Outputs, Target, TorchBacked
from vauban.domains.box import edges
from vauban.engine.batching import answers, grain, micro_batch
from vauban.parts.attribution import METHODS, IntegratedGradients, Means, Method, Score, completeness_gap
from vauban.schema.access import Access
from vauban.schema.errors import BadOption, NotOffered, UnknownName

DEVICE_BATCH = 128
"""Points at a time on devices that are no CPU, where there is no cache to fit."""


def zero(data: Data, domain: Domain) -> Tensor:
    """Nothing at all."""
    return torch.zeros(data.shape)


def low(data: Data, domain: Domain) -> Tensor:
    """The smallest valid input (black in pictures); 0 where there is none."""
    side = edges(domain)[0]
    return torch.where(side.isfinite(), side, 0.0).expand(data.shape)


def mean(data: Data, domain: Domain) -> Tensor:
    """The mean of the training rows (of the test rows where there are none)."""
    rows = data.x_train if data.has_train else data.x_test
    found: Tensor = rows.double().mean(0).to(rows.dtype)
    return found


BASELINES: dict[str, Callable[[Data, Domain], Tensor]] = {"zero": zero, "low": low, "mean": mean}
"""Inputs that say nothing."""
USUAL = {"image": "low"}
"""Kind of data -> its usual baseline; the mean for all others."""


def baseline(name: str | None, data: Data, domain: Domain) -> Tensor:
    """The baseline of that name, `[...]`; the usual one for this kind of data where None. Raises UnknownName."""
    return BASELINES[baseline_name(name, domain)](data, domain)


def baseline_name(name: str | None, domain: Domain) -> str:
    """The name itself, checked; the usual one for this kind of data where None. Raises UnknownName."""
    chosen = name or USUAL.get(str(domain.kind), "mean")
    if chosen not in BASELINES:
        raise UnknownName(f"There is no baseline {chosen!r}: choose from {', '.join(BASELINES)}.")
    return chosen


def choose(name: str | None, target: Target, domain: Domain) -> tuple[str, str]:
    """The method to use, and what is to be said about the choice.

    Raises UnknownName for a name that is none, NotOffered where the method that was named does not apply, saying which do.
    """
    fitting = [own for own, kind in METHODS.items() if not _why_not(kind, target, domain)]
    if name is None:
        return fitting[0], _told(fitting[0], target)
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UnknownName(f"There is no method of explanation {name!r}{hint} There are {', '.join(METHODS)}.")
    why = _why_not(METHODS[name], target, domain)
    if not why:
        return name, ""
    if Access.GRADIENTS in METHODS[name].needs and Access.GRADIENTS not in target.offers:
        return fitting[0], _told(fitting[0], target)
    raise NotOffered(f"{name} {why}: choose {' or '.join(fitting)}.")


def _why_not(kind: Any, target: Target, domain: Domain) -> str:
    if kind.kinds and domain.kind not in kind.kinds:
        return f"works on {' and '.join(kind.kinds)} data, and this is {domain.kind}"
    missing = kind.needs & ~target.offers
    return f"needs {', '.join(missing.words())}, which the target does not offer" if missing else ""


def _told(name: str, target: Target) -> str:
    no = Access.GRADIENTS not in target.offers
    return f"The target offers no gradients, so that it is explained by {name}." if no else ""


def configured(name: str, settings: Mapping[str, Any]) -> Method:
    """The method with these settings; raises BadOption naming what it takes."""
    return configure(METHODS[name], settings)


@dataclass(frozen=True)
class Attributed:
    """What an answer rests on, for n rows."""

    x: Tensor
    """Attributions `[n, ...]`."""
    score: Tensor
    """The score that is explained, at the input; `[n]`."""
    gap: Tensor | None
    """How far the attributions' sums miss score(x) - score(baseline), `[n]` float64; None where they need not sum to it."""
    change: Tensor | None
    """score(x) - score(baseline), `[n]` float64."""

    @property
    def missed(self) -> float | None:
        """The largest gap, as a share of all that is attributed (or of the score's change, where that is more).

        None where attributions need not sum to anything.
        """
        if self.gap is None or self.change is None or not len(self.gap):
            return None
        whole = torch.maximum(self.x.double().abs().flatten(1).sum(1), self.change.abs())
        return float((self.gap / whole.clamp_min(1e-12)).max())


def attribute(
    target: Target,
    x: Tensor,
    method: Method,
    start: Tensor,
    *,
    domain: Domain,
    ids: np.ndarray,
    seed: int = 0,
    about: int | None = None,
) -> Attributed:
    """What the answers at `x` `[n, ...]` rest on.

    Explained is the score (as the model gives it: logit or probability; of two logits their difference) of the class that
    the target answers at each input, or of class `about`; of a regression its value; of bare labels whether they stay.
    Where a defence hides its gradients, those of its softened version are taken.

    Args:
        start: the baseline, `[...]`.
        ids: numbers of the rows, for methods that draw.
    """
    first = answers(target, x)
    way = target.softened() if isinstance(target, Adaptive) else target
    score = score_of(way, first, about)
    means = Means(
        baseline=start.to(x),
        rng=Rng(seed, ids),
        width=_width(domain),
        module=way.module if isinstance(way, TorchBacked) else None,
        batch=micro_batch(way, x) if x.device.type == "cpu" and len(x) else DEVICE_BATCH,
        multiple=grain(way),
    )
    found = method(score, x, means) + 0.0  # no -0
    complete = isinstance(method, IntegratedGradients)
    gap, change = completeness_gap(score, x, found, means) if complete else (None, None)
    return Attributed(found, read(first, picked(first, about)), gap, change)


def score_of(target: Target, first: Outputs, about: int | None = None) -> Score:
    """The score of the class that was first answered to each row (of class `about` where given)."""
    wanted = picked(first, about)

    def score(z: Tensor, rows: Tensor) -> Tensor:
        return read(target.forward(z), wanted[rows] if wanted is not None else None)

    return score


def picked(first: Outputs, about: int | None) -> Tensor | None:
    """The class to explain for each row; None in a regression. Raises BadOption for a class that there is not."""
    if first.kind == "values":
        if about is not None:
            raise BadOption(f"class {about} was asked about, and a regression has no classes: leave it out.")
        return None
    if about is None:
        return first.labels
    classes = first.values.shape[1] if first.values.dim() == 2 else None
    if about < 0 or (classes is not None and about >= classes):
        raise BadOption(f"There is no class {about}: the model's classes are 0 to {(classes or 1) - 1}.")
    return torch.full_like(first.labels, about)


def read(outputs: Outputs, wanted: Tensor | None) -> Tensor:
    """What is explained: the value (regression), whether the label is the wanted one, or its score; `[m]`.

    Of two logits their difference, for a model that knows two classes may move one of them alone.
    """
    if wanted is None:
        return outputs.values
    if outputs.values.dim() == 1:
        return (outputs.values == wanted).to(torch.float32)
    own = outputs.values.gather(1, wanted[:, None])[:, 0]
    if outputs.kind == "logits" and outputs.values.shape[1] == 2:
        return own - outputs.values.gather(1, 1 - wanted[:, None])[:, 0]
    return own


def _width(domain: Domain) -> Tensor:
    """How wide the box is, feature by feature; 1 where it has no end."""
    floor, top = edges(domain)
    wide = top - floor
    return torch.where(wide.isfinite() & (wide > 0), wide, 1.0)


def these_rows(data: Data, rows: list[int]) -> Data:
    """The data with these test rows alone, which keep their numbers."""
    return replace(data, x_test=data.x_test[rows], y_test=data.y_test[rows], ids=np.asarray(data.ids)[rows])
