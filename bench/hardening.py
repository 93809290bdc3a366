"""Trainings against attacks, at equal time: what an epoch costs, and how robust a model is after so many minutes.

    python bench/hardening.py [--part epoch,mnist,fashion,cifar,certified] [--seeds 0,1,2] [--minutes 10] [--only NAME]

`epoch`: one epoch of PGD-7 training on 4,000 MNIST images, beside the bare passes that it needs (seven to the input, one to the
weights, an Adam step) and other trainers, in one process, the order turned round with every seed.

`mnist`, `fashion`, `cifar`: every contender begins with the same weights and the same rows, and trains for as many CPU minutes of this
process as are given. `loop` is the plain one that a careful user writes: PGD-7, Adam, a radius that grows over the first 30 % of the time.
Ours are given the number of epochs that fit, which one pilot epoch tells; what they took in the end is in the table. Clean
accuracy is of all test images; under attack 500 of them are judged by the cascade, at tier `standard` on MNIST and `screen` on the others.

`certified`: training for proofs on all 60,000 MNIST images at linf 0.1, judged by proofs on 2,000 test images (`effort`: linear bounds
with tuned slopes).

Results gather in results/hardening.json, a part a contender and seed, so that they can be made one by one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import common
import models
import ours
import torch
import trainers
import zoo
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.data import Data
from vauban.core.registry import configure
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.defences.catalog import DEFENCES
from vauban.engine.context import HouseContext
from vauban.parts.bounds import prove, trace
from vauban.parts.projections import SPACES
from vauban.targets.torch import TorchTarget

STEPS, BATCH = 7, 128
COLUMNS = ["contender", "seeds", "cpu_seconds", "epochs", "clean", "robust", "certified"]


@dataclass(frozen=True)
class Task:
    """Rows to train on and to be judged on, a fresh model, a threat."""

    load: Callable[[int], Data]
    model: Callable[[], nn.Module]
    radius: float
    contenders: Mapping[str, Callable[[Task, Data, nn.Module, float, int], dict[str, Any]]]
    judged: int = 500
    tier: str = "standard"
    domain: Domain = field(default_factory=lambda: ours.DOMAIN)


def some(x: Tensor, y: Tensor, tx: Tensor, ty: Tensor, rows: int, seed: int) -> Data:
    """Some training rows, and all test rows in an order that the seed gives."""
    g = torch.Generator().manual_seed(100 + seed)
    pick = torch.randperm(len(x), generator=g)[:rows]
    left = torch.randperm(len(tx), generator=g)
    return Data(x[pick], y[pick], tx[left], ty[left])


def mnist(seed: int) -> Data:
    return some(*models.mnist("train"), *models.mnist("test"), 8000, seed)


def loop(task: Task, data: Data, module: nn.Module, seconds: float, seed: int) -> dict[str, Any]:
    """The plain loop."""
    started, epochs, share = time.process_time(), 0, 0.0
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    torch.manual_seed(seed)
    while share < 1:
        for rows in torch.randperm(len(data.x_train)).split(BATCH):
            share = (time.process_time() - started) / seconds
            if share >= 1:
                break
            x, y, radius = data.x_train[rows], data.y_train[rows], task.radius * min(1.0, share / 0.3)
            loss = F.cross_entropy(module(models.pgd(module, x, y, radius, STEPS, 2.5 * radius / STEPS)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        epochs += share < 1
    return {"epochs": epochs}


@dataclass(frozen=True)
class Trained:
    """One of our trainings, as long as there is time."""

    defence: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, task: Task, data: Data, module: nn.Module, seconds: float, seed: int) -> dict[str, Any]:
        started = time.process_time()
        few = Data(data.x_train[:BATCH], data.y_train[:BATCH], data.x_test[:BATCH], data.y_test[:BATCH])
        self._run(task, few, module, 1, seed)  # warms up
        warm = time.process_time()
        self._run(task, data, module, 1, seed)
        now = time.process_time()
        # one epoch alone is all ramp or all plateau: a little is left for that
        epochs = max(2, int(0.95 * (seconds - (now - started)) / (now - warm)))
        trained = self._run(task, data, module, epochs, seed)
        module.load_state_dict(trained.state_dict())
        return {"epochs": epochs}

    def _run(self, task: Task, data: Data, module: nn.Module, epochs: int, seed: int) -> nn.Module:
        method = configure(DEFENCES.load(self.defence), {"batch_size": BATCH, **self.settings, "epochs": epochs})
        target = TorchTarget(module, "m", task.domain, "logits")
        made: Any = method(target, data, Rng(seed), HouseContext(task.radius, SPACES["linf"](0.0, 1.0)))
        return made.target.module


STRONG: Mapping[str, Any] = {"average": 0.999, "schedule": "cycle"}
QUICK: Mapping[str, Any] = {**STRONG, "recall": True, "steps": 2, "search": "bf16"}
MNIST = {
    "loop": loop,
    # half the usual weight of the divergence, for the sake of accuracy without attack
    "train.trades": Trained("train.trades", {**QUICK, "beta": 3.0}),
}
OURS = {
    "train.trades": Trained("train.trades", QUICK),
    "train.awp": Trained("train.awp", QUICK),
    "train.fast": Trained("train.fast", {**STRONG, "validation": 0.0}),
}
ORDER = {"loop": loop, **OURS}
# 3,000 pictures are soon learnt by heart
MOVED: Mapping[str, Any] = {"crop": 2, "flip": True, "average": 0.99}
CIFAR = {
    "loop": loop,
    "train.pgd": Trained("train.pgd", {**QUICK, **MOVED}),
    **{name: replace(how, settings={**how.settings, **MOVED}) for name, how in OURS.items()},
}


def fashion(seed: int) -> Data:
    return some(*zoo.fashion("train"), *zoo.fashion("test"), 8000, seed)


def cifar(seed: int) -> Data:
    return some(*zoo.cifar("train"), *zoo.cifar("test"), 3000, seed)


TASKS = {
    "mnist": Task(mnist, models.small_cnn, 0.3, MNIST),
    "fashion": Task(fashion, models.small_cnn, 0.1, ORDER, tier="screen"),
    "cifar": Task(cifar, zoo.small_cifar, 8 / 255, CIFAR, tier="screen"),
}


def accuracies(task: Task, module: nn.Module, data: Data) -> dict[str, float]:
    """Of clean inputs (all of `data`), and of what the cascade leaves of the first of them."""
    x, y = data.x_test[: task.judged], data.y_test[: task.judged]
    made = ours.through_oracle("evasion.cascade", module.eval(), x, y, "linf", task.radius, 0, tier=task.tier)
    bad, outside = common.broken(module, x, y, made.x, "linf", task.radius)
    assert not bool(outside.any())
    with torch.no_grad():
        right = torch.cat([module(a) for a in data.x_test.split(500)]).argmax(1) == data.y_test
    return {"clean": float(right.double().mean()), "robust": float((right[: task.judged] & ~bad).double().mean())}


def part(name: str, contender: str, seed: int, minutes: float) -> dict[str, Any]:
    task = TASKS[name]
    data = task.load(seed)
    torch.manual_seed(seed)
    module = task.model()
    started = time.process_time()
    told = task.contenders[contender](task, data, module, 60 * minutes, seed)
    spent = time.process_time() - started
    return {"cpu_seconds": round(spent, 1), **told, **accuracies(task, module, data), "minutes": minutes}


def epoch(seeds: int, rows: int) -> list[dict[str, Any]]:
    """One epoch each, in turns."""
    x, y = (part[:rows] for part in models.mnist("train"))
    data, task = Data(x, y, x[:16], y[:16]), TASKS["mnist"]

    def bare(seed: int) -> None:
        torch.manual_seed(seed)
        module = models.small_cnn()
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
        for part in torch.randperm(len(x)).split(BATCH):
            a, b = x[part], y[part]
            for _ in range(STEPS):
                a = a.detach().requires_grad_(True)
                torch.autograd.grad(F.cross_entropy(module(a), b, reduction="sum"), a)
            loss = F.cross_entropy(module(a.detach()), b)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def mine(seed: int, search: str = "float32") -> None:
        torch.manual_seed(seed)
        Trained("train.pgd", {"steps": STEPS, "ramp": 0.0, "search": search})._run(
            task, data, models.small_cnn(), 1, seed
        )

    def written(seed: int) -> None:
        torch.manual_seed(seed)
        module = models.small_cnn()
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
        for part in torch.randperm(len(x)).split(BATCH):
            z = models.pgd(module, x[part], y[part], task.radius, STEPS, 2.5 * task.radius / STEPS)
            optimizer.zero_grad()
            F.cross_entropy(module(z), y[part]).backward()
            optimizer.step()

    peers = {
        name: lambda seed, make=make: make(x, y, task.radius, STEPS, BATCH, seed)
        for name, make in trainers.PEERS.items()
    }
    ours = {"vauban": mine, "vauban, search in bf16": lambda seed: mine(seed, "bf16")}
    runs = common.race({"bare passes": bare, **ours, "plain loop": written, **peers}, seeds)
    floor = runs["bare passes"].wall
    return [
        {
            "contender": name, "seconds": common.median(run.wall), "x_floor": common.ratio(run.wall, floor),
            "vauban_over_it": common.ratio(runs["vauban"].wall, run.wall),
            "bf16_over_it": common.ratio(runs["vauban, search in bf16"].wall, run.wall), "wall": run.wall, "error": run.error,
        }
        for name, run in runs.items()
    ]  # fmt: skip


CERTIFIED = {
    "train.ibp": {"epochs": 20, "rate": 1e-3, "batch_size": 128, "ramp": 0.5, "wider": 1.1, "schedule": "cosine"},
    "train.crown_ibp": {"epochs": 20, "rate": 1e-3, "batch_size": 128, "ramp": 0.3, "wider": 1.1, "schedule": "cosine"},
}


def strided() -> nn.Sequential:
    """Two convolutions without padding or pooling, whose intervals stay narrow; 2 million operations an image."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 4), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 10 * 10, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def certified(contender: str, seed: int, rows: int) -> dict[str, Any]:
    x, y = models.mnist("train")
    tx, ty = (part[:2000] for part in models.mnist("test"))
    torch.manual_seed(seed)
    module, radius = strided(), 0.1
    method = configure(DEFENCES.load(contender), {**CERTIFIED[contender], "from_scratch": False})
    target = TorchTarget(module, "m", ours.DOMAIN, "logits")
    started = time.process_time()
    made: Any = method(
        target, Data(x[:rows], y[:rows], tx, ty), Rng(seed), HouseContext(radius, SPACES["linf"](0.0, 1.0))
    )
    spent, net = time.process_time() - started, made.target.module.eval()
    proof = prove(trace(net, tx[:8]), tx, ty, "linf", radius, 0.0, 1.0, effort="alpha", most_open=2000, most_short=0.25)
    task = Task(mnist, strided, radius, {})
    shares = accuracies(task, net, Data(None, None, tx, ty))
    return {
        "cpu_seconds": round(spent, 1), "epochs": CERTIFIED[contender]["epochs"], **shares,
        "certified": float(proof.certified.double().mean()), "certified_error": 1 - float(proof.certified.double().mean()),
        "by_intervals": float((proof.stage == 0).double().mean()), "rows": rows, "images": len(tx),
    }  # fmt: skip


def summary(parts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a contender: means over seeds."""
    names = dict.fromkeys(key.rpartition(" ")[0] for key in parts)
    rows = []
    for name in names:
        found = [value for key, value in parts.items() if key.rpartition(" ")[0] == name]
        means = {
            k: round(sum(r[k] for r in found) / len(found), 4) for k in found[0] if isinstance(found[0][k], int | float)
        }
        rows.append({"contender": name, "seeds": len(found), **means})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", default="epoch,mnist,fashion,cifar,certified")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    for name in asked.part.split(","):
        if name == "epoch":
            rows = epoch(len(seeds), 4000)
            common.update("hardening", "epoch", rows)
            print(
                common.table(rows, ["contender", "seconds", "x_floor", "vauban_over_it", "bf16_over_it", "error"]),
                flush=True,
            )
            continue
        contenders = CERTIFIED if name == "certified" else TASKS[name].contenders
        for seed in seeds:
            for contender in asked.only.split(",") if asked.only else common.turns(contenders, seed):
                made = (
                    certified(contender, seed, asked.rows)
                    if name == "certified"
                    else part(name, contender, seed, asked.minutes)
                )
                kept = common.stored("hardening", name).get("parts", {}) | {f"{contender} {seed}": made}
                common.update("hardening", name, {"rows": summary(kept), "parts": kept})
                print(name, contender, seed, made, flush=True)
        print(common.table(common.stored("hardening", name)["rows"], COLUMNS), flush=True)


if __name__ == "__main__":
    main()
