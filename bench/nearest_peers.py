"""Peers that look for the nearest adversarial input: (model, x, y, seed) -> (changed inputs, passes made).

Each gets the settings that its authors or AttackBench give it, spread over so many passes. Peers load when used.
Foolbox's DDN, and its FMN in Linf and L1, end at adv-lib's distances to four digits, so they are not run again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import shims
from torch import Tensor, nn

Nearest = Callable[[nn.Module, Tensor, Tensor, int], tuple[Tensor, float]]
SPLIT = {200: (10, 20, 4, 5), 500: (10, 50, 5, 10), 2000: (20, 100, 5, 20)}
"""Passes -> radii tried by bisection, steps at each; and, with targets, how many and steps for each."""
FARTHEST = {"linf": 1.0, "l2": 10.0, "l1": 100.0}
"""Where APGD's bisection begins: half of it is tried first."""
NORM = {"linf": math.inf, "l2": 2, "l1": 1, "l0": 0}


def _adv(name: str, passes: float, **how: Any) -> Nearest:
    """An attack of adv-lib that minimises by itself."""

    def attack(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, float]:
        shims.install()
        import adv_lib.attacks as theirs
        from adv_lib.attacks.sigma_zero import sigma_zero
        from adv_lib.attacks.superdeepfool import sdf

        found = {"sigma_zero": sigma_zero, "sdf": sdf}.get(name) or getattr(theirs, name)
        return found(model, x, y, **how).detach(), passes

    return attack


def _apgd(norm: str, budget: int, targeted: bool, loss: str) -> Nearest:
    radii, steps, targets, each = SPLIT[budget]

    def attack(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, float]:
        shims.install()
        from adv_lib.attacks.auto_pgd import minimal_apgd

        how = {"targeted_version": True, "num_targets": targets, "n_iter": each} if targeted else {"n_iter": steps}
        found = minimal_apgd(
            model, x, y, norm=NORM[norm], max_eps=FARTHEST[norm], binary_search_steps=radii, loss_function=loss, **how
        )
        return found.detach(), float(budget)

    return attack


def _foolbox(name: str, passes: float, **how: Any) -> Nearest:
    def attack(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, float]:
        import foolbox as fb

        wrapped = fb.PyTorchModel(model, bounds=(0, 1), device="cpu")
        return getattr(fb.attacks, name)(**how)(wrapped, x, y, epsilons=None)[0].detach(), passes

    return attack


def _common(norm: str, budget: int) -> dict[str, Nearest]:
    order = NORM[norm]
    return {
        "adv_lib fmn": _adv("fmn", budget, norm=order, steps=budget),
        "adv_lib pdpgd": _adv("pdpgd", budget, norm=order, num_steps=budget),
    }


def _fab(norm: str, budget: int) -> dict[str, Nearest]:
    # two forwards and a backward for every class at each step
    return {
        "adv_lib fab": _adv("fab", budget, norm=NORM[norm], n_iter=budget // 10, targeted_restarts=False),
        "adv_lib fab targeted": _adv(
            "fab", budget, norm=NORM[norm], n_iter=max(budget // 18, 1), targeted_restarts=True
        ),
    }


def linf(budget: int) -> dict[str, Nearest]:
    return {
        **_common("linf", budget),
        "adv_lib apgd dlr": _apgd("linf", budget, False, "dlr"),
        "adv_lib apgd targeted": _apgd("linf", budget, True, "dlr"),
        **_fab("linf", budget),
        "adv_lib deepfool": _adv("df", budget, norm=math.inf, steps=max(1, budget // 10)),
    }


def l2(budget: int) -> dict[str, Nearest]:
    return {
        "adv_lib ddn": _adv("ddn", budget, steps=budget, levels=None),
        "adv_lib pdgd": _adv("pdgd", budget, num_steps=budget),
        **_common("l2", budget),
        "adv_lib apgd dlr": _apgd("l2", budget, False, "dlr"),
        "adv_lib apgd targeted": _apgd("l2", budget, True, "dlr"),
        "adv_lib alma": _adv("alma", budget, num_steps=budget, distance="l2"),
        "foolbox cw": _foolbox("L2CarliniWagnerAttack", budget, binary_search_steps=5, steps=budget // 5),
        **_fab("l2", budget),
        "adv_lib superdeepfool": _adv("sdf", budget, steps=max(1, budget // 20)),
    }


def l1(budget: int) -> dict[str, Nearest]:
    return {
        **_common("l1", budget),
        "adv_lib apgd dlr": _apgd("l1", budget, False, "dlr"),
        "adv_lib apgd targeted": _apgd("l1", budget, True, "dlr"),
        "adv_lib alma": _adv("alma", budget, num_steps=budget, distance="l1"),
        "foolbox ead": _foolbox("EADAttack", budget, binary_search_steps=5, steps=budget // 5, decision_rule="L1"),
        **_fab("l1", budget),
    }


def l0(budget: int) -> dict[str, Nearest]:
    return {
        "adv_lib sigma_zero": _adv("sigma_zero", budget, num_steps=budget),
        **_common("l0", budget),
        "adv_lib pdpgd l23": _adv("pdpgd", budget, norm=0, num_steps=budget, proximal_operator=23),
        "foolbox fmn": _foolbox("L0FMNAttack", budget, steps=budget),
        "adv_lib vfga": _adv("vfga", budget, targeted=False),
    }


PEERS: Mapping[str, Callable[[int], dict[str, Nearest]]] = {"linf": linf, "l2": l2, "l1": l1, "l0": l0}
