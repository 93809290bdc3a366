"""Integrated gradients beside Captum's: the same numbers, and the time.

    python bench/attributions.py [--quick] [--seeds 5] [--images 32] [--steps 50] [--threads 2]

One process, the same model object (MNIST, conv32-conv64-fc128, undefended), 50 Gauss-Legendre points from a black
picture, explained is the logit of the class answered; other images for every seed, contenders in alternating order.
`vauban` is the method on the module itself, in the order of memory that Captum uses; `vauban, as a target` goes through a
target, as `vauban explain` does, which picks the faster order. Captum runs as it comes (all points in one batch) and with
`internal_batch_size` 64 and 320. `x_captum` are ratios to Captum as it comes. Kernels that add in another order round
otherwise, and a ReLU or a maximum that stands on its edge then falls to the other side, in any of them: `against_float64`
tells by how much each misses the same sum in double precision, `against_captum` how far each is from Captum. Writes
results/attributions.json and prints a table.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import common
import models
import torch
from captum.attr import IntegratedGradients as Captum
from torch import Tensor, nn

from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.parts.attribution import IntegratedGradients, Means, Score
from vauban.parts.batching import micro_batch
from vauban.targets.torch import TorchTarget

COLUMNS = ["contender", "seconds", "x_captum", "x_captum_cpu", "against_captum", "against_float64", "error"]
MUST = {"difference": 1e-5, "ratio": 1.0}


class Case:
    """The images of each seed, the classes answered, and one way to ask for attributions each."""

    def __init__(self, model: nn.Module, images: int, steps: int) -> None:
        self.model, self.images, self.method = model, images, IntegratedGradients(steps=steps)
        self.target = TorchTarget(model, "natural", Domain(kind="image", task="classification", classes=10), "logits")
        self.x, _ = models.mnist("test")

    def rows(self, seed: int) -> tuple[Tensor, Tensor]:
        pick = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed))[: self.images]
        x = self.x[pick]
        with torch.no_grad():
            return x, self.model(x).argmax(1)

    def ours(self, seed: int, as_target: bool) -> Tensor:
        x, classes = self.rows(seed)

        def plain(z: Tensor, rows: Tensor) -> Tensor:
            return self.model(z).gather(1, classes[rows, None])[:, 0]

        def through(z: Tensor, rows: Tensor) -> Tensor:
            return self.target.forward(z).values.gather(1, classes[rows, None])[:, 0]

        return self.ask(through if as_target else plain, x)

    def ask(self, score: Score, x: Tensor) -> Tensor:
        batch = micro_batch(self.target, x.float())
        means = Means(baseline=torch.zeros_like(x[0]), rng=Rng(0, len(x)), batch=batch)
        return self.method(score, x, means)

    def captum(self, seed: int, batch: int | None) -> Tensor:
        x, classes = self.rows(seed)
        steps = self.method.steps
        found = Captum(self.model).attribute(x, target=classes, n_steps=steps, internal_batch_size=batch)
        return found.detach()

    def exact(self, seed: int) -> Tensor:
        """The same rule in double precision."""
        x, classes = self.rows(seed)
        double = copy.deepcopy(self.model).double()
        return self.ask(lambda z, rows: double(z).gather(1, classes[rows, None])[:, 0], x.double())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    if asked.quick:
        asked.seeds, asked.images = 1, 8
    torch.set_num_threads(asked.threads)
    case = Case(common.freeze_trace(models.natural()), asked.images, asked.steps)
    contenders = {
        "vauban": lambda seed: case.ours(seed, as_target=False),
        "vauban, as a target": lambda seed: case.ours(seed, as_target=True),
        "captum": lambda seed: case.captum(seed, None),
        "captum, batch 64": lambda seed: case.captum(seed, 64),
        "captum, batch 320": lambda seed: case.captum(seed, 320),
    }
    for warm in contenders.values():  # the first pass of each chooses its kernels
        warm(0)
    runs = common.race(contenders, asked.seeds)
    truth = [case.exact(seed) for seed in range(asked.seeds)]
    rows = [told(name, run, runs["captum"], truth) for name, run in runs.items()]
    setting = {"images": asked.images, "steps": asked.steps, "seeds": asked.seeds, "must": MUST}
    path = common.write("attributions_quick" if asked.quick else "attributions", {"setting": setting, "results": rows})
    print(common.table(rows, COLUMNS))
    print(f"wrote {path.relative_to(models.HERE.parent)}")


def told(name: str, run: common.Runs, captum: common.Runs, truth: list[Tensor]) -> dict[str, Any]:
    outs = [out for out in run.out if out is not None]
    peers = [out for out in captum.out if out is not None]
    return {
        "contender": name,
        "seconds": common.median(run.wall),
        "x_captum": common.ratio(run.wall, captum.wall),
        "x_captum_cpu": common.ratio(run.cpu, captum.cpu),
        "against_captum": f"{furthest(outs, peers):.1e}" if peers else None,
        "against_float64": f"{furthest(outs, truth):.1e}" if outs else None,
        "wall": run.wall,
        "error": run.error,
    }


def furthest(some: list[Tensor], others: list[Tensor]) -> float:
    """The largest difference of any entry."""
    return max((float((a.double() - b.double()).abs().max()) for a, b in zip(some, others, strict=False)), default=0.0)


if __name__ == "__main__":
    main()
