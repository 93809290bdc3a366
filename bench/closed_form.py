"""How near every evasion attack comes to the known optimum of linear models: the ratios that docs/attacks.md shows.

    python bench/closed_form.py [--only evasion.pgd,evasion.apgd]

Models: logits = x w', w drawn from a normal, 2 and 10 classes, 16 features, 8 inputs each, without a box. The nearest
success is the smallest gap of logits over the dual norm of the difference of weights. In L0 the box is 0 to 1, and the fewest
features are those that gain most at their walls until the gap is made good; ratios are of whole numbers. An attack that looks for the nearest
success is measured by its distance over that optimum; an attack within a radius by the smallest factor of a grid at which
it succeeds. Every attack has its own settings and budget. Writes results/closed_form.json.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import common
import torch
from torch import Tensor, nn

from vauban.attacks.catalog import ATTACKS
from vauban.core.attack import EvasionScene
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.engine.oracle import MeteredOracle
from vauban.parts.goals import Misclassify
from vauban.parts.projections import SPACES
from vauban.schema.access import Access
from vauban.schema.errors import BadThreat
from vauban.targets.torch import TorchTarget

DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}
FACTORS = (1.0005, 1.001, 1.002, 1.005, 1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 3.0)
FEATURES, ROWS, SEEDS = 16, 8, 3


def model(classes: int, seed: int, norm: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model and inputs at distance 1 of their nearest other class."""
    g = torch.Generator().manual_seed(seed)
    layer = nn.Linear(FEATURES, classes, bias=False)
    layer.weight.data = torch.randn(classes, FEATURES, generator=g)
    x = torch.randn(ROWS, FEATURES, generator=g)
    with torch.no_grad():
        z = layer(x)
    y = z.argmax(1)
    size = torch.linalg.vector_norm(layer.weight.data[None] - layer.weight.data[y][:, None], ord=DUAL[norm], dim=2)
    distance = torch.where(size > 0, (z.gather(1, y[:, None]) - z) / size, torch.inf).amin(1, keepdim=True)
    return layer, x / distance, y


def fewest(layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Features, within a box from 0 to 1, that must change to bring another class to the top, `[n]`."""
    with torch.no_grad():
        z = layer(x)
    w = layer.weight.data
    apart = w[None] - w[y][:, None]
    room = torch.where(apart > 0, 1 - x[:, None], x[:, None])
    gains = (apart.abs() * room).sort(2, descending=True).values.cumsum(2)
    counts = (gains <= (z.gather(1, y[:, None]) - z)[:, :, None]).sum(2) + 1
    return counts.scatter(1, y[:, None], FEATURES + 1).amin(1)


def sparse_ratios(id: str, classes: int, seed: int) -> list[float]:
    """In L0: of the features changed, or of the first number of features at which the attack succeeds."""
    layer, _, _ = model(classes, seed, "l2")
    x = torch.rand(ROWS, FEATURES, generator=torch.Generator().manual_seed(100 + seed))
    with torch.no_grad():
        y = layer(x).argmax(1)
    best = fewest(layer, x, y)
    possible = best <= FEATURES
    x, y, best = x[possible], y[possible], best[possible]
    try:
        return (attacked(id, layer, x, y, "l0", float("inf")).best.distance / best).tolist()
    except BadThreat:
        pass
    found = torch.full((len(x),), torch.inf)
    for count in range(1, FEATURES + 1):
        left = ((found == torch.inf) & (best <= count)).nonzero().flatten()
        if len(left):
            reached = attacked(id, layer, x[left], y[left], "l0", float(count)).best.reached
            found[left[reached]] = (count / best[left[reached]]).float()
    return found.tolist()


def attacked(id: str, layer: nn.Module, x: Tensor, y: Tensor, norm: str, radius: float) -> MeteredOracle:
    classes = layer.weight.shape[0]
    target = TorchTarget(module=layer, domain=Domain(kind="tabular", task="classification", classes=classes))
    space = SPACES[norm](0.0, 1.0) if norm == "l0" else SPACES[norm]()
    oracle = MeteredOracle(target, Misclassify(y), space, x, radius, nearest=radius == float("inf"))
    oracle.begin()
    ATTACKS.load(id)()(EvasionScene(oracle, x, space, radius, classes), Rng(0, len(x)))
    return oracle


def ratios(id: str, classes: int, seed: int, norm: str) -> list[float]:
    if norm == "l0":
        return sparse_ratios(id, classes, seed)
    layer, x, y = model(classes, seed, norm)
    try:
        return [float(d) for d in attacked(id, layer, x, y, norm, float("inf")).best.distance]
    except BadThreat:
        pass
    found = torch.full((len(x),), torch.inf)
    for factor in FACTORS:
        left = (found == torch.inf).nonzero().flatten()
        if len(left):
            reached = attacked(id, layer, x[left], y[left], norm, factor).best.reached
            found[left[reached]] = factor
    return found.tolist()


def measure(id: str) -> list[dict[str, Any]]:
    card = ATTACKS.load(id).card
    rows = []
    for norm in (n for n in card.spaces if n in (*DUAL, "l0")):
        for classes in (c for c in (2, 10) if c >= card.min_classes):
            all_ = [r for seed in range(SEEDS) for r in ratios(id, classes, seed, norm)]
            middle, worst = statistics.median(all_), max(all_)
            rows.append({"norm": norm, "classes": classes, "median": _finite(middle), "worst": _finite(worst)})
            print(id, common.table(rows[-1:], list(rows[-1])).splitlines()[-1], flush=True)
    return rows


def _finite(ratio: float) -> float | None:
    """None where an input was not broken at any factor of the grid."""
    return round(ratio, 4) if ratio < float("inf") else None


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", help="ids, comma-separated")
    given = options.parse_args()
    torch.set_num_threads(1)
    ids = given.only.split(",") if given.only else [i for i in ATTACKS.ids() if i.startswith("evasion.")]
    for name in ids:
        card = ATTACKS.load(name).card
        plain = not card.joint and not card.modalities and Access.FEATURES not in card.needs
        if "classification" in card.tasks and plain:
            common.update("closed_form", name, measure(name))


if __name__ == "__main__":
    main()
