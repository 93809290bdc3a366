"""When something blocks the attack, go through it: the same model, made attackable, in front of the real one.

The stand-in is used for gradients and search only; every success is verified on the real target.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vauban.core.target import Adaptive, Domain, Outputs, Recipe, Target
from vauban.schema.access import Access
from vauban.schema.log import Doubt


@dataclass(frozen=True)
class Averaged:
    """A random model answered by the mean of `draws` answers (EOT: Athalye et al., ICML 2018, section 4)."""

    inner: Target
    draws: int = 8
    recipe: Recipe | None = None
    id: str = field(init=False, default="")
    domain: Domain = field(init=False)
    offers: Access = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", f"{self.inner.id}+eot{self.draws}")
        object.__setattr__(self, "domain", self.inner.domain)
        object.__setattr__(self, "offers", self.inner.offers & ~Access.FEATURES)

    def forward(self, x: Tensor) -> Outputs:
        answers = [self.inner.forward(x) for _ in range(self.draws)]
        if answers[0].kind == "labels":
            return answers[0]
        return Outputs(torch.stack([a.values for a in answers]).mean(0), answers[0].kind)

    def sha256(self) -> str:
        return self.inner.sha256()

    def settled(self, domain: Domain) -> Target:
        return Averaged(self.inner.settled(domain), self.draws)


def stand_in(target: Target, doubts: list[Doubt]) -> tuple[Target, list[str]]:
    """The target to take gradients through, and in words what was done; the target itself where nothing is needed."""
    done: list[str] = []
    attacked = target
    if isinstance(target, Adaptive):
        attacked = target.softened()
        done.append("gradients were taken through the defence by its straight-through stand-in (BPDA)")
    if any(d.id == "randomness" and d.verdict == "fail" for d in doubts):
        attacked = Averaged(attacked)
        done.append("gradients were averaged over 8 answers of the random model (EOT)")
    return attacked, done
