"""The same attack as each peer offers it: (model, x, y, eps, seed) -> changed inputs. Peers load when used.

All get batches of BATCH rows, the settings they would get from a careful user, and the same model object.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import shims
import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 250
Attack = Callable[[nn.Module, Tensor, Tensor, float, int], Tensor]


def in_batches(attack: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([attack(a, b).detach() for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)])


def bare_passes(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    """The floor: forward and backward to the input alone, nothing else."""
    for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True):
        for _ in range(steps):
            leaf = a.clone().requires_grad_(True)
            torch.autograd.grad(F.cross_entropy(model(leaf), b, reduction="sum"), leaf)


@torch.no_grad()
def bare_forwards(model: nn.Module, x: Tensor, steps: int) -> None:
    for a in x.split(BATCH):
        for _ in range(steps):
            model(a)


def _art(model: nn.Module):
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )  # fmt: skip


def pgd(steps: int) -> dict[str, Attack]:
    """PGD, linf, step 2.5 eps / steps, random start."""

    def foolbox(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        import foolbox as fb

        wrapped = fb.PyTorchModel(model, bounds=(0, 1), device="cpu")
        attack = fb.attacks.LinfPGD(rel_stepsize=2.5 / steps, steps=steps)
        return in_batches(lambda a, b: attack(wrapped, a, b, epsilons=eps)[1], x, y)

    def torchattacks(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        import torchattacks as ta

        attack = ta.PGD(model, eps=eps, alpha=2.5 * eps / steps, steps=steps)
        return in_batches(attack, x, y)

    def art(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        from art.attacks.evasion import ProjectedGradientDescentPyTorch

        np.random.seed(seed)  # noqa: NPY002 - ART draws from the global generator
        attack = ProjectedGradientDescentPyTorch(
            _art(model), eps=eps, eps_step=2.5 * eps / steps, max_iter=steps, num_random_init=1, batch_size=BATCH,
            verbose=False,
        )  # fmt: skip
        return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))

    def cleverhans(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent as run

        def one(a: Tensor, b: Tensor) -> Tensor:
            return run(model, a, eps, 2.5 * eps / steps, steps, np.inf, 0.0, 1.0, y=b, sanity_checks=False)

        return in_batches(one, x, y)

    def adv_lib(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        shims.install()
        from adv_lib.attacks import pgd_linf

        return in_batches(lambda a, b: pgd_linf(model, a, b, eps, steps=steps, relative_step_size=2.5 / steps), x, y)

    return {
        "foolbox": foolbox, "torchattacks": torchattacks, "art": art, "cleverhans": cleverhans, "adv_lib": adv_lib
    }  # fmt: skip


def apgd(steps: int) -> dict[str, Attack]:
    """APGD on cross-entropy, linf, one run, random start, first step 2 eps (the paper's)."""

    def torchattacks(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        import torchattacks as ta

        attack = ta.APGD(model, norm="Linf", eps=eps, steps=steps, n_restarts=1, seed=seed, loss="ce")
        return in_batches(attack, x, y)

    def art(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        from art.attacks.evasion import AutoProjectedGradientDescent

        np.random.seed(seed)  # noqa: NPY002 - ART draws from the global generator
        attack = AutoProjectedGradientDescent(
            _art(model), eps=eps, eps_step=2 * eps, max_iter=steps, nb_random_init=1, batch_size=BATCH,
            loss_type="cross_entropy", verbose=False,
        )  # fmt: skip
        return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))

    def adv_lib(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        shims.install()
        from adv_lib.attacks import apgd as run

        return in_batches(lambda a, b: run(model, a, b, eps, math.inf, n_iter=steps, loss_function="ce"), x, y)

    return {"torchattacks": torchattacks, "art": art, "adv_lib": adv_lib}


def square(queries: int) -> dict[str, Attack]:
    """Square attack, linf, margin loss, p 0.8, one run."""

    def torchattacks(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        import torchattacks as ta

        attack = ta.Square(model, norm="Linf", eps=eps, n_queries=queries, n_restarts=1, seed=seed)
        return in_batches(attack, x, y)

    def art(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        from art.attacks.evasion import SquareAttack

        np.random.seed(seed)  # noqa: NPY002 - ART draws from the global generator
        attack = SquareAttack(
            _art(model), norm=np.inf, max_iter=queries, eps=eps, p_init=0.8, nb_restarts=1, batch_size=BATCH,
            verbose=False,
        )  # fmt: skip
        return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))

    return {"torchattacks": torchattacks, "art": art}


def hop_skip_jump(iterations: int, evaluations: int) -> dict[str, Attack]:
    """HopSkipJump, l2: so many iterations, at most so many evaluations for one gradient estimate."""

    def foolbox(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        import foolbox as fb

        wrapped = fb.PyTorchModel(model, bounds=(0, 1), device="cpu")
        attack = fb.attacks.HopSkipJumpAttack(steps=iterations, max_gradient_eval_steps=evaluations)
        return in_batches(lambda a, b: attack(wrapped, a, b, epsilons=None)[0], x, y)

    def cleverhans(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        from cleverhans.torch.attacks.hop_skip_jump_attack import hop_skip_jump_attack as run

        np.random.seed(seed)  # noqa: NPY002
        found = [
            run(model, a, 2, num_iterations=iterations, max_num_evals=evaluations, verbose=False) for a in x.split(1)
        ]
        return torch.cat(found).detach()

    return {"foolbox": foolbox, "cleverhans": cleverhans}
