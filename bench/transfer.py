"""Examples carried over from substitutes: one substitute or several, our ways of making them and the peers'.

    python bench/transfer.py [--only "mnist, linf 0.2;mnist, linf 0.1"] [--seeds 5] [--images 200] [--threads 2]

The target is an undefended CNN; it answers 5,000 training images with labels alone, and substitutes of other architectures
learn from these. Every contender then makes one example an image on substitutes, and the target's answer decides. `one`: the
substitute that is most like the target in what it answers, for us and for the peers, whose examples are made on that very
module; `best of the others`: our PGD on whichever other single substitute does best, which an attacker could not know. `all`:
the mean of the substitutes' logits. `evasion.transfer` is the attack as a whole on the same substitutes, which are those that
it would train itself, and asks about one or four candidates an image, where all other rows ask about one. Results are
judged anew (norm in float64, box, fresh forward). Numbers are medians over seeds
of the share of images broken, in percent; each seed trains its own substitutes and takes other images. Writes
results/transfer.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import common
import models
import ours
import peers
import torch
import zoo
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.attacks.evasion.rehearsal import RECIPES, rehearsed
from vauban.attacks.evasion.substitutes import Ensemble, Lessons, agreement, lessons, trained, wandered
from vauban.attacks.evasion.transfer import Transfer
from vauban.core.attack import EvasionScene
from vauban.core.rng import Rng
from vauban.domains.catalog import modality
from vauban.engine.oracle import MeteredOracle
from vauban.parts.goals import Misclassify
from vauban.schema.access import Access
from vauban.targets.torch import TorchTarget

warnings.filterwarnings("ignore")
ANSWERS = 5000
COLUMNS = ["contender", "substitutes", "broken", "lowest", "highest", "seconds", "error"]


def undefended_fashion() -> nn.Module:
    """The net of `models.natural`, on Fashion-MNIST."""
    path, model = models.CACHE / "transfer_fashion.safetensors", models.small_cnn()
    if not path.exists():
        torch.manual_seed(0)
        model = models.small_cnn()
        x, y = zoo.fashion("train")
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(2):
            for rows in torch.randperm(len(x)).split(128):
                loss = F.cross_entropy(model(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        models.CACHE.mkdir(exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    model.load_state_dict(load_file(path))
    return model.eval()


@dataclass(frozen=True)
class Case:
    model: Callable[[], nn.Module]
    data: Callable[[str], tuple[Tensor, Tensor]]
    eps: float


CASES = {
    "mnist, linf 0.2": Case(models.natural, models.mnist, 0.2),
    "mnist, linf 0.1": Case(models.natural, models.mnist, 0.1),
    "fashion, linf 0.1": Case(undefended_fashion, zoo.fashion, 0.1),
}


@dataclass(frozen=True)
class Ground:
    """What one seed works on."""

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    scene: EvasionScene
    oracle: MeteredOracle
    rng: Rng
    taught: Lessons
    single: list[nn.Module]
    walks: list[tuple[nn.Module, ...]]
    seconds: dict[str, float]


def scene_of(model: nn.Module, x: Tensor, y: Tensor, eps: float, donors: Tensor) -> tuple[EvasionScene, MeteredOracle]:
    target, space = TorchTarget(module=model, domain=ours.DOMAIN), modality("image").space("linf", ours.DOMAIN)
    oracle = MeteredOracle(target, Misclassify(y), space, x, eps, access=Access.LABELS | Access.DATA_READ)
    oracle.begin()
    return EvasionScene(oracle, x, space, eps, 10, donors), oracle


def prepared(case: Case, images: int, seed: int) -> Ground:
    model = common.freeze_trace(case.model())
    donors, (x, y) = case.data("train")[0], case.data("test")
    part = slice(2 * images * seed, 2 * images * (seed + 1))
    x, y = x[part], y[part]
    with torch.no_grad():
        fine = torch.cat([model(a).argmax(1) for a in x.split(250)]) == y
    x, y = x[fine][:images], y[fine][:images]
    scene, oracle = scene_of(model, x, y, case.eps, donors)
    rng, plain = Rng(seed, len(x)), Transfer()
    taught = lessons(scene, torch.arange(ANSWERS) % len(x), rng)
    started = time.perf_counter()
    single = trained(scene, taught, plain.members, plain.training, rng)
    between = time.perf_counter()
    single.sort(key=lambda part: -(agreement(together([(part,)]), taught) or 0.0))
    walks = [wandered(part, taught, plain.collected, plain.rate, seed) for part in single]
    seconds = {"trained": between - started, "walks": time.perf_counter() - between}
    single = [part.requires_grad_(False) for part in single]
    return Ground(model, x, y, case.eps, scene, oracle, rng, taught, single, walks, seconds)


def together(members: list[tuple[nn.Module, ...]]) -> Ensemble:
    return Ensemble(tuple(members), "logits")


OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "PGD": ("pgd", {}),
    "MI": ("mi", {}),
    "MI-DI-TI": ("mi", {"diversity": 0.5, "kernel": 3}),
    "NI-SI-DI-TI": ("ni_si", {"copies": 3, "diversity": 0.5, "kernel": 3}),
    "VMI": ("vmi", {"neighbours": 5}),
    "NI-SI-VMI-DI": ("together", {"copies": 3, "neighbours": 5, "diversity": 0.5}),
}
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "PGD": ("PGD", {"steps": 20}),
    "MI": ("MIFGSM", {"steps": 10}),
    "DI": ("DIFGSM", {"steps": 10, "decay": 1.0}),
    "TI": ("TIFGSM", {"steps": 10, "decay": 1.0, "len_kernel": 3}),
    "NI-SI": ("SINIFGSM", {"steps": 10, "m": 3}),
    "VMI": ("VMIFGSM", {"steps": 10}),
}


def made(ground: Ground, way: str, ensemble: Ensemble) -> Tensor:
    name, how = OURS[way]
    attack = RECIPES[name](**{"steps": 10, "loss": "ce", "decay": 1.0, **how})
    (loss,) = ground.oracle.goal.objectives("ce")
    return rehearsed(attack, ground.scene, ensemble, loss, torch.arange(len(ground.x)), ground.rng.child(way))


def theirs(ground: Ground, way: str) -> Tensor:
    import torchattacks

    name, how = PEERS[way]
    steps = how["steps"]
    # as ours: twice the radius in all for PGD, once for the others
    alpha = ground.eps * (2 if name == "PGD" else 1) / steps
    attack = getattr(torchattacks, name)(ground.single[0], eps=ground.eps, alpha=alpha, **how)
    return peers.in_batches(attack, ground.x, ground.y)


def carried(ground: Ground, **how: Any) -> Tensor:
    """The attack as a whole, success and all."""
    donors = ground.scene.donors
    assert donors is not None
    scene, oracle = scene_of(ground.model, ground.x, ground.y, ground.eps, donors)
    Transfer(queries=ANSWERS // len(ground.x) + 5, answers=ANSWERS, **how)(scene, ground.rng)
    return oracle.best.x


def contenders(ground: Ground) -> dict[tuple[str, str], Callable[[], Tensor]]:
    one, every = together([(ground.single[0],)]), together([(part,) for part in ground.single])
    lgv_one, lgv = together(ground.walks[:1]), together(ground.walks)
    rows: dict[tuple[str, str], Callable[[], Tensor]] = {}
    for way in OURS:
        rows[f"vauban {way}", "one"] = lambda way=way: made(ground, way, one)
    for way in PEERS:
        rows[f"torchattacks {way}", "one"] = lambda way=way: theirs(ground, way)
    rows["vauban PGD", "best of the others"] = lambda: max(
        (made(ground, "PGD", together([(part,)])) for part in ground.single[1:]), key=lambda z: broken(ground, z)
    )
    for way in OURS:
        rows[f"vauban {way}", "all"] = lambda way=way: made(ground, way, every)
    rows["vauban PGD", "LGV of one"] = lambda: made(ground, "PGD", lgv_one)
    rows["vauban PGD", "LGV of all"] = lambda: made(ground, "PGD", lgv)
    for candidates in (1, 4):
        rows[f"evasion.transfer, {candidates} asked", "all"] = lambda candidates=candidates: carried(
            ground, substitutes=ground.single, candidates=candidates
        )
    return rows


def broken(ground: Ground, z: Tensor) -> float:
    hit, _ = common.broken(ground.model, ground.x, ground.y, z, "linf", ground.eps)
    return round(100 * float(hit.double().mean()), 2)


def run(part: str, given: Any) -> list[dict[str, Any]]:
    """The rows of a part; what there is stands in the results after every seed."""
    case, rows = CASES[part], list[dict[str, Any]]()
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for seed in range(given.seeds):
        ground = prepared(case, given.images, seed)
        for key, attack in contenders(ground).items():
            row = found.setdefault(key, {"by_seed": [], "times": [], "error": ""})
            torch.manual_seed(seed)
            started = time.perf_counter()
            try:
                z = attack()
            except Exception as error:  # a peer that fails here is a row of the table, not the end of it
                row["error"] = f"{type(error).__name__}: {error}"[:200]
                continue
            row["times"].append(round(time.perf_counter() - started, 2))
            row["by_seed"].append(broken(ground, z))
        print({name: round(value, 1) for name, value in ground.seconds.items()}, flush=True)
        rows = [told(name, on, row) for (name, on), row in found.items()]
        common.update("transfer", part, {"images": given.images, "eps": case.eps, "seeds": seed + 1, "rows": rows})
    return rows


def told(name: str, on: str, row: dict[str, Any]) -> dict[str, Any]:
    shares = row["by_seed"]
    return {
        "contender": name, "substitutes": on, "broken": statistics.median(shares) if shares else None,
        "lowest": min(shares, default=None), "highest": max(shares, default=None),
        "seconds": common.median(row["times"]), "by_seed": shares, "error": row["error"],
    }  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default=";".join(CASES), help="parts, separated by semicolons")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--images", type=int, default=200)
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    for part in given.only.split(";"):
        started = time.perf_counter()
        rows = run(part, given)
        print(f"\n{part}, {given.images} images, {given.seeds} seeds  ({time.perf_counter() - started:.0f} s)")
        print(common.table(rows, COLUMNS))


if __name__ == "__main__":
    main()
