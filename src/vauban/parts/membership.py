"""Was this record trained on? Signals of a model on a record, and the likelihood ratios made of them.

All functions take and give float64 CPU tensors: true positives at low false-positive rates live in the last bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.special import log_ndtr

from vauban.core.attack import LeakScene
from vauban.core.target import Outputs, Target
from vauban.schema.errors import NotOffered

Variance = Literal["shrunk", "fixed", "record"]
_TINY = 1e-300
_NO_SPREAD = 1e-12


@torch.no_grad()
def answers(target: Target, x: Tensor, batch_size: int = 512) -> Outputs:
    """The target's answers to all of `x` `[n, ...]`, on the CPU in float64 (class numbers stay int64)."""
    parts = [target.forward(piece) for piece in x.split(batch_size)]
    values = torch.cat([part.values.detach().cpu() for part in parts])
    return Outputs(values.to(torch.float64) if values.is_floating_point() else values, parts[0].kind)


def log_probabilities(outputs: Outputs) -> Tensor:
    """float64 `[n, classes]` log-probabilities from logits or probabilities.

    Probabilities are bounded below at 1e-300, so that a rounded zero stays finite. Raises ValueError for bare labels
    and values.
    """
    if outputs.kind not in ("logits", "probabilities"):
        raise ValueError(f"log-probabilities need logits or probabilities, the model answers with {outputs.kind}")
    values = outputs.values.to(torch.float64)
    if outputs.kind == "logits":
        return torch.log_softmax(values, 1)
    return values.clamp_min(_TINY).log()


def log_likelihood(outputs: Outputs, y: Tensor) -> Tensor:
    """`[n]`: log-probability of the true class; minus the squared error in a regression."""
    if outputs.kind == "values":
        return -((outputs.values.reshape(-1).to(torch.float64) - y.to(torch.float64)) ** 2)
    return log_probabilities(outputs).gather(1, y[:, None])[:, 0]


def margin(outputs: Outputs, y: Tensor) -> Tensor:
    """`[n]`: log(p / (1 - p)) of the true class, as z_y - logsumexp of the other logits; no 1 - p is ever formed.

    Logit scaling makes the confidence nearly Gaussian (Carlini et al. 2022, section VI-A, "stable" form). In a
    regression it is minus the squared error, as for `log_likelihood`.
    """
    if outputs.kind == "values":
        return log_likelihood(outputs, y)
    logp = log_probabilities(outputs)
    own = logp.gather(1, y[:, None])[:, 0]
    rest = logp.scatter(1, y[:, None], -math.inf)
    return own - torch.logsumexp(rest, 1)


def modified_entropy(outputs: Outputs, y: Tensor) -> Tensor:
    """`[n]`: -(1 - p_y) log p_y - sum over other classes of p_i log(1 - p_i) (Song and Mittal 2021, section 4.1.4).

    0 for a certain correct answer, large for a certain wrong one. log(1 - p) is computed as log of the sum of the
    other probabilities, so that it stays exact near 1.
    """
    logp = log_probabilities(outputs)
    top = logp.argmax(1, keepdim=True)
    without_top = torch.logsumexp(logp.scatter(1, top, -math.inf), 1, keepdim=True)
    rest = torch.log1p(-logp.exp()).scatter(1, top, without_top)
    terms = logp.exp() * rest
    own = y[:, None]
    true_term = rest.gather(1, own).exp() * logp.gather(1, own)
    return -(true_term[:, 0] + terms.scatter(1, own, 0.0).sum(1))


@dataclass(frozen=True)
class References:
    """`m` reference models seen through the audited records."""

    inside: Tensor
    """bool `[m, n]`: which of the `n` records each model was trained on."""
    outputs: tuple[Outputs, ...]
    """Each model's answers to the records."""

    def __len__(self) -> int:
        return len(self.outputs)

    def margins(self, y: Tensor) -> Tensor:
        """`[m, n]`."""
        return torch.stack([margin(o, y) for o in self.outputs])

    def log_likelihoods(self, y: Tensor) -> Tensor:
        """`[m, n]`."""
        return torch.stack([log_likelihood(o, y) for o in self.outputs])


def complementary_splits(strata: Tensor, pairs: int, generator: torch.Generator) -> Tensor:
    """bool `[2 * pairs, n]`: random halves and their complements, so that each record is in exactly half of the rows.

    `strata` `[n]` are small integers; each stratum is halved (an odd one up or down at random), so that no model
    sees more of one stratum than of another.
    """
    halves = torch.zeros(pairs, len(strata), dtype=torch.bool)
    for pair in range(pairs):
        for value in strata.unique():
            rows = (strata == value).nonzero().flatten()
            odd = int(torch.randint(0, 2, (1,), generator=generator)) if len(rows) % 2 else 0
            chosen = rows[torch.randperm(len(rows), generator=generator)[: len(rows) // 2 + odd]]
            halves[pair, chosen] = True
    return torch.stack([halves, ~halves], 1).reshape(2 * pairs, len(strata))


def _moments(signals: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and sum of squared deviations over the masked models: each `[n]`."""
    weight = mask.to(signals.dtype)
    count = weight.sum(0)
    mean = (signals * weight).sum(0) / count.clamp_min(1)
    squares = ((signals - mean) ** 2 * weight).sum(0)
    return count, mean, squares


def _spread(count: Tensor, squares: Tensor, variance: Variance, prior: float) -> Tensor:
    """Standard deviation `[n]` by the chosen estimator."""
    freedom = (count - 1).clamp_min(0)
    pooled = squares.sum() / freedom.sum().clamp_min(1)
    weight = {"shrunk": prior, "fixed": math.inf, "record": 0.0}[variance]
    own = torch.where(freedom > 0, squares / freedom.clamp_min(1), pooled)
    share = torch.where(freedom > 0, freedom / (freedom + weight), torch.zeros_like(freedom))
    return (share * own + (1 - share) * pooled).clamp_min(_NO_SPREAD).sqrt()


def lira(
    signal: Tensor,
    references: Tensor,
    inside: Tensor,
    *,
    online: bool = True,
    variance: Variance = "shrunk",
    prior: float = 16.0,
) -> Tensor:
    """The likelihood-ratio score `[n]` of Carlini et al. 2022 (arXiv:2112.03570, Algorithm 1); larger: more likely a member.

    `signal` `[n]`: the target's margins; `references` `[m, n]`: the reference models' margins; `inside` bool `[m, n]`.
    Online: log N(signal; mean_in, sd_in) - log N(signal; mean_out, sd_out). Offline: the log-probability that a
    model without the record is less sure than the target, log Phi((signal - mean_out) / sd_out): the tail (one-sided
    test of the paper, section V-B), not the density.

    `variance`: `record` (each record's own), `fixed` (one for all records) or `shrunk`: the posterior mean
    (prior * pooled + (k - 1) * own) / (prior + k - 1) under a conjugate prior worth `prior` observations (not in the
    paper: it lies between the paper's two, and serves where there are few references).
    Raises ValueError where a record has no reference on a needed side.
    """
    count, mean, squares = _moments(references, ~inside)
    if (count < 1).any():
        raise ValueError("every record needs a reference model that was not trained on it")
    sd_out = _spread(count, squares, variance, prior)
    z_out = (signal - mean) / sd_out
    if not online:
        return log_ndtr(z_out)
    count, mean, squares = _moments(references, inside)
    if (count < 1).any():
        raise ValueError("the online attack needs, for every record, a reference model that was trained on it")
    sd_in = _spread(count, squares, variance, prior)
    z_in = (signal - mean) / sd_in
    return 0.5 * (z_out**2 - z_in**2) + sd_out.log() - sd_in.log()


def rmia_log_ratio(signal: Tensor, references: Tensor, inside: Tensor, *, online: bool, a: float) -> Tensor:
    """`[n]`: log p(x | target) - log p(x), the second estimated from reference models (Zarifzadeh et al. 2024, section 3.1).

    `signal` `[n]` and `references` `[m, n]` are log-likelihoods. Online: p(x) is the mean over models with and without
    x, half each. Offline: (1 + a) / 2 * mean over models without x + (1 - a) / 2 (appendix B.2.2).
    """
    outside = ~inside
    log_out = torch.where(outside, references, -math.inf).logsumexp(0) - outside.sum(0).log()
    if online:
        log_in = torch.where(inside, references, -math.inf).logsumexp(0) - inside.sum(0).log()
        return signal - (torch.logaddexp(log_in, log_out) - math.log(2))
    floor = math.log((1 - a) / 2) if a < 1 else -math.inf
    return signal - torch.logaddexp(log_out + math.log((1 + a) / 2), torch.full_like(log_out, floor))


def rmia(log_ratio: Tensor, population: Tensor, gamma: float = 2.0) -> Tensor:
    """`[n]`: the share of population points z with ratio(x) / ratio(z) >= gamma (equation 4), from log ratios.

    The ratios of `population` `[z]` are sorted once and each record is looked up: O((n + z) log z) time and O(n + z)
    memory, bit-equal to the n x z comparison.
    """
    ranks = torch.searchsorted(population.sort().values, log_ratio - math.log(gamma), right=True)
    return ranks.to(torch.float64) / len(population)


def references_of(scene: LeakScene, count: int) -> References:
    """The scene's reference models; raises NotOffered where there are none."""
    if scene.references is None:
        raise NotOffered(
            "This attack needs reference models: give training data and a recipe to train like the target."
        )
    found: References = scene.references(count)
    return found
