"""Proofs beside attacks, on a published provably robust net (Wong and Kolter 2018): how much is certified, how much
broken, what is left between, and what it takes.

    python bench/proofs.py [--images 10000] [--threads 2] [--no-clipped]

Certificates and PGD-100 take turns on quarters of the test images (A B B A), in one process; then splitting has what
is left of the time of PGD-100 for the rows that are neither proved nor broken (at least ten seconds a quarter). Every attack's result is looked at afresh: distance in float64, answer
by the model itself. Writes results/proofs.json.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import common
import models
import ours
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.attack import EvasionScene
from vauban.core.registry import configure
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.domains.catalog import modality
from vauban.engine.oracle import MeteredOracle
from vauban.parts.bounds import EFFORTS, Graph, Proof, prove, trace
from vauban.parts.goals import Misclassify
from vauban.targets.torch import TorchTarget

EPS = 0.1
STEPS = 100
PUBLISHED = {"clean_error": 0.018, "pgd_error": 0.041, "certified_error": 0.058}
"""README of locuslab/convex_adversarial, eps 0.1, inputs not clipped."""


def published() -> nn.Sequential:
    """conv16-conv32-fc100 with the published weights."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    file = models.data_folder() / "models" / "convex_mnist.pth"
    state = torch.load(file, weights_only=True, map_location="cpu")
    state = state.get("state_dict", state)
    model.load_state_dict(state[0] if isinstance(state, list) else state)
    return model.eval().requires_grad_(False)


def pgd(model: nn.Module, x: Tensor, y: Tensor, box: tuple[float, float]) -> Tensor:
    """PGD as everybody runs it, all steps for all rows: cross-entropy, random start, a step of a tenth of the radius."""
    done = []
    for a, b in zip(x.split(250), y.split(250), strict=True):
        z = (a + torch.empty_like(a).uniform_(-EPS, EPS)).clamp(*box)
        for _ in range(STEPS):
            z.requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(model(z), b, reduction="sum"), z)
            z = (z.detach() + EPS / 10 * slope.sign()).clamp(a - EPS, a + EPS).clamp(*box)
        done.append(z)
    return torch.cat(done)


@torch.no_grad()
def broken(model: nn.Module, x: Tensor, y: Tensor, z: Tensor, box: tuple[float, float]) -> Tensor:
    """Which rows are really broken: changed by no more than EPS, measured in float64, but for float32's rounding."""
    near = (z.double() - x.double()).flatten(1).abs().amax(1) <= EPS + common.SLACK
    valid = ((z >= box[0]) & (z <= box[1])).flatten(1).all(1)
    return near & valid & (torch.cat([model(part.float()).argmax(1) for part in z.split(250)]) != y)


def apgd(model: nn.Module, x: Tensor, y: Tensor, box: tuple[float, float], restarts: int) -> Tensor:
    """Our Auto-PGD with each of its losses."""
    low, high = (None if abs(side) == float("inf") else side for side in box)
    domain = Domain(kind="image", task="classification", classes=10, low=low, high=high)
    space, target = modality("image").space("linf", domain), TorchTarget(module=model, domain=domain)
    best = x.clone()
    for loss in ("ce", "margin", "dlr"):
        oracle = MeteredOracle(target, Misclassify(y), space, x, EPS, nearest=False)
        oracle.begin()
        attack = configure(ours.ATTACKS.load("evasion.apgd"), {"steps": STEPS, "loss": loss, "restarts": restarts})
        attack(EvasionScene(oracle, x, space, EPS, 10), Rng(0, len(x)))
        hit = broken(model, x, y, oracle.best.x, box)
        best[hit] = oracle.best.x[hit]
    return best


def timed(call: Any) -> tuple[Any, float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    out = call()
    return out, time.perf_counter() - wall, time.process_time() - cpu


def proved(graph: Graph, x: Tensor, y: Tensor, box: tuple[float, float]) -> Proof:
    return prove(graph, x, y, "linf", EPS, *box, effort="alpha")


def splitted(graph: Graph, x: Tensor, y: Tensor, box: tuple[float, float], known: Proof, seconds: float) -> Proof:
    """`known` with what splitting adds in so many seconds."""
    left = (~known.certified & ~known.broken).nonzero().flatten()
    end = time.monotonic() + seconds
    more = prove(graph, x[left], y[left], "linf", EPS, *box, effort="branch", deadline=end)
    for name in ("certified", "bound", "broken", "counter", "stage"):
        getattr(known, name)[left] = getattr(more, name)
    return replace(known, seconds={name: known.seconds[name] + more.seconds[name] for name in EFFORTS})


def turns(model: nn.Module, graph: Graph, x: Tensor, y: Tensor, box: tuple[float, float]) -> dict[str, Any]:
    """Proofs and PGD-100 in turns on quarters of the rows."""
    proofs: list[Proof] = []
    attacked: list[Tensor] = []
    seconds = dict.fromkeys(("proof", "proof_cpu", "splitting", "splitting_cpu", "pgd", "pgd_cpu"), 0.0)
    pace: float | None = None
    quarters = torch.arange(len(x)).split(-(-len(x) // 4))
    for turn, rows in enumerate(quarters):
        for what in ("pgd", "proof") if turn in (0, 3) else ("proof", "pgd"):
            if what == "pgd":
                z, wall, cpu = timed(lambda rows=rows: pgd(model, x[rows], y[rows], box))
                attacked.append(z)
                pace = wall / len(rows) if pace is None else pace
            else:
                (proof, wall, cpu), spare = timed(lambda rows=rows: proved(graph, x[rows], y[rows], box)), pace or 0
                room = max(spare * len(rows) - wall, 10.0)
                split, more, more_cpu = timed(
                    lambda rows=rows, room=room, proof=proof: splitted(graph, x[rows], y[rows], box, proof, room)
                )
                proofs.append(split)
                seconds["splitting"] += more
                seconds["splitting_cpu"] += more_cpu
            seconds[what] += wall
            seconds[f"{what}_cpu"] += cpu
    stages = {name: sum(p.seconds[name] for p in proofs) for name in EFFORTS}
    certified = torch.cat([p.certified for p in proofs])
    stage = torch.cat([p.stage for p in proofs])
    hits = {
        "pgd": broken(model, x, y, torch.cat(attacked), box),
        "counterexamples": broken(model, x, y, torch.cat([p.counter for p in proofs]).float(), box),
    }
    left = (~certified & ~(hits["pgd"] | hits["counterexamples"])).nonzero().flatten()
    # whoever is neither proved nor broken gets more: a few hundred rows at most
    hits["apgd"] = torch.zeros(len(x), dtype=torch.bool)
    if len(left):
        hits["apgd"][left] = broken(model, x[left], y[left], apgd(model, x[left], y[left], box, 3), box)
    return report(x, certified, stage, hits, seconds, stages)


def report(
    x: Tensor,
    certified: Tensor,
    stage: Tensor,
    hits: dict[str, Tensor],
    seconds: dict[str, float],
    stages: dict[str, float],
) -> dict[str, Any]:
    n = len(x)
    wrong = torch.stack(list(hits.values())).any(0)
    certified_error, attack_error = 1 - float(certified.double().mean()), float(wrong.double().mean())
    return {
        "images": n,
        "certified_error": round(certified_error, 5),
        "attack_error": round(attack_error, 5),
        "gap": round(certified_error - attack_error, 5),
        "broken_although_certified": int((wrong & certified).sum()),
        "error_by": {name: round(float(hit.double().mean()), 5) for name, hit in hits.items()},
        "certified_by_stage": {name: int((stage == i).sum()) for i, name in enumerate(EFFORTS)},
        "certified_error_without_splitting": round(1 - float((certified & (stage < 4)).sum()) / n, 5),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "seconds_by_stage": {name: round(value, 2) for name, value in stages.items()},
        "proof_over_pgd": round(seconds["proof"] / seconds["pgd"], 3),
        "proof_over_pgd_cpu": round(seconds["proof_cpu"] / seconds["pgd_cpu"], 3),
        "with_splitting_over_pgd_cpu": round((seconds["proof_cpu"] + seconds["splitting_cpu"]) / seconds["pgd_cpu"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-clipped", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    model = published()
    x, y = (part[: chosen.images] for part in models.mnist("test"))
    graph = trace(model, x[:3])
    boxes = {"unclipped": (-float("inf"), float("inf")), "clipped to [0, 1]": (0.0, 1.0)}
    results: dict[str, Any] = {
        "model": "convex_mnist, linf 0.1",
        "published": PUBLISHED,
        "clean_error": round(1 - models.accuracy(model, x, y), 5),
    }
    for name, box in list(boxes.items())[: 1 if chosen.no_clipped else 2]:
        results[name] = turns(model, graph, x, y, box)
        common.write("proofs", {"results": results})
        print(name, results[name])


if __name__ == "__main__":
    main()
