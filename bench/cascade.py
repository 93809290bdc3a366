"""The cascade beside AutoAttack's standard: robust accuracy and time on the same models and samples.

    python bench/cascade.py [--case robust,fashion] [--seeds 0,1,2,3,4] [--images 40] [--tiers screen,standard]

AutoAttack's own package is not to be had from the registry, and torchattacks' class of that name makes 10 steps where
the paper makes 100: here the paper's standard is put together from torchattacks' parts (APGD-CE 100, targeted APGD and
targeted FAB 9 x 100, Square 5,000), each on the samples that those before it left. With two classes there are no targets:
APGD-CE, FAB, Square. Every seed has its own samples. One process, two threads, the order turned round with every seed;
every result is judged by `common.broken`; the rows pushed through the model are counted by a hook. Results gather in
results/cascade.json, a part a case and seed, so that parts can be run one by one: the dearest takes some minutes.
"""

from __future__ import annotations

import argparse
import statistics
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
COLUMNS = [
    "contender",
    "seconds",
    "x_autoattack",
    "accuracy",
    "certified",
    "forwards",
    "only_autoattack",
    "only_us",
    "outside",
]
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
        self.certified = 0.0

    def __call__(self, seed: int) -> Tensor:
        goal, eps = Misclassify(self.y), self.case.eps
        prover = LazyProver(self.target, goal, self.space, eps, self.x)
        oracle = MeteredOracle(self.target, goal, self.space, self.x, eps, prover=prover)
        oracle.begin()
        attack = configure(ATTACKS.load("evasion.cascade"), {"tier": self.tier})
        attack(EvasionScene(oracle, self.x, self.space, eps, self.classes), Rng(seed, len(self.x)))
        self.certified = float(oracle.certified.double().mean())
        return oracle.best.x


@contextmanager
def counted(model: nn.Module, into: dict[str, float], who: str, rows: int) -> Iterator[None]:
    """Rows that the model sees, a sample, are noted in `into`."""
    seen = 0

    def count(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal seen
        seen += len(args[0])

    hook = model.register_forward_pre_hook(count)
    try:
        yield
    finally:
        hook.remove()
        into[who] = seen / rows


def part(name: str, seed: int, images: int, tiers: list[str]) -> dict[str, dict[str, Any]]:
    """Everybody once, on the samples of this seed: what is kept of each contender."""
    case = zoo.CASES[name]
    model = case.model()
    x, y = (rows[seed * images : (seed + 1) * images] for rows in case.test())
    with torch.no_grad():
        classes = int(model(x[:2]).shape[1])
    ours = {f"vauban {tier}": Ours(tier, case, model, x, y, classes) for tier in tiers}
    contenders = {"autoattack": lambda seed: autoattack(model, x, y, case.eps, classes, seed), **ours}
    # what is imported or set up at first use is nobody's time
    warm = Ours("screen", case, model, x[:2], y[:2], classes)
    warm(0)
    LazyProver(warm.target, Misclassify(y[:2]), warm.space, case.eps, x[:2])(x[:2], y[:2], "crown", None)
    autoattack(model, x[:1], y[:1], 1e-4, classes, 0)
    forwards: dict[str, float] = {}
    kept: dict[str, dict[str, Any]] = {}
    for who in common.turns(contenders, seed):
        with counted(model, forwards, who, len(x)):
            # one at a time: the race counts its seeds from zero
            done = common.race({who: lambda _, who=who: contenders[who](seed)}, 1)[who]
        kept[who] = {"error": done.error}
        if not done.error:
            hit, outside = common.broken(model, x, y, done.out[0], case.norm, case.eps)
            kept[who] |= {
                "seconds": round(done.wall[0], 3), "cpu": round(done.cpu[0], 3), "forwards": round(forwards[who], 1),
                "broken": "".join("b" if b else "h" for b in hit.tolist()), "outside": int(outside.sum()),
            }  # fmt: skip
        if who in ours:
            kept[who]["certified"] = ours[who].certified
    return kept


def summary(parts: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a contender over the seeds that were run: medians of ratios, sums of samples."""
    seeds = sorted(parts)
    rows = []
    for who in sorted({who for seed in seeds for who in parts[seed]}):
        runs = [parts[seed][who] for seed in seeds if "broken" in parts[seed].get(who, {})]
        peers = [parts[seed]["autoattack"] for seed in seeds if "broken" in parts[seed].get(who, {})]
        errors = [parts[seed][who]["error"] for seed in seeds if parts[seed].get(who, {}).get("error")]
        row: dict[str, Any] = {"contender": who, "error": "; ".join(errors), "seeds": len(runs)}
        if runs:
            mine, theirs = ("".join(r["broken"] for r in rs) for rs in (runs, peers))
            row |= {
                "samples": len(mine),
                "seconds": round(statistics.median(r["seconds"] for r in runs), 2),
                "x_autoattack": round(statistics.median(r["seconds"] / p["seconds"] for r, p in zip(runs, peers, strict=True)), 4),
                "x_autoattack_total": round(sum(r["seconds"] for r in runs) / sum(p["seconds"] for p in peers), 4),
                "accuracy": round(mine.count("h") / len(mine), 4),
                "certified": round(statistics.mean(r["certified"] for r in runs), 4) if "certified" in runs[0] else None,
                "forwards": round(statistics.mean(r["forwards"] for r in runs), 1),
                "only_autoattack": sum(a == "h" and b == "b" for a, b in zip(mine, theirs, strict=True)),
                "only_us": sum(a == "b" and b == "h" for a, b in zip(mine, theirs, strict=True)),
                "outside": sum(r["outside"] for r in runs),
            }  # fmt: skip
        rows.append(row)
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--case", default=",".join(zoo.CASES), help="cases, comma-separated")
    options.add_argument("--images", type=int, default=40, help="samples a seed")
    options.add_argument("--seeds", default="0,1,2,3,4")
    options.add_argument("--tiers", default="screen,standard")
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.case.split(","):
        for seed in given.seeds.split(","):
            parts_run = common.stored("cascade", name).get("parts", {}) | {
                seed: part(name, int(seed), given.images, given.tiers.split(","))
            }
            rows = summary(parts_run)
            common.update("cascade", name, {"images_a_seed": given.images, "rows": rows, "parts": parts_run})
            print(f"\n{name}, {given.images} samples a seed, seeds {', '.join(sorted(parts_run))}", flush=True)
            print(common.table(rows, COLUMNS), flush=True)


if __name__ == "__main__":
    main()
