"""Training with noise, plain or at the inputs that are worst under it: what a vote over noisy copies needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.core.target import Outputs
from vauban.defences.common import only_inputs, row_losses
from vauban.defences.train.course import JUDGED, AdversarialTraining
from vauban.defences.train.inner import Inner, worst_case
from vauban.parts.losses import log_probabilities
from vauban.parts.training import Batch
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source

VOTERS = 8
"""Noisy copies by whose mean an epoch is judged."""


@dataclass(frozen=True, kw_only=True)
class NoiseTraining(AdversarialTraining):
    """Trains the model on noisy copies of its inputs, so that `certify.smoothing` has something to prove.

    Without `steps` that is training with Gaussian noise. With them every batch is first moved within the threat to where the mean
    probability of the label over the copies is lowest (the attack on the vote itself), and the noise is added there: the radii that
    can be proved grow. Alone, without the vote, it protects little.

    Source: Cohen, Rosenfeld and Kolter 2019 (arXiv:1902.02918, section 4: Gaussian noise); Salman et al. 2019
    (arXiv:1906.04584, section 3 and pseudocode 1: SmoothAdv by PGD).
    Departures: training starts from the model's own weights unless `from_scratch`; the radius and the noise grow together over
    `ramp`; Adam with a rate that falls along a cosine.

    Args:
        sigma: standard deviation of the noise, in input units.
        copies: noisy copies of each input in a step, 1 or more; the attack looks at their mean.
        steps: gradient steps of the attack on that mean; 0 for noise alone.
        epochs: passes over the training rows.
        batch_size: rows a step, before they are copied.
        rate: first learning rate of Adam.
        weight_decay: L2 penalty on the weights.
        schedule: of the rate: `constant`, `cosine` (epoch by epoch) or `cycle` (up over a fifth of the run, down to nothing).
        ramp: share of the run in which noise and radius grow to their full size, in [0, 1].
        average: decay, a step, of averaged weights, which are then the result; 0 for none.
        validation: share of the training rows that are kept aside; the epoch whose vote holds best on them is the result.
        patience: epochs without a better one after which training ends; 0 for never.
        accumulate: parts in which the gradient of a batch is summed up, to save memory; the step is that of the whole batch.
        precision: of the passes, `float32` or `bf16`, which is faster on GPUs that have it; weights stay in float32.
        crop: pictures are moved by up to so many pixels, at random and anew every epoch; their edge goes on where that leaves a gap.
        flip: half of the pictures are mirrored at random, left to right.
        from_scratch: start from fresh weights.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="train.noise",
        name="Training with noise (Gaussian, SmoothAdv)",
        summary="Trains the model on noisy inputs, at the worst ones if asked, so that a vote over noisy copies can prove more.",
        needs=Access.WEIGHTS_READ | Access.DATA_READ,
        tasks=("classification",),
        adaptive=("evasion.apgd", "evasion.apgd_targeted", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="Certified adversarial robustness via randomized smoothing",
                where="Cohen, Rosenfeld, Kolter, ICML 2019, arXiv:1902.02918, section 4",
            ),
            Source(
                title="Provably robust deep learning via adversarially trained smoothed classifiers",
                where="Salman et al., NeurIPS 2019, arXiv:1906.04584, section 3",
            ),
        ),
    )

    sigma: float = 0.25
    copies: int = 1
    steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sigma < float("inf"):
            raise ValueError(f"sigma is a standard deviation above 0, got {self.sigma}")
        if self.copies < 1 or self.steps < 0:
            raise ValueError(f"copies must be at least 1 and steps at least 0, got {self.copies} and {self.steps}")

    def loss(self, inner: Inner, batch: Batch) -> Tensor:
        """That of the copies, at the worst inputs where there are steps."""
        noise = self._noise(inner, batch, self.copies) * self.grown(batch)
        z = self._worst(inner, batch, noise, self.steps) if self.steps else batch.x
        outputs = inner.answer((z + noise).flatten(0, 1))
        return row_losses(outputs, batch.y.repeat(self.copies)).mean()

    def judged(self, inner: Inner, batch: Batch) -> Tensor:
        """Whether the copies' mean answers the worst input right."""
        noise = self._noise(inner, batch, VOTERS)
        z = self._worst(inner, batch, noise, JUDGED) if self.steps else batch.x
        with only_inputs(inner.module), torch.no_grad():
            return (_mean(inner, z, noise).labels == batch.y).double()

    def _noise(self, inner: Inner, batch: Batch, copies: int) -> Tensor:
        """`[copies, m, ...]`, each row's own, whatever batch it is in."""
        drawn = inner.rng.child("noise").normal(batch.rows, (copies, *batch.x.shape[1:]))
        return self.sigma * drawn.to(batch.x).movedim(1, 0)

    def _worst(self, inner: Inner, batch: Batch, noise: Tensor, steps: int) -> Tensor:
        with only_inputs(inner.module):
            return worst_case(
                lambda z: _mean(inner, z, noise),
                batch.x, batch.y, inner.space, inner.radius, steps, inner.rng, batch.rows,
            )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        return {"sigma": self.sigma, "copies": self.copies, "steps": self.steps}


def _mean(inner: Inner, z: Tensor, noise: Tensor) -> Outputs:
    """The mean probabilities of the noisy copies of `z`."""
    logs = log_probabilities(inner.answer((z + noise).flatten(0, 1)))
    return Outputs(logs.exp().unflatten(0, noise.shape[:2]).mean(0), "probabilities")
