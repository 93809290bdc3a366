"""Defensive distillation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.data import Data
from vauban.core.defence import Context, Hardened
from vauban.core.rng import Rng, derive_seed
from vauban.core.target import Target
from vauban.defences.common import (
    Defended,
    Redone,
    TorchModel,
    around,
    fresh,
    lessons,
    loaded,
    placement,
    row_batches,
    torch_backed,
)
from vauban.parts.losses import as_logits
from vauban.parts.training import Step, fit
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source

SUFFIX = "+distill.defensive"


@dataclass(frozen=True, kw_only=True)
class DefensiveDistillation:
    """Trains a second model on the soft answers of a first, both at a high temperature, and serves it at temperature 1.

    The teacher is trained from scratch on the labels with softmax(logits / T); the student, from scratch too, on the
    teacher's probabilities at T. Served at T = 1 the student's logits are about T times too large: the softmax
    saturates and the gradient of the cross-entropy vanishes. That hides the way from gradient attacks on that loss and
    closes none of it: a loss on the logits (margin, DLR) or an attack without gradients walks through (Carlini and
    Wagner 2017). The card therefore names APGD with the DLR loss, which is free of the logits' scale, and Square. It
    is here because it is still found in the wild, to be shown for what it is.

    Source: Papernot et al. 2016 (arXiv:1511.04508, section IV).
    Departures: Adam instead of SGD with momentum; teacher and student see the same rows, as in the paper.

    Args:
        temperature: T, above 1; the paper tries 1 to 100.
        epochs: passes over the training rows, for each of the two models.
        batch_size: rows a step.
        rate: first learning rate of Adam, which falls along a cosine; logits T times as large take a high one.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="distill.defensive",
        name="Defensive distillation",
        summary="Trains a second model on the softened answers of a first; this hides gradients and is known to be broken.",
        needs=Access.WEIGHTS_READ | Access.DATA_READ,
        tasks=("classification",),
        adaptive=("evasion.apgd", "evasion.square"),
        adaptive_settings={"evasion.apgd": {"loss": "dlr"}},
        threats=("evasion",),
        sources=(
            Source(
                title="Distillation as a defense to adversarial perturbations against deep neural networks",
                where="Papernot et al., IEEE S&P 2016, arXiv:1511.04508, section IV",
            ),
            Source(
                title="Towards evaluating the robustness of neural networks (breaks it)",
                where="Carlini and Wagner, IEEE S&P 2017, arXiv:1608.04644, section VIII",
            ),
        ),
    )

    temperature: float = 20.0
    epochs: int = 30
    batch_size: int = 64
    rate: float = 1e-2

    def __post_init__(self) -> None:
        if not self.temperature > 1:
            raise ValueError(f"temperature must be above 1, got {self.temperature}: at 1 nothing is softened")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.rate > 0:
            raise ValueError(f"rate must be above 0, got {self.rate}")

    def __call__(self, target: Target, data: Data, rng: Rng, context: Context) -> Hardened:
        model = torch_backed(target, self.card)
        x, y = lessons(model, data, self.card)
        module = self._train(model, x, y, int(rng.child("distill").seed), context)
        facts = {"temperature": self.temperature, "epochs": self.epochs, "started_from": "fresh weights"}
        return Hardened(self._around(model, module), facts, (_BROKEN,))

    def restore(self, target: Target, data: Data, state: Mapping[str, Tensor]) -> Target:
        model = torch_backed(target, self.card)
        return self._around(model, loaded(model.clone(), state))

    def _around(self, model: TorchModel, module: nn.Module) -> Defended:
        def again(x: Tensor, y: Tensor, seed: int) -> Target:
            return around(model, self._train(model, x, y, seed, None), f"{SUFFIX}+seed{seed}")

        return Defended(around(model, module, SUFFIX), Redone(again) if model.recipe else None)

    def _train(self, model: TorchModel, x: Tensor, y: Tensor, seed: int, context: Context | None) -> nn.Module:
        device, _ = placement(model.module)
        total, temperature = 2 * self.epochs, self.temperature

        def soft(module: nn.Module, x: Tensor) -> Tensor:
            return as_logits(model.read(module(x.to(device)))) / temperature

        def learn(name: str, step: Step, done: int) -> nn.Module:
            def progress(epoch: int, _: int) -> None:
                if context is not None:
                    context.progress(done + epoch, total, f"training the {name}")

            part = derive_seed(seed, name)
            return fit(
                fresh(model, part, self.card),
                x,
                y,
                seed=part,
                epochs=self.epochs,
                batch_size=self.batch_size,
                rate=self.rate,
                schedule="cosine",
                step=step,
                progress=progress,
            )

        teacher = learn("teacher", lambda m, b: F.cross_entropy(soft(m, b.x), b.y.to(device)), 0)
        taught = row_batches(lambda rows: soft(teacher, x[rows]).softmax(1), len(x))
        return learn("student", lambda m, b: F.cross_entropy(soft(m, b.x), taught[b.rows].to(device)), self.epochs)


_BROKEN = (
    "Defensive distillation hides gradients and does not remove adversarial inputs (Carlini and Wagner 2017): judge it "
    "by the attacks with the DLR loss and without gradients, not by those on the cross-entropy."
)
