"""Randomised smoothing as a defence: the vote over noisy copies of an input, with a certificate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from vauban.core.data import Data
from vauban.core.defence import Context, Hardened
from vauban.core.rng import Rng
from vauban.core.target import Recipe, Target
from vauban.defences.certify.voting import Voting, VotingTarget, reader
from vauban.defences.common import (
    Reader,
    Redone,
    TorchModel,
    around,
    loaded,
    placement,
    torch_backed,
    training_rows,
)
from vauban.defences.preprocess.front import sides
from vauban.defences.train.course import Drill
from vauban.defences.train.noise import NoiseTraining
from vauban.parts.projections import L2
from vauban.parts.smoothing import Certificates, Smoothing
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
    copies of the training rows (`train.noise`), with `steps` at inputs that are moved against the vote first. The adaptive attack averages the gradients of the copies' softmax (Salman et al. 2019,
    arXiv:1906.04584, section 2.2); the new target's own gradients are these.

    Source: Cohen, Rosenfeld and Kolter 2019 (arXiv:1902.02918, section 3 and algorithm 1).
    Departures: the paper's answer draws noise anew each time and abstains by a test; here the answers can be repeated
    and never abstain, while certificates do. The paper trains from scratch with noise, here training goes on.

    Args:
        sigma: standard deviation of the noise, in input units.
        draws: noisy copies an answer; every answer costs as many passes.
        epochs: passes over the training rows with noise beforehand; 0 to leave the model as it is.
        steps: gradient steps of the attack on the vote in this training (SmoothAdv); 0 for noise alone.
        reach: how far that attack moves inputs in l2, in input units.
        copies: noisy copies of each input in a step of this training.
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
    steps: int = 0
    reach: float = 0.5
    copies: int = 1
    batch_size: int = 64
    rate: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.sigma < float("inf"):
            raise ValueError(f"sigma is a standard deviation above 0, got {self.sigma}")
        if self.draws < 1 or self.epochs < 0:
            raise ValueError(f"draws must be at least 1 and epochs at least 0, got {self.draws} and {self.epochs}")
        if not self.reach > 0:
            raise ValueError(f"reach must be above 0, got {self.reach}: set steps=0 for noise alone")
        if self.epochs:
            self._training()  # checks its own settings

    def __call__(self, target: Target, data: Data, rng: Rng, context: Context) -> Hardened:
        model = self._classifier(target)
        noise, space = self._noise(model, data, rng), L2(*sides(model, data))
        if self.epochs:
            x, y = training_rows(model, data, self.card)
            model = self._taught(model, x, y, int(rng.child("train").seed), space, context)
        facts = {"sigma": self.sigma, "draws": self.draws, "epochs": self.epochs}
        facts |= {"steps": self.steps, "reach": self.reach} if self.epochs and self.steps else {}
        caveats = [
            f"The answers are votes of {self.draws} noisy copies; a certificate (certify) speaks of the vote without end "
            "and holds in l2 only."
        ]
        if not self.epochs:
            caveats.append("The model was not trained with noise here: set epochs if its clean accuracy fell.")
        return Hardened(self._around(model, noise, space), facts, tuple(caveats))

    def restore(self, target: Target, data: Data, state: Mapping[str, Tensor]) -> Target:
        model = self._classifier(target)
        defended = self._around(model, self._noise(model, data, Rng(0)), L2(*sides(model, data)))
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

    def _training(self) -> NoiseTraining:
        return NoiseTraining(
            sigma=self.sigma, copies=self.copies, steps=self.steps, epochs=self.epochs, batch_size=self.batch_size,
            rate=self.rate, ramp=0.0, schedule="constant",
        )  # fmt: skip

    def _taught(
        self, model: TorchModel, x: Tensor, y: Tensor, seed: int, space: L2, context: Context | None = None
    ) -> TorchModel:
        """The model trained on with noisy inputs; dropout and batch statistics as in any training."""
        drill = Drill(self._training(), model, space, self.reach, Rng(seed, len(x)))
        return around(model, drill.run(model.clone(), x, y, seed, context).module, "")

    def _around(self, model: TorchModel, noise: Tensor, space: L2) -> SmoothedTarget:
        defended = _smoothed(model, noise, self.sigma)
        if model.recipe is None:
            return defended
        plain: Recipe = model.recipe

        def again(x: Tensor, y: Tensor, seed: int) -> Target:
            made = cast(TorchModel, plain.fit(x, y, seed))
            if self.epochs:
                made = self._taught(made, x.to(placement(made.module)[1]), y, seed, space)
            return _smoothed(made, noise, self.sigma)

        return replace(defended, recipe=Redone(again))


class Smoothed(Voting):
    """The vote of a model over noise patterns `[draws, ...]`."""

    noise: Tensor

    def __init__(self, model: nn.Module, noise: Tensor, read: Reader) -> None:
        super().__init__(model, read)
        self.register_buffer("noise", noise.clone())

    @property
    def copies(self) -> int:
        return len(self.noise)

    def copy(self, x: Tensor, k: int) -> Tensor:
        """With the noise of that number."""
        return x + self.noise[k]


@dataclass(frozen=True, eq=False)
class SmoothedTarget(VotingTarget):
    """A target that votes; `certify` proves for each input how far it may be moved."""

    sigma: float = 0.25

    def certify(self, x: Tensor, rng: Rng, **settings: Any) -> Certificates:
        """Class and l2 radius of every row of `x` `[n, ...]`; `settings` are those of `parts.smoothing.Smoothing`."""
        return Smoothing(sigma=self.sigma, **settings)(self.base, x, rng)


def _smoothed(model: TorchModel, noise: Tensor, sigma: float) -> SmoothedTarget:
    module = Smoothed(model.clone(), noise, reader(model, torch.zeros_like(noise[:1]))).eval()
    return SmoothedTarget(around(model, module, "+certify.smoothing"), None, sigma)
