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
from vauban.defences.certify.voting import Voting, VotingTarget, counted, shares, soft
from vauban.defences.common import (
    Reader,
    Redone,
    TorchModel,
    around,
    lessons,
    loaded,
    placement,
    torch_backed,
)
from vauban.defences.preprocess.front import sides
from vauban.defences.refusal import refusing
from vauban.defences.train.course import Drill
from vauban.defences.train.noise import NoiseTraining
from vauban.parts.projections import L2
from vauban.parts.smoothing import Certificates, Smoothing, needed
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
    gives for each input the class and the radius that hold with probability 1 - alpha, or abstains. With `abstain` the
    new target itself refuses, by a class of its own, wherever the vote is so close that the class it names could be
    another than that of the vote without end.

    A model that never saw noise loses much of its accuracy under it: with `epochs` it is first trained on with noisy
    copies of the training rows (`train.noise`), with `steps` at inputs that are moved against the vote first. The adaptive attack averages the gradients of the copies' softmax
    (Salman et al. 2019, arXiv:1906.04584, section 2.2); the new target's own gradients are these.

    Source: Cohen, Rosenfeld and Kolter 2019 (arXiv:1902.02918, section 3 and algorithm 1: PREDICT is the test of `abstain`).
    Departures: the paper's answer draws noise anew each time; here it can be repeated, so that the probability of `abstain`
    is over the patterns drawn once, not over every answer. The paper trains from scratch with noise, here training goes on.

    Args:
        sigma: standard deviation of the noise, in input units.
        draws: noisy copies an answer; every answer costs as many passes.
        abstain: probability at most with which an answer that is given may differ from that of the vote without end; where
            the vote does not show that much (a two-sided test of the first class against the second), the target
            refuses. 0 to answer always.
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
    abstain: float = 0.0
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
        if not 0 <= self.abstain < 1:
            raise ValueError(f"abstain is a probability from 0 to below 1, got {self.abstain}")
        if self.abstain and needed(self.draws, 0.5, self.abstain / 2) > self.draws:
            raise ValueError(
                f"abstain={self.abstain} would refuse every input, for {self.draws} votes show too little even where all agree: "
                "raise draws or abstain"
            )
        if not self.reach > 0:
            raise ValueError(f"reach must be above 0, got {self.reach}: set steps=0 for noise alone")
        if self.epochs:
            self._training()  # checks its own settings

    def __call__(self, target: Target, data: Data, rng: Rng, context: Context) -> Hardened:
        model = self._classifier(target)
        noise, space = self._noise(model, data, rng), L2(*sides(model, data))
        if self.epochs:
            x, y = lessons(model, data, self.card)
            model = self._taught(model, x, y, int(rng.child("train").seed), space, context)
        facts = {"sigma": self.sigma, "draws": self.draws, "epochs": self.epochs}
        facts |= {"steps": self.steps, "reach": self.reach} if self.epochs and self.steps else {}
        facts |= {"abstain": self.abstain} if self.abstain else {}
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
        defended = self._voting(model, noise)
        if model.recipe is None:
            return defended
        plain: Recipe = model.recipe

        def again(x: Tensor, y: Tensor, seed: int) -> Target:
            made = cast(TorchModel, plain.fit(x, y, seed))
            if self.epochs:
                made = self._taught(made, x.to(placement(made.module)[1]), y, seed, space)
            return self._voting(made, noise)

        return replace(defended, recipe=Redone(again))

    def _voting(self, model: TorchModel, noise: Tensor) -> SmoothedTarget:
        module = Smoothed(model.clone(), noise, Reader(model, torch.zeros_like(noise[:1])), self.abstain).eval()
        made = SmoothedTarget(around(model, module, "+certify.smoothing"), None, self.sigma)
        return made.settled(model.domain)


class Smoothed(Voting):
    """The vote of a model over noise patterns `[draws, ...]`; it refuses where `abstain` is above 0 and the vote too close."""

    noise: Tensor
    least: Tensor

    def __init__(self, model: nn.Module, noise: Tensor, read: Reader, abstain: float = 0.0) -> None:
        super().__init__(model, read)
        self.register_buffer("noise", noise.clone())
        # by how many votes the first two classes have together: the fewest of the first that show it to be the first
        shown = [needed(n, 0.5, abstain / 2) for n in range(1, len(noise) + 1)] if abstain else []
        self.register_buffer("least", torch.tensor([1, *shown], device=noise.device), persistent=False)

    @property
    def abstains(self) -> bool:
        """Whether it may refuse."""
        return len(self.least) > 1

    @property
    def copies(self) -> int:
        return len(self.noise)

    def copy(self, x: Tensor, k: int) -> Tensor:
        """With the noise of that number."""
        return x + self.noise[k]

    def forward(self, x: Tensor) -> Tensor:
        if not self.abstains:
            return super().forward(x)
        logs = self.logs(x)
        (first, second), (likely, next_to_it) = (
            each.topk(2, 1).values.T for each in (counted(logs.detach()), soft(logs).exp())
        )
        # votes that are missing, with the slope of the softmaxes; a half lays the threshold between two counts
        lead = self.copies * (likely - next_to_it) / 2
        missing = (self.least[first + second] - first) - 0.5 - (lead - lead.detach())
        zero = torch.zeros_like(missing[:1])
        return refusing(shares(logs, "logits").to(x.dtype), missing, zero, zero + 1 / self.copies)


@dataclass(frozen=True, eq=False)
class SmoothedTarget(VotingTarget):
    """A target that votes; `certify` proves for each input how far it may be moved."""

    sigma: float = 0.25

    @property
    def refusal(self) -> int | None:
        voting = cast(Smoothed, self.module)
        return voting.read.classes if voting.abstains else None

    def certify(self, x: Tensor, rng: Rng, **settings: Any) -> Certificates:
        """Class and l2 radius of every row of `x` `[n, ...]`; `settings` are those of `parts.smoothing.Smoothing`."""
        return Smoothing(sigma=self.sigma, **settings)(self.base, x, rng)
