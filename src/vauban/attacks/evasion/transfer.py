"""Transfer: examples made on substitutes and carried over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vauban.attacks.evasion.front import Front, finite_radius
from vauban.attacks.evasion.momentum import BASED, Momentum
from vauban.attacks.evasion.rehearsal import RECIPES, rehearsed, rivals, trust
from vauban.attacks.evasion.settings import above, at_least, at_most, one_of
from vauban.attacks.evasion.substitutes import (
    Ensemble,
    Lessons,
    agreement,
    lessons,
    payers,
    ready,
    trained,
    wandered,
)
from vauban.core.attack import EvasionScene, Perturbed, Price
from vauban.core.oracle import Loss
from vauban.core.rng import Rng, derive_seed
from vauban.parts.losses import LOSSES
from vauban.parts.projections import per_row
from vauban.schema.access import Access
from vauban.schema.cards import AttackCard, Source

CRAFTS: Mapping[str, Sequence[str]] = {
    **{name: (name,) for name in RECIPES},
    "mixed": ("pgd", "together", "vmi", "ni_si"),
}
"""Name of the setting -> recipes, of which one candidate after another is made."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Trains models of its own on the target's answers, breaks those by their gradients, and tries the results on the target.

    Nobody's gradients are needed but one's own: whoever has inputs of the same kind and may ask for answers can do this. The
    queries of a row are its share of the answers learnt from, and one for each candidate. Rows pay in turns, so that
    fifty rows at 100 queries pay for 4,800 answers, and one row alone for 96: raise `queries` where few rows are attacked.
    The first candidate goes the substitutes' shortest way to the goal; where any wrong class will do, each of the others goes to
    a class of its own, the likeliest first. Those that fool the most substitutes are tried first; the target decides.

    Source: Papernot et al. 2017 (arXiv:1602.02697: substitutes learnt from answers); Liu et al. 2017 (arXiv:1611.02770: several at
    once), with their logits averaged as in Dong et al. 2018 (arXiv:1710.06081, section 3.3); momentum, Nesterov's look ahead and
    scales (arXiv:1908.06281), variance tuning (arXiv:2103.15571), input diversity (arXiv:1803.06978), blurred gradients
    (arXiv:1904.02884); `ensemble="lgv"`: Gubri et al. 2022 (arXiv:2207.13129, section 3).
    Departures: mixtures of inputs where they run out, instead of Jacobian augmentation; substitutes are small nets, never
    the target's own architecture unless by chance; where scores are granted they are what is learnt. `together` takes
    gradients ahead and at paler copies and tunes their variance, too, which the papers do in pairs. `pgd` is what comes
    unasked, for between small nets its points carry over better than those of the others, whose gain was published for deep
    nets on photographs. LGV: every substitute walks, not one; networks are collected once an epoch, not four times; they
    take turns from look to look.

    Args:
        queries: queries a row, at most: its share of the answers and its candidates.
        candidates: points of each row that the target is asked about, at most.
        answers: inputs that the target labels for the substitutes, in all, at most.
        members: substitutes, of several architectures.
        training: batches of 64 answers that each learns from.
        ensemble: `trained`, or `lgv`: networks collected on a walk away from each trained one.
        collected: networks of a walk.
        rate: learning rate of a walk.
        craft: `pgd`, `mi`, `ni_si`, `vmi`, `together` (the last three at once), or `mixed`: a different one for each candidate.
        steps: gradient steps on the substitutes; twice as many of `pgd`.
        decay: weight of the sum of earlier gradients, 0 or more.
        copies: paler copies that gradients are taken at (`ni_si`, `together`).
        neighbours: points around that the gradient is corrected by (`vmi`, `together`).
        diversity: chance, 0 to 1, that an input is shrunk and moved before its gradient is taken.
        kernel: side of the Gaussian that blurs gradients, odd; 1 for none.
        loss: `margin` (difference of logits), `ce` (cross-entropy) or `dlr`, of the substitutes' mean logits.
        substitutes: in Python, modules that give logits (values in a regression) for inputs in the data's own units;
            nothing is trained then, and no answers are asked for.
    """

    card: ClassVar[AttackCard] = AttackCard(
        id="evasion.transfer",
        name="Transfer",
        summary="Fools models of the attacker's own, trained on the model's answers, and carries the results over.",
        needs=Access.LABELS | Access.DATA_READ,
        takes=Access.SCORES,
        spaces=("linf", "l2", "l1"),
        tasks=("classification", "regression"),
        goals=("untargeted", "targeted"),
        joint=True,
        sources=(
            Source(
                title="Practical black-box attacks against machine learning",
                where="Papernot et al., AsiaCCS 2017, arXiv:1602.02697, section 4",
            ),
            Source(
                title="Delving into transferable adversarial examples and black-box attacks",
                where="Liu et al., ICLR 2017, arXiv:1611.02770, section 5",
            ),
            Source(
                title="LGV: boosting adversarial example transferability from large geometric vicinity",
                where="Gubri et al., ECCV 2022, arXiv:2207.13129, section 3",
            ),
            *BASED,
        ),
    )
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"queries": 40, "candidates": 2, "members": 2, "training": 300, "steps": 5, "neighbours": 3},
        "deep": {"queries": 200, "candidates": 6, "answers": 20_000, "training": 2000, "steps": 20, "neighbours": 10},
    }

    queries: int = 100
    candidates: int = 4
    answers: int = 5000
    members: int = 4
    training: int = 600
    ensemble: str = "trained"
    collected: int = 8
    rate: float = 0.05
    craft: str = "pgd"
    steps: int = 10
    decay: float = 1.0
    copies: int = 3
    neighbours: int = 5
    diversity: float = 0.5
    kernel: int = 1
    loss: str = "margin"
    substitutes: Sequence[nn.Module] = ()

    def __post_init__(self) -> None:
        for name in ("candidates", "answers", "members", "training", "collected"):
            at_least(name, getattr(self, name), 1)
        at_least("queries", self.queries, self.candidates + 1)
        one_of("ensemble", self.ensemble, ENSEMBLES)
        above("rate", self.rate, 0)
        one_of("craft", self.craft, CRAFTS)
        one_of("loss", self.loss, LOSSES)
        at_most("diversity", self.diversity, 1)
        modules = self.substitutes
        if not isinstance(modules, Sequence) or not all(isinstance(part, nn.Module) for part in modules):
            raise ValueError(
                f"substitutes must be a list of torch modules, which can be given in Python alone, got {modules!r}"
            )
        # the recipes check what is theirs
        for name in RECIPES:
            self._recipe(name)

    def _recipe(self, name: str) -> Momentum:
        wanted = ("steps", "decay", "copies", "neighbours", "diversity", "kernel", "loss")
        return RECIPES[name](**{key: getattr(self, key) for key in wanted})

    def price(self, classes: int | None) -> Price:
        """`queries` a row, and the training of every substitute; where substitutes are given, one query a candidate."""
        if self.substitutes:
            return Price(queries=self.candidates)
        return Price(queries=self.queries, trainings=self.members * (1 + (self.ensemble == "lgv")))

    def __call__(self, scene: EvasionScene, rng: Rng) -> Perturbed:
        """Inputs `[n, ...]` within the radius. Raises BadThreat for an infinite radius."""
        finite_radius(scene, self.card.name)
        oracle, facts = scene.oracle, dict[str, Any]()
        ensemble = self._ensemble(scene, rng, facts) if len(oracle.rows) else None
        front = Front(scene)
        if ensemble is None or not len(front):
            return Perturbed(oracle.best.x, facts=facts)
        ranked = self._candidates(scene, ensemble, front.rows, rng)
        found, carried = scene.x.index_copy(0, front.rows, ranked[:, 0]), []
        for turn in range(ranked.shape[1]):
            (ranked,) = front.narrow(oracle.open(front.rows, 0), ranked)
            if not len(front):
                break
            carried.append(int(oracle.reaches(ranked[:, turn], front.rows).sum()))
        facts["carried_over"] = carried
        return Perturbed(torch.where(per_row(oracle.best.reached, scene.x).bool(), oracle.best.x, found), facts=facts)

    def _ensemble(self, scene: EvasionScene, rng: Rng, facts: dict[str, Any]) -> Ensemble | None:
        """What is brought along, or learnt; None where there is nothing to learn from."""
        if self.substitutes:
            return ready(self.substitutes, scene)
        rows = scene.oracle.rows
        left = scene.oracle.left(rows).clamp_max(self.queries)
        kept = left.div(2, rounding_mode="floor").clamp(1, self.candidates)
        charged = rows[payers((left - kept).clamp_min(0), self.answers)]
        if not len(charged):
            return None
        taught = lessons(scene, charged, rng)
        modules = trained(scene, taught, self.members, self.training, rng)
        walk = ENSEMBLES[self.ensemble]
        members = tuple(walk(self, part, taught, derive_seed(rng.seed, "walk", i)) for i, part in enumerate(modules))
        ensemble = Ensemble(members, "values" if scene.classes is None else "logits", taught.centre, taught.spread)
        facts |= {"answers": len(charged), "substitutes": len(members), "agreement": agreement(ensemble, taught)}
        return ensemble

    def _candidates(self, scene: EvasionScene, ensemble: Ensemble, rows: Tensor, rng: Rng) -> Tensor:
        """`[m, candidates, ...]`: those that the substitutes promise most of first."""
        recipes, goal = CRAFTS[self.craft], scene.oracle.goal
        made, promise = list[Tensor](), list[Tensor]()
        aims: list[tuple[Loss, ...]] = [goal.objectives(self.loss)]
        for number in range(self.candidates):
            attack = self._recipe(recipes[number % len(recipes)])
            for side, loss in enumerate(aims[number]):
                points = rehearsed(attack, scene, ensemble, loss, rows, rng.child("candidate", number, side))
                made.append(points)
                promise.append(trust(ensemble, goal, points, rows))
            if not number:
                towards = rivals(scene, ensemble, made[0], rows, self.candidates - 1)
                others = [name for name in LOSSES if name != self.loss] + [self.loss]
                aims += [(loss,) for loss in towards]
                aims += [goal.objectives(others[i % len(others)]) for i in range(self.candidates - len(aims))]
        order = torch.stack(promise, 1).argsort(dim=1, descending=True, stable=True)[:, : self.candidates]
        return torch.stack(made, 1)[torch.arange(len(rows), device=rows.device)[:, None], order]


def _as_trained(attack: Transfer, module: nn.Module, taught: Lessons, seed: int) -> tuple[nn.Module, ...]:
    return (module.requires_grad_(False),)


def _walked(attack: Transfer, module: nn.Module, taught: Lessons, seed: int) -> tuple[nn.Module, ...]:
    return wandered(module, taught, attack.collected, attack.rate, seed)


ENSEMBLES: Mapping[str, Callable[[Transfer, nn.Module, Lessons, int], tuple[nn.Module, ...]]] = {
    "trained": _as_trained,
    "lgv": _walked,
}
"""Name of the setting -> the networks that a trained substitute gives, which take turns."""
