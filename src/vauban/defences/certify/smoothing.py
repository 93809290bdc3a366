"""Randomised smoothing as a defence: the vote over noisy copies of an input, with a certificate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vauban.core.data import Data
from vauban.core.defence import Context, Hardened
from vauban.core.rng import Rng
from vauban.core.target import Outputs, Recipe, Target
from vauban.defences.common import (
    Defended,
    Reader,
    Redone,
    TorchModel,
    around,
    loaded,
    placement,
    torch_backed,
    training_rows,
)
from vauban.parts.smoothing import Certificates, Smoothing
from vauban.parts.training import Batch, fit, task_loss
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source
from vauban.schema.errors import NotOffered


@dataclass(frozen=True, kw_only=True)
class RandomisedSmoothing:
    """Answers with the class that the model gives most often to noisy copies of the input.

    A vote over copies with Gaussian noise changes slowly as the input moves, so that a radius in l2 can be computed
    within which it does not change at all. The new target answers from the same `draws` noise patterns at every input
    (drawn once, from the seed): shares of the votes, as logarithms where the model gives logits. That is an estimate of
    the vote without end that the theorem speaks of; `certify` of the new target draws thousands of copies of its own and
    gives for each input the class and the radius that hold with probability 1 - alpha, or abstains.

    A model that never saw noise loses much of its accuracy under it: with `epochs` it is first trained on with noisy
    copies of the training rows. The adaptive attack averages the gradients of the copies' softmax (Salman et al. 2019,
    arXiv:1906.04584, section 2.2); the new target's own gradients are these.

    Source: Cohen, Rosenfeld and Kolter 2019 (arXiv:1902.02918, section 3 and algorithm 1).
    Departures: the paper's answer draws noise anew each time and abstains by a test; here the answers can be repeated
    and never abstain, while certificates do. The paper trains from scratch with noise, here training goes on.

    Args:
        sigma: standard deviation of the noise, in input units.
        draws: noisy copies an answer; every answer costs as many passes.
        epochs: passes over the training rows with noise beforehand; 0 to leave the model as it is.
        batch_size: rows a step of this training.
        rate: learning rate of Adam in this training.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="certify.smoothing",
        name="Randomised smoothing",
        summary="Lets the model vote over noisy copies of an input, so that a safe distance can be proven for each input.",
        needs=Access.WEIGHTS_READ,
        tasks=("classification",),
        adaptive=("evasion.apgd", "evasion.pgd", "evasion.square"),
        adaptive_settings={"evasion.pgd": {"loss": "ce"}},
        threats=("evasion",),
        sources=(
            Source(
                title="Certified adversarial robustness via randomized smoothing",
                where="Cohen, Rosenfeld, Kolter, ICML 2019, arXiv:1902.02918, section 3 and algorithm 1",
            ),
            Source(
                title="Provably robust deep learning via adversarially trained smoothed classifiers (the adaptive attack)",
                where="Salman et al., NeurIPS 2019, arXiv:1906.04584, section 2.2",
            ),
        ),
    )

    sigma: float = 0.25
    draws: int = 16
    epochs: int = 0
    batch_size: int = 64
    rate: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.sigma < float("inf"):
            raise ValueError(f"sigma is a standard deviation above 0, got {self.sigma}")
        if self.draws < 1 or self.epochs < 0 or self.batch_size < 1 or not self.rate > 0:
            raise ValueError("draws and batch_size must be at least 1, epochs at least 0, rate above 0")

    def __call__(self, target: Target, data: Data, rng: Rng, context: Context) -> Hardened:
        model = self._classifier(target)
        noise = self._noise(model, data, rng)
        if self.epochs:
            x, y = training_rows(model, data, self.card)
            model = self._taught(model, x, y, rng.child("train").seed, context)
        facts = {"sigma": self.sigma, "draws": self.draws, "epochs": self.epochs}
        caveats = [
            f"The answers are votes of {self.draws} noisy copies; a certificate (certify) speaks of the vote without end "
            "and holds in l2 only."
        ]
        if not self.epochs:
            caveats.append("The model was not trained with noise here: set epochs if its clean accuracy fell.")
        return Hardened(self._around(model, noise), facts, tuple(caveats))

    def restore(self, target: Target, data: Data, state: Mapping[str, Tensor]) -> Target:
        model = self._classifier(target)
        defended = self._around(model, self._noise(model, data, Rng(0)))
        return defended.around(loaded(defended.clone(), state), "")

    def _classifier(self, target: Target) -> TorchModel:
        model = torch_backed(target, self.card)
        if target.domain.task == "regression":
            raise NotOffered(f"{self.card.id} is made for classification, and this is a regression.")
        return model

    def _noise(self, model: TorchModel, data: Data, rng: Rng) -> Tensor:
        device, dtype = placement(model.module)
        draws = torch.randn(self.draws, *data.shape, generator=rng.torch("noise"))
        return (draws * self.sigma).to(device, dtype)

    def _taught(self, model: TorchModel, x: Tensor, y: Tensor, seed: int, context: Context | None) -> TorchModel:
        """The model trained on with noisy inputs; dropout and batch statistics as in any training."""
        device, _ = placement(model.module)

        def step(module: nn.Module, batch: Batch) -> Tensor:
            outputs = model.read(module(batch.x + self.sigma * torch.randn_like(batch.x)))
            logits = outputs.values.clamp_min(1e-7).log() if outputs.kind == "probabilities" else outputs.values
            return task_loss(logits, batch.y)

        module = fit(
            model.clone(),
            x.to(device),
            y.to(device),
            seed=seed,
            epochs=self.epochs,
            batch_size=self.batch_size,
            rate=self.rate,
            step=step,
            progress=None if context is None else context.progress,
        )
        return around(model, module, "")

    def _around(self, model: TorchModel, noise: Tensor) -> SmoothedTarget:
        defended = _smoothed(model, noise, self.sigma)
        if model.recipe is None:
            return defended
        plain: Recipe = model.recipe

        def again(x: Tensor, y: Tensor, seed: int) -> Target:
            made = cast(TorchModel, plain.fit(x, y, seed))
            if self.epochs:
                made = self._taught(made, x.to(placement(made.module)[1]), y, seed, None)
            return _smoothed(made, noise, self.sigma)

        return replace(defended, recipe=Redone(again))


class Smoothed(nn.Module):
    """The vote of a model over noise patterns `[draws, ...]`; its gradient is that of the mean softmax.

    Shares of the votes are mixed with the mean softmax at one part in draws + 1: too little to overturn a vote, enough to
    break ties and to keep every logarithm finite.
    """

    noise: Tensor

    def __init__(self, model: nn.Module, noise: Tensor, read: Reader) -> None:
        super().__init__()
        self.model, self.read = model, read
        self.register_buffer("noise", noise.clone())

    def forward(self, x: Tensor) -> Tensor:
        logs = torch.stack([self._logs(x, pattern) for pattern in self.noise])
        mean = logs.logsumexp(0) - math.log(len(logs))
        soft = mean.exp()
        votes = logs.detach().argmax(2).T
        counts = torch.zeros_like(mean).scatter_add_(1, votes, torch.ones_like(votes, dtype=mean.dtype))
        mixed = (counts + soft.detach()) / (len(logs) + 1)
        kept = mixed if self.read.kind == "probabilities" else mixed.log()
        slope = soft if self.read.kind == "probabilities" else mean
        return (kept + (slope - slope.detach())).to(x.dtype)

    def _logs(self, x: Tensor, pattern: Tensor) -> Tensor:
        """Logarithms `[n, classes]` of the probabilities that one copy is given."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self._one(x, pattern)
        # activations of one copy at a time are kept, however many copies there are
        logs: Tensor = checkpoint(self._one, x, pattern, use_reentrant=False, preserve_rng_state=False)
        return logs

    def _one(self, x: Tensor, pattern: Tensor) -> Tensor:
        outputs = self.read(self.model(x + pattern))
        # in float64, whose last bits do not depend on a row's place in the batch once they are rounded away
        values = outputs.values.double()
        return values.clamp_min(1e-12).log() if outputs.kind == "probabilities" else values.log_softmax(1)


@dataclass(frozen=True, eq=False)
class SmoothedTarget(Defended):
    """A target that votes; `certify` proves for each input how far it may be moved."""

    sigma: float = 0.25

    @property
    def base(self) -> TorchModel:
        """The model that votes, without noise."""
        return around(self.inner, cast(Smoothed, self.module).model, "")

    def forward_features(self, x: Tensor) -> tuple[Outputs, Tensor]:
        """The vote, and the base model's features averaged over the noise."""
        noise = cast(Smoothed, self.module).noise.to(x)
        base: Any = self.base
        total = sum(base.forward_features(x + pattern)[1] for pattern in noise)
        return self.forward(x), cast(Tensor, total) / len(noise)

    def certify(self, x: Tensor, rng: Rng, **settings: Any) -> Certificates:
        """Class and l2 radius of every row of `x` `[n, ...]`; `settings` are those of `parts.smoothing.Smoothing`."""
        return Smoothing(sigma=self.sigma, **settings)(self.base, x, rng)


def _smoothed(model: TorchModel, noise: Tensor, sigma: float) -> SmoothedTarget:
    with torch.no_grad():
        kind = model.forward(torch.zeros_like(noise[:1])).kind
    module = Smoothed(model.clone(), noise, Reader(model, kind)).eval()
    return SmoothedTarget(around(model, module, "+certify.smoothing"), None, sigma)
