"""Does generated data help? Trainings at equal steps, with intervals for every difference.

    python bench/generated.py [--case mnist|adult] [--seed 0] [--rows N] [--epochs N] [--rounds N] [--threads 1] [--quick]

One process a case and seed. All contenders start from the same fresh weights and make the same number of steps on batches of the
same size: plain training, mixup, cutout (pictures), generated data, PGD training, and PGD training with generated data. MNIST: 2,000 training
rows, linf 0.2; Adult: 2,000 rows, linf 0.05. The same 500 test rows are answered by all, clean and under APGD (50 steps,
`vauban.attack`). A difference is paired over these rows (Newcombe 1998, 95 %); it is claimed where the interval leaves out zero, on the same side, in
every seed that was run; low and high are the widest of the seeds. The generator is learnt once a seed: its time is in that of `generated`
alone. Seeds gather in results/generated.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import common
import models
import torch
import zoo
from torch import Tensor, nn

import vauban
from vauban.audits.compare import paired
from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.defences.common import row_losses
from vauban.defences.train.course import AdversarialTraining
from vauban.defences.train.cutout import Cutout
from vauban.defences.train.generated import GeneratedData
from vauban.defences.train.inner import Inner
from vauban.defences.train.mixup import Mixup
from vauban.defences.train.pgd import PGDTraining
from vauban.parts.projections import Linf
from vauban.parts.training import Batch
from vauban.targets.torch import TorchTarget

TESTED, STEPS = 500, 50
PAIRS = (
    ("plain", "mixup"), ("plain", "cutout"), ("plain", "generated"), ("plain", "pgd"), ("pgd", "pgd+generated")
)  # fmt: skip


class Plain(AdversarialTraining):
    """The clean loss alone."""

    card = PGDTraining.card

    def loss(self, inner: Inner, batch: Batch) -> Tensor:
        return row_losses(inner.answer(batch.x), batch.y).mean()


def picture_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 49, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    data: Callable[[str], tuple[Tensor, Tensor]]
    kind: str
    classes: int
    radius: float
    rows: int = 2000
    epochs: int = 30
    rounds: int = 400
    generated: float = 0.3


CASES = {
    "mnist": Case(picture_net, models.mnist, "image", 10, 0.2),
    "adult": Case(zoo.small_table, zoo.adult, "tabular", 2, 0.05),
}


class Kept:
    """What a generator has learnt, and nothing else: the second training that needs the same one takes it from here."""

    def __init__(self) -> None:
        self.held: tuple[dict[str, Tensor], dict[str, Any]] | None = None

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        mine = {k: v.clone() for k, v in tensors.items() if k.startswith("generator:")}
        self.held = mine, {k: v for k, v in facts.items() if k == "generator"}

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return self.held


@dataclass
class Context:
    radius: float
    store: Any
    space: Any = field(default_factory=lambda: Linf(0.0, 1.0))

    def attack(self, id: str, **settings: Any) -> Any:
        raise AssertionError("no training here asks for an attack")

    def progress(self, done: int, total: int, text: str = "") -> None: ...


def contenders(case: Case) -> dict[str, AdversarialTraining]:
    how = {"epochs": case.epochs, "from_scratch": True}
    data = {"generated": case.generated, "rounds": case.rounds}
    every: dict[str, AdversarialTraining] = {
        "plain": Plain(**how),
        "mixup": Mixup(**how),
        "cutout": Cutout(**how),
        "generated": GeneratedData(adversarial=False, **how, **data),
        "pgd": PGDTraining(**how),
        "pgd+generated": GeneratedData(**how, **data),
    }
    return {name: way for name, way in every.items() if not way.card.modalities or case.kind in way.card.modalities}


def run(case: Case, seed: int) -> dict[str, Any]:
    """Every contender's figures, and the differences."""
    (x, y), (x_test, y_test) = case.data("train"), case.data("test")
    pick = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: case.rows]
    judged = torch.randperm(len(x_test), generator=torch.Generator().manual_seed(0))[:TESTED]
    data = Data(x[pick], y[pick], x_test[judged], y_test[judged], id="bench", kind=case.kind)
    torch.manual_seed(seed)
    domain = Domain(kind=case.kind, task="classification", classes=case.classes, low=0.0, high=1.0)
    given: Any = TorchTarget(case.make(), "given", domain, "logits")
    rows, right, kept = {}, {}, Kept()
    for name, way in contenders(case).items():
        started = time.process_time()
        made = way(given, data, Rng(seed), Context(case.radius, kept if isinstance(way, GeneratedData) else None))
        spent = time.process_time() - started
        if name == "plain":  # what labels are asked of: a model that was trained on the same rows
            given = made.target
        right[name] = answered(made.target, data, case.radius, seed)
        facts = {k: v for k, v in made.facts.items() if isinstance(v, int | float | bool)}
        rows[name] = {
            "clean": rate(right[name][0]),
            "robust": rate(right[name][1]),
            "cpu_seconds": spent,
            "facts": facts,
        }
        print(f"{name:14} clean {rows[name]['clean']:.3f} robust {rows[name]['robust']:.3f} {spent:.0f} s", flush=True)
    return {"contenders": rows, "differences": differences(right)}


def answered(target: Any, data: Data, radius: float, seed: int) -> tuple[list[bool], list[bool]]:
    """For each test row, whether it is answered right, clean and under attack."""
    with torch.no_grad():
        clean = (target.forward(data.x_test).labels == data.y_test).tolist()
    result = vauban.attack(
        "evasion.apgd", target, data.x_test, data.y_test, threat=f"linf:{radius}", seed=seed, steps=STEPS
    )
    return clean, [status != "broken" for status in result.status]


def rate(right: list[bool]) -> float:
    return sum(right) / len(right)


def differences(right: dict[str, tuple[list[bool], list[bool]]]) -> list[dict[str, Any]]:
    found = []
    for before, after in PAIRS:
        for side, what in enumerate(("clean", "robust")):
            if before in right and after in right:
                low, high = paired(right[before][side], right[after][side])
                apart = rate(right[after][side]) - rate(right[before][side])
                found.append({"of": f"{after} - {before}", "what": what, "difference": apart, "low": low, "high": high})
    return found


def claims(seeds: dict[str, Any]) -> list[dict[str, Any]]:
    """Each difference over all seeds, and whether every interval leaves out zero on the same side."""
    rows = []
    for group in zip(*(found["differences"] for found in seeds.values()), strict=True):
        low, high = min(d["low"] for d in group), max(d["high"] for d in group)
        mean = sum(d["difference"] for d in group) / len(group)
        better = all(d["low"] > 0 for d in group)
        worse = all(d["high"] < 0 for d in group)
        claim = "better" if better else "worse" if worse else "none"
        rows.append({**group[0], "difference": mean, "low": low, "high": high, "seeds": len(group), "claim": claim})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, default="mnist")
    parser.add_argument("--seed", type=int, default=0)
    for name in ("rows", "epochs", "rounds"):
        parser.add_argument(f"--{name}", type=int, default=None)
    parser.add_argument("--quick", action="store_true", help="a short look, which goes into generated_quick.json")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    small = {"rows": 600, "epochs": 6, "rounds": 100} if asked.quick else {}
    small |= {k: v for k in ("rows", "epochs", "rounds") if (v := getattr(asked, k)) is not None}
    base = CASES[asked.case]
    case = Case(**{**vars(base), **small})
    name = "generated_quick" if asked.quick else "generated"
    setting = {k: getattr(case, k) for k in ("radius", "rows", "epochs", "rounds", "generated")}
    setting |= {"tested": TESTED, "attack": f"evasion.apgd, {STEPS} steps"}
    held = common.stored(name, asked.case)
    seeds = dict(held.get("seeds", {})) if held.get("setting") == setting else {}
    seeds[str(asked.seed)] = run(case, asked.seed)
    told = claims(seeds)
    path = common.update(name, asked.case, {"setting": setting, "seeds": seeds, "rows": told})
    print(common.table(told, ["of", "what", "difference", "low", "high", "seeds", "claim"]))
    print(f"wrote {path.relative_to(models.HERE.parent)}")


if __name__ == "__main__":
    main()
