"""Certificates by randomised smoothing: ours beside the published algorithm, written out plainly, and ART's.

    python bench/smoothing.py [--quick] [--seeds 3] [--images 4] [--decisions 40] [--draws 10000] [--threads 2]

One process, the same model object (MNIST, conv32-conv64-fc128, trained with Gaussian noise of sigma 0.5) and images,
contenders in alternating order, sigma 0.5, alpha 0.001, 100 draws to choose the class. `reference` is CERTIFY of Cohen et
al. 2019 (arXiv:1902.02918, algorithm 1): a loop over batches of repeated inputs, float32, no gradients, counts in numpy,
the Clopper-Pearson bound; at the published script's batch of 1,000, and at 400, which its examples use. `until r
is decided` stops once it is known whether radius r is certified. Afterwards `--decisions` images are certified both ways
from the same noise, and decisions and radii compared. Writes results/smoothing.json and prints a table.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
import types
from typing import Any

import common
import models
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import beta, norm
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.parts.smoothing import Certificates, Smoothing, certified_radius, lower_bound
from vauban.targets.torch import TorchTarget

SIGMA, ALPHA, SELECT, RADII = 0.5, 0.001, 100, (0.5, 1.0)
COLUMNS = ["contender", "seconds_a_row", "x_reference", "x_reference_cpu", "draws_a_row", "median_radius", "error"]


def noisy_model() -> nn.Module:
    """Trained on inputs with noise of sigma, as in the paper's section 4: two epochs, one thread, kept in the cache."""
    path = models.CACHE / f"mnist_noise_{SIGMA}.safetensors"
    if not path.exists():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = models.small_cnn().to(memory_format=torch.channels_last)
        x, y = models.mnist("train")
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(2):
            for rows in torch.randperm(len(x)).split(128):
                loss = F.cross_entropy(model(x[rows] + SIGMA * torch.randn_like(x[rows])), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        torch.set_num_threads(threads)
        models.CACHE.mkdir(exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    model = models.small_cnn()
    model.load_state_dict(load_file(path))
    return model.eval()


@torch.no_grad()
def reference(model: nn.Module, x: Tensor, draws: int, batch: int, sigma: float = SIGMA) -> Certificates:
    """CERTIFY, one image after the other."""

    def counts(row: Tensor, n: int) -> np.ndarray:
        found = np.zeros(10, dtype=int)
        while n > 0:
            size = min(batch, n)
            n -= size
            many = row.repeat((size, 1, 1, 1))
            answers = model(many + torch.randn_like(many) * sigma).argmax(1).numpy()
            for answer in answers:
                found[answer] += 1
        return found

    labels, radii = [], []
    for row in x:
        top = counts(row, SELECT).argmax()
        hits = counts(row, draws)[top]
        rate = beta.ppf(ALPHA, hits, draws - hits + 1)
        labels.append(int(top) if rate > 0.5 else -1)
        radii.append(sigma * norm.ppf(rate) if rate > 0.5 else 0.0)
    drawn = torch.full((len(x),), draws + SELECT)
    return Certificates(torch.tensor(labels), torch.tensor(radii, dtype=torch.float64), drawn)


def lend_statsmodels() -> None:
    """ART wants statsmodels for one function, the Clopper-Pearson interval; where it is missing, scipy gives it."""
    name = "statsmodels.stats.proportion"
    if name in sys.modules or importlib.util.find_spec("statsmodels") is not None:
        return
    for part in ("statsmodels", "statsmodels.stats", name):
        sys.modules[part] = types.ModuleType(part)

    def interval(count: float, nobs: float, alpha: float, method: str) -> tuple[float, float]:
        return beta.ppf(alpha / 2, count, nobs - count + 1), beta.ppf(1 - alpha / 2, count + 1, nobs - count)

    sys.modules[name].proportion_confint = interval  # type: ignore[attr-defined]


def art(model: nn.Module, x: Tensor, draws: int) -> Tensor:
    """ART's certify at its default batch of 32."""
    lend_statsmodels()
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

    smoothed = PyTorchRandomizedSmoothing(
        model=model, loss=nn.CrossEntropyLoss(), input_shape=(1, 28, 28), nb_classes=10, device_type="cpu",
        sample_size=SELECT, scale=SIGMA, alpha=ALPHA,
    )  # fmt: skip
    return torch.from_numpy(smoothed.certify(x.numpy(), n=draws)[1].astype(np.float64))


class Ours:
    def __init__(self, target: TorchTarget, x: Tensor, draws: int, radius: float | None) -> None:
        self.target, self.x, self.how = target, x, Smoothing(sigma=SIGMA, n=draws, alpha=ALPHA, radius=radius)
        self.drawn = 0.0

    def certify(self, seed: int) -> Certificates:
        return self.how(self.target, self.x, Rng(seed, len(self.x)))

    def __call__(self, seed: int) -> Tensor:
        found = self.certify(seed)
        self.drawn = float(found.draws.double().mean())
        return found.radius


def speed(target: TorchTarget, x: Tensor, draws: int, seeds: int) -> list[dict[str, Any]]:
    model = target.module
    ours = {"vauban": Ours(target, x, draws, None)}
    ours |= {f"vauban, until {radius:g} is decided": Ours(target, x, draws, radius) for radius in RADII}
    contenders = {
        "reference, batch 1000": lambda seed: reference(model, x, draws, 1000).radius,
        "reference, batch 400": lambda seed: reference(model, x, draws, 400).radius,
        **ours,
        "art": lambda seed: art(model, x, draws),
    }
    runs = common.race(contenders, seeds)
    against = runs["reference, batch 1000"]
    rows = []
    for name, run in runs.items():
        radii = torch.stack([torch.as_tensor(out) for out in run.out]) if run.out else torch.zeros(0)
        rows.append(
            {
                "contender": name,
                "seconds_a_row": common.median([w / len(x) for w in run.wall]),
                "x_reference": common.ratio(run.wall, against.wall),
                "x_reference_cpu": common.ratio(run.cpu, against.cpu),
                "x_reference_400": common.ratio(run.wall, runs["reference, batch 400"].wall),
                "draws_a_row": ours[name].drawn if name in ours else float(draws + SELECT),
                "certified": {str(r): float((radii >= r).double().mean()) for r in RADII} if run.out else None,
                "median_radius": float(radii.median()) if run.out else None,
                "wall": run.wall,
                "error": run.error,
            }
        )
    return rows


def decisions(target: TorchTarget, x: Tensor, y: Tensor, draws: int) -> list[dict[str, Any]]:
    """The same noise, all draws and sequentially: is it decided alike, and is any radius too large?"""
    started = time.process_time()
    whole = Ours(target, x, draws, None).certify(7)
    long = time.process_time() - started
    rows = []
    for radius in RADII:
        started = time.process_time()
        early = Ours(target, x, draws, radius).certify(7)
        short = time.process_time() - started
        used = early.draws - SELECT
        most = certified_radius(lower_bound(used, used, ALPHA), SIGMA)
        rows.append(
            {
                "radius": radius,
                "images": len(x),
                "same_decision": int(((whole.radius >= radius) == (early.radius >= radius)).sum()),
                "certified_all_draws": int(whole.certified(y, radius).sum()),
                "certified_sequential": int(early.certified(y, radius).sum()),
                "radii_above_any_clopper_pearson": int((early.radius.numpy() > most).sum()),
                "draws_share": float(early.draws.double().mean() / whole.draws.double().mean()),
                "cpu_share": short / long,
                "all_draws_needed": int((early.draws == whole.draws).sum()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--decisions", type=int, default=40)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    if asked.quick:
        asked.seeds, asked.images, asked.decisions = 1, 2, 10
    torch.set_num_threads(asked.threads)
    model = noisy_model()
    x, y = models.mnist("test")
    target = TorchTarget(model, "noise", Domain(kind="image", task="classification", classes=10), "logits")
    # every n-th image of the test file, so that both its easy and its hard half are there
    timed = torch.linspace(0, len(x) - 1, asked.images).long()
    rows = speed(target, x[timed], asked.draws, asked.seeds)
    judged = torch.linspace(50, len(x) - 50, asked.decisions).long()
    told = decisions(target, x[judged], y[judged], asked.draws)
    setting = {"sigma": SIGMA, "alpha": ALPHA, "draws": asked.draws, "select": SELECT, "radii": RADII}
    setting |= {"images": asked.images, "seeds": asked.seeds, "accuracy": models.accuracy(model, x, y)}
    path = common.write("smoothing", {"setting": setting, "results": rows, "decisions": told})
    print(common.table(rows, COLUMNS))
    print(common.table(told, list(told[0])))
    print(f"wrote {path.relative_to(models.HERE.parent)}")


if __name__ == "__main__":
    main()
