"""Differentially private training."""

from __future__ import annotations

import copy
import secrets
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

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
    row_losses,
    torch_backed,
)
from vauban.parts.training import quiet_rng
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source
from vauban.schema.errors import MissingExtra, NotOffered

SUFFIX = "+privacy.dp_sgd"
ACCOUNTANTS = ("prv", "rdp")


@dataclass(frozen=True)
class Plan:
    """The mechanism in numbers: what the guarantee follows from."""

    noise: float
    """Standard deviation of the noise, as a multiple of the clipping norm."""
    sample_rate: float
    steps: int
    delta: float
    epsilon: float
    accountant: str


@dataclass(frozen=True, kw_only=True)
class DPSGD:
    """Trains a fresh model so that no single training row can change it much: (epsilon, delta)-differential privacy.

    Each step draws every row independently with probability `batch_size / n` (Poisson sampling), clips each row's
    gradient to norm `clip`, adds Gaussian noise of standard deviation noise x `clip` to their sum and divides by the
    expected, never the actual, number of rows. Opacus computes the gradients and keeps the account; neighbouring data
    sets differ by one added or removed row. Layers that mix rows cannot be trained so: batch normalisation is replaced
    by group normalisation, which the facts name.

    The noise comes from a generator seeded with the run's seed, so that a run can be repeated; the guarantee assumes
    that nobody knows that seed. For a model that is to be released set `secure`: then noise and sampling are drawn
    anew from the operating system's entropy, and no two runs agree.

    Source: Abadi et al. 2016 (arXiv:1607.00133, Algorithm 1); accounting by Gopi et al. 2021 (arXiv:2106.02848, `prv`)
    or Mironov et al. 2019 (arXiv:1908.10530, `rdp`); both are upper bounds.
    Departure: Adam on the private gradients instead of SGD, which is post-processing and costs no privacy.

    Args:
        epsilon: the budget; the least noise that keeps it is looked for. Ignored where `noise` is given.
        noise: noise multiplier; epsilon then follows.
        delta: n ** -1.1 where None, which is below 1 / n.
        clip: largest norm of a row's gradient.
        epochs: expected passes over the training rows.
        batch_size: expected rows a step.
        rate: learning rate of Adam.
        accountant: `prv` (tighter) or `rdp`.
        secure: take noise and sampling from the operating system's entropy.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="privacy.dp_sgd",
        name="Differentially private training (DP-SGD)",
        summary="Trains the model anew with clipped, noisy gradients, so that it provably tells little of any one row.",
        needs=Access.WEIGHTS_READ | Access.DATA_READ,
        tasks=("classification", "regression"),
        adaptive=("leakage.lira", "leakage.rmia"),
        threats=("leakage",),
        sources=(
            Source(
                title="Deep learning with differential privacy",
                where="Abadi et al., CCS 2016, arXiv:1607.00133, Algorithm 1",
            ),
            Source(
                title="Numerical composition of differential privacy",
                where="Gopi, Lee, Wutschitz, NeurIPS 2021, arXiv:2106.02848",
            ),
        ),
    )

    epsilon: float = 8.0
    noise: float | None = None
    delta: float | None = None
    clip: float = 1.0
    epochs: int = 40
    batch_size: int = 128
    rate: float = 5e-3
    accountant: str = "prv"
    secure: bool = False

    def __post_init__(self) -> None:
        for name in ("epsilon", "clip", "rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.noise is not None and not self.noise > 0:
            raise ValueError(f"noise must be above 0, got {self.noise}: without noise there is no privacy")
        if self.delta is not None and not 0 < self.delta < 1:
            raise ValueError(f"delta is a probability in (0, 1), got {self.delta}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.accountant not in ACCOUNTANTS:
            raise ValueError(f"accountant is {' or '.join(ACCOUNTANTS)}, got {self.accountant!r}")

    def __call__(self, target: Target, data: Data, rng: Rng, context: Context) -> Hardened:
        model = torch_backed(target, self.card)
        x, y = lessons(model, data, self.card)
        with _opacus():
            plan = self.plan(len(x))
            module, replaced = self._train(model, x, y, int(rng.child("dp_sgd").seed), plan, context)
        defended = self._around(model, module, plan.noise)
        return Hardened(defended, self._facts(plan, replaced), self._caveats(plan, module, len(x)))

    def restore(self, target: Target, data: Data, state: Mapping[str, Tensor]) -> Target:
        model = torch_backed(target, self.card)
        with _opacus():
            module, _ = _without_mixing(model.clone())
            return self._around(model, loaded(module, state), self.plan(len(data.x_train)).noise)

    def _around(self, model: TorchModel, module: nn.Module, noise: float) -> Defended:
        def again(x: Tensor, y: Tensor, seed: int) -> Target:
            with _opacus():
                module, _ = self._train(model, x, y, seed, self.plan(len(x), noise), None)
            return around(model, module, f"{SUFFIX}+seed{seed}")

        return Defended(around(model, module, SUFFIX), Redone(again) if model.recipe else None)

    def plan(self, rows: int, noise: float | None = None) -> Plan:
        """Noise, steps and epsilon for that many training rows; `noise` given overrides the setting.

        Raises NotOffered where no amount of noise keeps the budget.
        """
        noise = self.noise if noise is None else noise
        q = min(1.0, self.batch_size / rows)
        steps = max(1, round(self.epochs / q))
        delta = self.delta if self.delta is not None else max(rows, 2) ** -1.1
        with _opacus():
            from opacus.accountants import create_accountant

            noise = self._least_noise(q, steps, delta) if noise is None else noise
            account = create_accountant(mechanism=self.accountant)
            account.history = [(noise, q, steps)]
            return Plan(float(noise), q, steps, delta, float(account.get_epsilon(delta=delta)), self.accountant)

    def _least_noise(self, q: float, steps: int, delta: float) -> float:
        from opacus.accountants.utils import get_noise_multiplier

        try:
            return get_noise_multiplier(
                target_epsilon=self.epsilon, target_delta=delta, sample_rate=q, steps=steps, accountant=self.accountant
            )
        except ValueError as error:
            raise NotOffered(
                f"privacy.dp_sgd cannot keep epsilon {self.epsilon:g} at delta {delta:.2g} in {steps} steps that draw "
                f"{q:.2%} of the rows each: ask for a larger epsilon or fewer epochs."
            ) from error

    def _train(
        self, model: TorchModel, x: Tensor, y: Tensor, seed: int, plan: Plan, context: Context | None
    ) -> tuple[nn.Module, list[str]]:
        from opacus import GradSampleModule
        from opacus.optimizers import DPOptimizer

        module, replaced = _without_mixing(fresh(model, derive_seed(seed, "weights"), self.card))
        device, _ = placement(module)
        noise, draws = self._generators(seed, device)
        if not any(p.requires_grad for p in module.parameters()):
            raise NotOffered("Every weight of the model is frozen: unfreeze (requires_grad_) those to train.")
        plain = copy.deepcopy(module)
        private = GradSampleModule(module.train(), loss_reduction="sum")
        optimizer = DPOptimizer(
            torch.optim.Adam([p for p in private.parameters() if p.requires_grad], lr=self.rate),
            noise_multiplier=plan.noise,
            max_grad_norm=self.clip,
            expected_batch_size=plan.sample_rate * len(x),
            generator=noise,
        )
        with quiet_rng(seed):
            for step in range(plan.steps):
                rows = (torch.rand(len(x), generator=draws) < plan.sample_rate).nonzero().flatten()
                optimizer.zero_grad(set_to_none=True)
                if len(rows):
                    row_losses(model.read(private(x[rows].to(device))), y[rows].to(device)).sum().backward()
                else:
                    _nothing(optimizer.params)
                optimizer.step()
                if context is not None:
                    context.progress(step + 1, plan.steps, "private training")
        plain.load_state_dict({k: v.detach().clone() for k, v in module.state_dict().items()})
        return plain.eval(), replaced

    def _generators(self, seed: int, device: torch.device) -> tuple[torch.Generator, torch.Generator]:
        """For the noise, on the model's device, and for the sampling."""
        first, second = (secrets.randbits(63) if self.secure else derive_seed(seed, n) for n in ("noise", "sampling"))
        return torch.Generator(device).manual_seed(first), torch.Generator().manual_seed(second)

    def _facts(self, plan: Plan, replaced: list[str]) -> dict[str, Any]:
        return {
            "epsilon": plan.epsilon,
            "delta": plan.delta,
            "noise_multiplier": plan.noise,
            "clip": self.clip,
            "sampling": "poisson",
            "sample_rate": plan.sample_rate,
            "steps": plan.steps,
            "epochs": self.epochs,
            "accountant": plan.accountant,
            "neighbours": "one row added or removed",
            "noise_from": "the operating system's entropy" if self.secure else "the run's seed",
            "replaced_layers": replaced,
        }

    def _caveats(self, plan: Plan, module: nn.Module, rows: int) -> tuple[str, ...]:
        said = [
            "Epsilon is that of this one training; settings tuned on the same rows, and every further training, add to it."
        ]
        if not self.secure:
            said.append(
                "The noise can be repeated from the run's seed, and whoever knows the seed can take it away again: train a "
                "model that is to be released with secure=true."
            )
        if plan.delta >= 1 / rows:
            said.append(
                f"Delta {plan.delta:.2g} is not below 1 / {rows} rows: the guarantee allows giving away a whole row."
            )
        kept = [name for name, _ in module.named_buffers()]
        if kept:
            said.append(
                f"Stored statistics ({', '.join(kept[:3])}) were kept as given; the guarantee does not cover them."
            )
        return tuple(said)


def _without_mixing(module: nn.Module) -> tuple[nn.Module, list[str]]:
    """The module with batch normalisation replaced by group normalisation, and in words what was replaced.

    Raises NotOffered naming the layers that cannot be trained with one gradient a row.
    """
    from opacus.validators import ModuleValidator

    module.train()
    before = dict(module.named_modules())
    fixed = ModuleValidator.fix(module)
    replaced = [
        f"{name or 'the model'}: {type(before[name]).__name__} -> {type(part).__name__}"
        for name, part in fixed.named_modules()
        if name in before and type(before[name]) is not type(part)
    ]
    errors = ModuleValidator.validate(fixed, strict=False)
    if errors:
        raise NotOffered(
            f"privacy.dp_sgd needs a gradient of each row by itself, and this model mixes rows: {errors[0]} Replace that "
            "layer and give the model again."
        )
    return fixed, replaced


def _nothing(parameters: list[nn.Parameter]) -> None:
    """The gradients of a batch that drew no row: still noise is added to their sum, which is 0."""
    for parameter in parameters:
        none = torch.zeros(0, *parameter.shape, device=parameter.device, dtype=parameter.dtype)
        setattr(parameter, "grad_sample", none)  # noqa: B010, the attribute is Opacus' own


@contextmanager
def _opacus() -> Iterator[None]:
    """Opacus, or MissingExtra; its known warnings silenced."""
    with warnings.catch_warnings():
        # The first layer's inputs need no gradient: that is meant.
        warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients are computed")
        # Said by the accountants when the best order lies at the end of their grid: the bound holds all the same.
        warnings.filterwarnings("ignore", message="Optimal order is the (largest|smallest) alpha")
        # A rate of 1 (all rows in every step) puts log(0) = -inf into the formula, which is meant as well.
        warnings.filterwarnings("ignore", message="divide by zero encountered in log", module="opacus")
        try:
            import opacus  # noqa: F401
        except ImportError:
            raise MissingExtra.of("privacy.dp_sgd", "privacy") from None
        yield
