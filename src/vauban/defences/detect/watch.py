"""What detectors of adversarial inputs share: what they learn from, where they raise the alarm, what is done about it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from vauban.core.crew import ALONE, Crew
from vauban.core.data import Data
from vauban.core.defence import Context, Hardened, Store
from vauban.core.rng import Rng
from vauban.core.space import Continuous
from vauban.core.target import Recipe, Target
from vauban.defences.common import (
    Reader,
    Redone,
    TorchModel,
    around,
    loaded,
    only_inputs,
    placement,
    torch_backed,
    training_rows,
)
from vauban.defences.detect.view import LOOKED, Detector, gathered
from vauban.defences.detect.watched import POLICIES, Watched, WatchedTarget
from vauban.parts.listening import holders
from vauban.parts.training import quiet_rng
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard
from vauban.schema.errors import BadData, NotOffered

FEWEST = 8
"""Rows that must be left to set the threshold by."""
TOLD = 500
"""Test rows at most whose share above the threshold is told with the defence."""
JOINT: dict[str, Any] = {
    "needs": Access.WEIGHTS_READ | Access.DATA_READ,
    "tasks": ("classification",),
    "adaptive": ("evasion.selective", "evasion.apgd", "evasion.apgd_targeted", "evasion.square"),
    "threats": ("evasion",),
}
"""What the cards of all detectors say: under `reject` these attacks are on model and detector together."""


SILENT = "The detector refuses nothing here: the figures are those of the model alone."
"""What a reader must know under the policies that let everything through."""


@dataclass(frozen=True, kw_only=True)
class Watch(ABC):
    """Puts a detector of adversarial inputs beside the model; subclasses say which.

    Policies: `reject` gives the model one class more, `refused`, which it answers exactly where the score is above the
    threshold; `flag` leaves its answers as they are, and the target's `flagged` says which inputs are above; `pass` lets
    everything through, and only `suspicion`, the scores, can be asked for.

    The threshold is set on clean training rows that the detector did not learn from, so that a share of at most `alarms` of
    rows like them lies above it. The model itself has seen them, and knows fresh rows less well: on those, more may be refused.
    """

    card: ClassVar[DefenceCard]
    counts: ClassVar[tuple[str, ...]] = ()
    """Settings of a subclass that are numbers from 1 on."""

    policy: str = "reject"
    alarms: float = 0.05
    aside: float = 0.25
    rows: int = 4000

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy is one of {', '.join(POLICIES)}, got {self.policy!r}")
        for name in ("alarms", "aside"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is a share between 0 and 1, got {getattr(self, name)}")
        for name in ("rows", *self.counts):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @abstractmethod
    def detector(self, model: TorchModel, data: Data) -> Detector:
        """One that has learnt nothing yet. Raises NotOffered where it does not suit the inputs."""

    def taught(self, model: TorchModel, watched: Watched, data: Data, rng: Rng, context: Context) -> None:
        """Let the detector learn from the training rows of `data`."""
        device, dtype = placement(model.module)
        watched.detector.learn(watched.view, data.x_train.to(device, dtype), data.y_train.to(device))

    def weighed(self, held: Held) -> dict[str, Tensor]:
        """How several scores become one: their mean, after each was standardised on clean rows. One stays as it is."""
        clean = held.scores(held.x)
        if clean.shape[1] == 1:
            return {}
        spread = clean.std(0).clamp_min(1e-12)
        return {"centre": clean.mean(0), "spread": spread, "weights": torch.full_like(spread, 1 / len(spread))}

    def facts(self) -> dict[str, Any]:
        """The detector's own settings, for the report."""
        shared = {part.name for part in fields(Watch)}
        return {part.name: getattr(self, part.name) for part in fields(self) if part.name not in shared}

    def __call__(self, target: Target, data: Data, rng: Rng, context: Context) -> Hardened:
        model = self._classifier(target)
        x, y = training_rows(model, data, self.card)
        watched, caveats = self._learnt(model, data, x, y, rng, context)
        made = self._around(model, watched, data, context)
        shares = {"alarms": self.alarms, "threshold": float(watched.threshold)}
        facts = {"policy": self.policy, **shares, "clean_above": _above(made, data), **self.facts()}
        return Hardened(made, facts, (*caveats, *([SILENT] if watched.refusal is None else [])))

    def restore(self, target: Target, data: Data, state: Mapping[str, Tensor]) -> Target:
        model = self._classifier(target)
        blank = self._around(model, self._blank(model, data), data, None)
        return blank.around(loaded(blank.clone(), state), "")

    def _classifier(self, target: Target) -> TorchModel:
        model = torch_backed(target, self.card)
        if target.domain.task == "regression":
            raise NotOffered(f"{self.card.id} is made for classification, and this is a regression.")
        return model

    def _blank(self, model: TorchModel, data: Data) -> Watched:
        """The model with a detector that has learnt nothing."""
        with quiet_rng(0):
            detector = self.detector(model, data)
        if detector.layers and not holders(model.module):
            raise NotOffered(
                f"{self.card.id} looks at the layers of a model, and those of {model.id} cannot be listened to: give it as "
                "an nn.Module."
            )
        return Watched(model.clone(), detector, Reader(model, data.x_test[:1]), self.policy).eval()

    def _learnt(
        self, model: TorchModel, data: Data, x: Tensor, y: Tensor, rng: Rng, context: Context
    ) -> tuple[Watched, list[str]]:
        """A detector that has learnt from a part of the rows, with its threshold from the others."""
        order = torch.randperm(len(x), generator=rng.torch("aside"))[: self.rows]
        count = round(self.aside * len(order))
        if min(count, len(order) - count) < FEWEST:
            raise BadData(
                f"{self.card.id} sets its threshold on {count} of {len(order)} training rows and learns from the others: at "
                f"least {FEWEST} are needed for each, give more or set aside."
            )
        device, dtype = placement(model.module)
        watched = self._blank(model, data)
        taught, rest = order[count:], order[:count]
        with only_inputs(watched.model):
            self.taught(model, watched, replace(data, x_train=x[taught], y_train=y[taught]), rng, context)
            context.progress(1, 2, "learning what clean inputs look like")
            held = Held(model, watched, x[rest].to(device, dtype), y[rest].to(device), rng, context)
            watched.keep(**self.weighed(held))
            scores = gathered(watched.view, held.x, watched.suspicion)
            lead = gathered(watched.view, held.x, lambda view: view.logits.amax(1) - view.logits.mean(1))
        threshold, caveats = raised(scores, self.alarms)
        size = (threshold - scores.median()).abs()
        watched.keep(threshold=threshold, slope=lead.median().to(size) / torch.where(size > 0, size, 1.0))
        context.progress(2, 2, "setting the threshold")
        return watched.eval(), caveats

    def _around(self, model: TorchModel, watched: Watched, data: Data, context: Context | None) -> WatchedTarget:
        def made(model: TorchModel, recipe: Recipe | None, watched: Watched) -> WatchedTarget:
            return WatchedTarget(around(model, watched, f"+{self.card.id}"), recipe).settled(model.domain)

        plain = model.recipe
        if plain is None:
            return made(model, None, watched)

        def again(x: Tensor, y: Tensor, seed: int) -> Target:
            fresh = cast(TorchModel, plain.fit(x, y, seed))
            rows = x.to(placement(fresh.module)[1])
            return made(fresh, None, self._learnt(fresh, data, rows, y, Rng(seed), Unheard(context))[0])

        return made(model, Redone(again), watched)


@dataclass(frozen=True)
class Held:
    """The rows that were kept aside, and what is needed to see how a detector takes them, or others like them."""

    model: TorchModel
    watched: Watched
    x: Tensor
    y: Tensor
    rng: Rng
    context: Context

    def scores(self, x: Tensor) -> Tensor:
        """The detector's scores of inputs, float64 `[n, parts]`."""
        return gathered(self.watched.view, x, self.watched.detector)


@dataclass(frozen=True)
class Unheard:
    """A context that nobody listens to; attacks are those of the one inside, where there is one."""

    inner: Context | None = None
    radius: float | None = None
    space: Continuous | None = None
    store: Store | None = None
    crew: Crew = ALONE
    diary: None = None

    def attack(self, id: str, **settings: Any) -> Callable[..., Any]:
        if self.inner is None:
            raise NotOffered(f"no threat is known here for {id}: harden the model anew to make others like it.")
        return self.inner.attack(id, **settings)

    def progress(self, done: int, total: int, text: str = "") -> None:
        return


def raised(scores: Tensor, alarms: float) -> tuple[Tensor, list[str]]:
    """The threshold above which a new clean row lies with a probability of at most `alarms`; what is to be said of it.

    Of m scores the ceil((m + 1)(1 - alarms))-th smallest, as in conformal prediction (Vovk et al. 2005): a new score that is
    exchangeable with them lies above it in at most `alarms` of the cases.
    """
    rank = math.ceil((len(scores) + 1) * (1 - alarms))
    if rank <= len(scores):
        return scores.sort().values[rank - 1], []
    few = f"{len(scores)} rows are too few to set a threshold with {alarms:.2%} false alarms: it is the largest score of all."
    return scores.max(), [few]


def _above(made: WatchedTarget, data: Data) -> float:
    """Share of test rows above the threshold, of TOLD at most."""
    with torch.no_grad():
        over = torch.cat([made.suspicion(part) for part in data.head(TOLD).x_test.split(LOOKED)]) > made.threshold
    return float(over.double().mean())
