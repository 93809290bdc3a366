"""The cascade beside AutoAttack's standard: robust accuracy and time on the same models and samples.

    python bench/cascade.py [--case robust,fashion] [--images 100] [--seeds 5] [--tiers screen,standard]

AutoAttack's own package is not to be had from the registry, and torchattacks' class of that name makes 10 steps where
the paper makes 100: here the paper's standard is put together from torchattacks' parts (APGD-CE 100, targeted APGD and
targeted FAB 9 x 100, Square 5,000), each on the samples that those before it left. With two classes there are no targets:
APGD-CE, FAB, Square. One process, two threads, alternating order; every result is judged by `common.broken`; the rows
pushed through the model are counted by a hook. Writes results/cascade.json, a key a case.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import common
import torch
import zoo
from torch import Tensor, nn

from vauban.attacks.catalog import ATTACKS
from vauban.core.attack import EvasionScene
from vauban.core.registry import configure
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.domains.catalog import modality
from vauban.engine.oracle import MeteredOracle
from vauban.engine.proofs import LazyProver
from vauban.parts.goals import Misclassify
from vauban.targets.torch import TorchTarget

warnings.filterwarnings("ignore")
COLUMNS = ["contender", "seconds", "x_autoattack", "accuracy", "certified", "forwards", "only_them", "outside"]
BATCH = 250


class Square4D(nn.Module):
    """A vector model for a peer that knows pictures only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.flatten(1))


def parts(model: nn.Module, eps: float, classes: int, seed: int) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
    """AutoAttack standard, stage by stage."""
    import torchattacks as ta

    common_ = {"norm": "Linf", "eps": eps, "n_restarts": 1, "seed": seed}
    yield ta.APGD(model, steps=100, loss="ce", **common_)
    if classes > 2:
        yield ta.APGDT(model, steps=100, n_classes=classes, **common_)
    yield ta.FAB(model, steps=100, multi_targeted=classes > 2, n_classes=classes, **common_)
    yield ta.Square(model, n_queries=5000, **common_)


def autoattack(model: nn.Module, x: Tensor, y: Tensor, eps: float, classes: int, seed: int) -> Tensor:
    flat = x.dim() == 2
    seen = Square4D(model).eval() if flat else model
    z = x[:, None, None, :].clone() if flat else x.clone()
    with torch.no_grad():
        left = (seen(z).argmax(1) == y).nonzero().flatten()
    for attack in parts(seen, eps, classes, seed):
        for rows in left.split(BATCH):
            tried = attack(z[rows], y[rows]).detach()
            with torch.no_grad():
                hit = seen(tried).argmax(1) != y[rows]
            z[rows[hit]] = tried[hit]
        with torch.no_grad():
            left = left[seen(z[left]).argmax(1) == y[left]] if len(left) else left
    return z.reshape_as(x)


class Ours:
    """One tier; remembers what it proved."""

    def __init__(self, tier: str, case: zoo.Case, model: nn.Module, x: Tensor, y: Tensor, classes: int) -> None:
        kind = "image" if x.dim() == 4 else "tabular"
        domain = Domain(kind=kind, task="classification", classes=classes, low=case.low, high=case.high)
        self.target = TorchTarget(module=model, domain=domain)
        self.space = modality(kind).space(case.norm, domain)
        self.tier, self.case, self.x, self.y, self.classes = tier, case, x, y, classes
        self.certified: list[float] = []

    def __call__(self, seed: int) -> Tensor:
        goal, eps = Misclassify(self.y), self.case.eps
        prover = LazyProver(self.target, goal, self.space, eps, self.x)
        oracle = MeteredOracle(self.target, goal, self.space, self.x, eps, prover=prover)
        oracle.begin()
        attack = configure(ATTACKS.load("evasion.cascade"), {"tier": self.tier})
        attack(EvasionScene(oracle, self.x, self.space, eps, self.classes), Rng(seed, len(self.x)))
        self.certified.append(float(oracle.certified.double().mean()))
        return oracle.best.x


@contextmanager
def counted(model: nn.Module, into: list[float], rows: int) -> Iterator[None]:
    """Rows that the model sees, a sample, are added to `into`."""
    seen = 0

    def count(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal seen
        seen += len(args[0])

    hook = model.register_forward_pre_hook(count)
    try:
        yield
    finally:
        hook.remove()
        into.append(seen / rows)


def run(name: str, images: int, seeds: int, tiers: list[str]) -> list[dict[str, Any]]:
    case = zoo.CASES[name]
    model = case.model()
    x, y = case.test()
    x, y = x[:images], y[:images]
    with torch.no_grad():
        classes = int(model(x[:2]).shape[1])
    ours = {f"vauban {tier}": Ours(tier, case, model, x, y, classes) for tier in tiers}
    forwards: dict[str, list[float]] = {who: [] for who in ["autoattack", *ours]}

    def counting(who: str, attack: common.Contender) -> common.Contender:
        def run_counted(seed: int) -> Tensor | None:
            with counted(model, forwards[who], len(x)):
                return attack(seed)

        return run_counted

    contenders = {
        "autoattack": counting("autoattack", lambda seed: autoattack(model, x, y, case.eps, classes, seed)),
        **{who: counting(who, attack) for who, attack in ours.items()},
    }
    runs = common.race(contenders, seeds)
    hits = {
        who: [common.broken(model, x, y, z, case.norm, case.eps) for z in r.out if z is not None]
        for who, r in runs.items()
    }
    return [_row(who, runs, hits, forwards, ours) for who in contenders]


def _row(who: str, runs: Any, hits: Any, forwards: dict[str, list[float]], ours: dict[str, Ours]) -> dict[str, Any]:
    r, peer = runs[who], hits["autoattack"]
    row: dict[str, Any] = {"contender": who, "error": r.error, "seconds": common.median(r.wall), "wall": r.wall}
    if r.error or not r.out:
        return row
    accuracies = [round(1 - float(b.double().mean()), 4) for b, _ in hits[who]]
    row |= {
        "x_autoattack": common.ratio(r.wall, runs["autoattack"].wall),
        "accuracies": accuracies, "accuracy": common.median(accuracies),
        "forwards": common.median(forwards[who]),
        "outside": sum(int(o.sum()) for _, o in hits[who]),
    }  # fmt: skip
    if who in ours:
        row["certified"] = common.median(ours[who].certified)
        # seed by seed, for a worst case over seeds would compare five runs with five
        row["only_them"] = [int((a & ~b).sum()) for (a, _), (b, _) in zip(peer, hits[who], strict=False)]
        row["only_us"] = [int((b & ~a).sum()) for (a, _), (b, _) in zip(peer, hits[who], strict=False)]
    return row


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--case", default=",".join(zoo.CASES), help="cases, comma-separated")
    options.add_argument("--images", type=int, default=100)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--tiers", default="screen,standard")
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.case.split(","):
        rows = run(name, given.images, given.seeds, given.tiers.split(","))
        print(f"\n{name}, {given.images} samples, seeds 0-{given.seeds - 1}")
        print(common.table(rows, COLUMNS))
        for row in rows:
            if row["error"]:
                print(f"  {row['contender']}: {row['error']}")
        common.update("cascade", name, {"samples": given.images, "rows": rows})


if __name__ == "__main__":
    main()
