"""Nets trained for votes over noisy copies: what can be certified of them, and with how many samples.

    python bench/votes.py [--seeds 0,1,2] [--images 80] [--only noise,SmoothAdv]

MNIST, 8,000 training images, sigma 0.25. Both trainings begin with the same weights: noise alone, and noise at inputs that are moved
against the vote within an l2 distance of 0.5 (SmoothAdv). Every net is then certified at 0.25 and 0.5 (alpha 0.001) by CERTIFY of Cohen
et al. 2019 (arXiv:1902.02918, algorithm 1; bench/smoothing.py), which takes 10,100 samples an image, and by ours, one run a radius,
whose samples are added up. Adds the part `smoothing` to results/hardening.json.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import common
import hardening
import models
import smoothing
import torch
from torch import Tensor

from vauban.core.registry import configure
from vauban.core.rng import Rng
from vauban.defences.catalog import DEFENCES
from vauban.engine.context import HouseContext
from vauban.parts.projections import SPACES
from vauban.parts.smoothing import Smoothing
from vauban.targets.torch import TorchTarget

SIGMA, RADII, DRAWS = 0.25, (0.25, 0.5), 10_000
COURSE = {"sigma": SIGMA, "epochs": 10, "ramp": 0.2, "schedule": "cosine", "batch_size": 128}
CONTENDERS: dict[str, dict[str, Any]] = {"noise": COURSE, "SmoothAdv": {**COURSE, "copies": 2, "steps": 2}}


def trained(settings: dict[str, Any], seed: int) -> tuple[TorchTarget, Tensor, Tensor, float]:
    """A target, test images in an order that the seed gives, and the CPU seconds of its training."""
    data = hardening.mnist(seed)
    torch.manual_seed(seed)
    start = TorchTarget(models.small_cnn(), "net", hardening.TASKS["mnist"].domain, "logits")
    method = configure(DEFENCES.load("train.noise"), settings)
    began = time.process_time()
    made: Any = method(start, data, Rng(seed), HouseContext(0.5, SPACES["l2"](0.0, 1.0)))
    return made.target, data.x_test, data.y_test, time.process_time() - began


def part(name: str, seed: int, images: int) -> dict[str, Any]:
    target, x, y, seconds = trained(CONTENDERS[name], seed)
    x, y = x[:images], y[:images]
    torch.manual_seed(1000 + seed)
    whole = smoothing.reference(target.module.eval(), x, DRAWS, 400, SIGMA)
    found: dict[str, Any] = {"cpu_seconds": round(seconds, 1), "images": images}
    drawn = 0.0
    for radius in RADII:
        early = Smoothing(sigma=SIGMA, n=DRAWS, alpha=smoothing.ALPHA, radius=radius)(target, x, Rng(seed, images))
        found[f"reference_{radius}"] = float(whole.certified(y, radius).double().mean())
        found[f"vauban_{radius}"] = float(early.certified(y, radius).double().mean())
        drawn += float(early.draws.double().mean())
    return {**found, "samples_share": drawn / float(whole.draws.double().mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--only", default=",".join(CONTENDERS))
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for seed in map(int, asked.seeds.split(",")):
        for name in asked.only.split(","):
            kept = common.stored("hardening", "smoothing").get("parts", {}) | {
                f"{name} {seed}": part(name, seed, asked.images)
            }
            rows = hardening.summary(kept)
            common.update("hardening", "smoothing", {"rows": rows, "parts": kept})
            print(common.table(rows, list(rows[0])), flush=True)


if __name__ == "__main__":
    main()
