"""Detectors of adversarial inputs on the undefended MNIST model: attacks that do not know them, and one that does.

Every detector is fitted on clean training images alone; the `weighed` ones put their layers together by a regression on attacks,
and each attack is met by one that did not learn from it. AUC and true-positive rate are those of the images that were answered
rightly and that the attack fooled, against all clean ones.

    python bench/detectors.py                              linf 0.1, 0.2 and 0.3, seed 0
    python bench/detectors.py --threat linf:0.2 --only lid
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import common
import models
import torch

from vauban.core.data import Data
from vauban.core.target import Domain
from vauban.defences.catalog import DEFENCES
from vauban.engine.detection import FOES, Against, Examined, attacked, examine
from vauban.engine.detection_joint import Joint
from vauban.schema.log import Measurement
from vauban.targets.torch import TorchTarget

LEARNT_FROM = "evasion.fgsm,evasion.pgd,evasion.square"
CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, {}) for kind in DEFENCES.select(["detect"])},
    # black and white digits are squeezed to one bit, as in the paper
    "detect.squeezing": ("detect.squeezing", {"bits": 1}),
    **{
        f"{kind} weighed": (kind, {"attacks": LEARNT_FROM})
        for kind in ("detect.lid", "detect.mahalanobis", "detect.neighbours")
    },
}
TRAINING = 6000
NAMES = {foe.name: foe.name.removeprefix("evasion.") for foe in FOES}
COLUMNS = ["detector", "clean", "noisy", *NAMES.values(), "joint", "passed", "seconds"]


def told(number: Measurement | None) -> dict[str, Any] | None:
    return None if number is None else {"value": number.value, "low": number.low, "high": number.high, "n": number.n}


def met(one: Against) -> dict[str, Any]:
    rates = {"auc": told(one.auc), "tpr_at_fpr_5pct": told(one.caught), "refused": told(one.refused)}
    return {"fitted_on": one.fitted_on, "fooled": one.fooled, **rates}


def row(found: Examined, seconds: float) -> dict[str, Any]:
    return {
        "false_alarms": told(found.clean),
        "false_alarms_noise": told(found.noisy),
        "against": {one.attack: met(one) for one in found.against},
        "joint": met(found.joint) if found.joint else None,
        "passed": told(found.passed),
        "seconds": seconds,
    }


def short(name: str, kept: dict[str, Any]) -> dict[str, Any]:
    """A line of the table: areas under the curve."""
    return {
        "detector": name,
        "clean": kept["false_alarms"]["value"],
        "noisy": kept["false_alarms_noise"]["value"],
        **{NAMES[attack]: one["auc"]["value"] for attack, one in kept["against"].items()},
        "joint": kept["joint"]["auc"]["value"],
        "passed": kept["passed"]["value"],
        "seconds": kept["seconds"],
    }


def task(seed: int, images: int) -> tuple[TorchTarget, Data]:
    """The model, with training images and test images that differ from seed to seed."""
    (x_train, y_train), (x, y) = models.mnist("train"), models.mnist("test")
    g = torch.Generator().manual_seed(seed)
    known = torch.randperm(len(x_train), generator=g)[:TRAINING]
    asked = torch.randperm(len(x), generator=g)[:images].sort().values
    domain = Domain(kind="image", task="classification", classes=10, low=0.0, high=1.0)
    target = TorchTarget(models.natural(), "natural", domain, "logits")
    return target, Data(x_train[known], y_train[known], x[asked], y[asked], ids=asked.numpy())


def run(threat: str, seed: int, asked: argparse.Namespace) -> list[dict[str, Any]]:
    target, data = task(seed, asked.images)
    examples = attacked(target, data, threat=threat, seed=seed)
    joint = Joint(steps=asked.steps, restarts=asked.restarts)
    key, lines = f"{threat}, seed {seed}", []
    for name, (kind, settings) in CONTENDERS.items():
        if asked.only not in name:
            continue
        started = time.process_time()
        kept = row(examine(kind, target, data, examples, settings=settings, joint=joint), 0.0)
        kept["seconds"] = round(time.process_time() - started, 1)
        kept["how"] = {"images": asked.images, "steps": asked.steps, "restarts": asked.restarts, "settings": settings}
        common.update("detectors", key, order(common.stored("detectors", key) | {name: kept}))
        lines.append(short(name, kept))
        print(common.table([lines[-1]], COLUMNS).splitlines()[-1], flush=True)
    return lines


def order(found: dict[str, Any]) -> dict[str, Any]:
    """By name, so that parts may be run in any order."""
    return dict(sorted(found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threat", default="linf:0.1,linf:0.2,linf:0.3")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--steps", type=int, default=100, help="of the attacker who knows the detector")
    parser.add_argument("--restarts", type=int, default=2)
    parser.add_argument("--only", default="", help="detectors whose name contains this")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for seed in map(int, asked.seeds.split(",")):
        for threat in asked.threat.split(","):
            lines = run(threat, seed, asked)
            print(f"\n{threat}, seed {seed}: areas under the curve\n{common.table(lines, COLUMNS)}\n", flush=True)


if __name__ == "__main__":
    main()
