"""Every model that the cascade is measured on, with its data and threat: `bench/models.py` trains two of them, this the rest.

python bench/zoo.py            trains what is missing and prints the accuracies
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass

import models
import numpy as np
import torch
from models import CACHE, accuracy, data_folder, pgd
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """One model under one threat."""

    model: Callable[[], nn.Module]
    test: Callable[[], Data]
    eps: float
    norm: str = "linf"
    low: float = 0.0
    high: float = 1.0


def fashion(part: str) -> Data:
    with np.load(data_folder() / "fashion_mnist" / "fashion_mnist.npz") as arrays:
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    return torch.from_numpy(x).unsqueeze(1).float() / 255, torch.from_numpy(y).long()


def cifar(part: str) -> Data:
    """3,000 lossless images to train on, 1,000 to test on."""
    with np.load(data_folder() / "cifar10" / "cifar10_train4000_lossless.npz") as arrays:
        x, y = arrays["x"], arrays["y"]
    cut = slice(0, 3000) if part == "train" else slice(3000, 4000)
    return torch.from_numpy(x[cut]).permute(0, 3, 1, 2).float().contiguous() / 255, torch.from_numpy(y[cut]).long()


def pair(part: str) -> Data:
    """MNIST's 3 and 8, as two classes."""
    x, y = models.mnist(part)
    keep = (y == 3) | (y == 8)
    return x[keep], (y[keep] == 8).long()


def adult(part: str) -> Data:
    """Adult's numbers and codes as 0 to 1: six numeric columns scaled to their 99th percentile, the rest one-hot."""
    rows = {name: _adult_rows(name) for name in ("data", "test")}
    numeric = (0, 2, 4, 10, 11, 12)
    kinds = [sorted({row[c] for row in rows["data"]}) for c in range(14)]
    top = np.percentile([[float(row[c]) for c in numeric] for row in rows["data"]], 99, axis=0).clip(1)
    chosen = rows["data" if part == "train" else "test"]
    numbers = np.array([[float(row[c]) for c in numeric] for row in chosen]) / top
    codes = [
        np.array([[row[c] == kind for kind in kinds[c]] for row in chosen], dtype=np.float32)
        for c in range(14)
        if c not in numeric
    ]
    x = np.concatenate([numbers.clip(0, 1), *codes], 1).astype(np.float32)
    return torch.from_numpy(x), torch.tensor([int(row[14].startswith(">")) for row in chosen])


def _adult_rows(name: str) -> list[list[str]]:
    with gzip.open(data_folder() / "adult" / f"adult.{name}.gz", "rt") as lines:
        rows = [[cell.strip() for cell in line.split(",")] for line in lines]
    return [row for row in rows if len(row) == 15]


def small_cifar() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 64, 128), nn.ReLU(),
        nn.Linear(128, 10),
    )  # fmt: skip


def small_binary() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 49, 2),
    )  # fmt: skip


def small_table() -> nn.Sequential:
    return nn.Sequential(nn.Linear(108, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def convex() -> nn.Sequential:
    """The published net that is robust by proof (see the data folder's index)."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 49, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    saved = torch.load(data_folder() / "models" / "convex_mnist.pth", weights_only=True, map_location="cpu")
    saved = saved.get("state_dict", saved)
    model.load_state_dict(saved[0] if isinstance(saved, list) else saved)
    return model.eval()


@dataclass(frozen=True)
class Training:
    make: Callable[[], nn.Module]
    data: Callable[[str], Data]
    eps: float
    epochs: int
    steps: int = 5
    batch: int = 128


TRAININGS = {
    "fashion": Training(models.small_cnn, fashion, 0.1, 2),
    "cifar": Training(small_cifar, cifar, 2 / 255, 15, steps=3),
    "pair": Training(small_binary, pair, 0.2, 3),
    "adult": Training(small_table, adult, 0.05, 3, steps=3),
}


def _trained(name: str) -> nn.Module:
    """PGD training (Madry et al. 2018), the radius growing over the first 40 % of the steps; kept in `.cache`."""
    plan, path = TRAININGS[name], CACHE / f"zoo_{name}.safetensors"
    if not path.exists():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = plan.make()
        x, y = plan.data("train")
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        total, done = plan.epochs * -(-len(x) // plan.batch), 0
        for _ in range(plan.epochs):
            for rows in torch.randperm(len(x)).split(plan.batch):
                eps = plan.eps * min(1.0, done / (0.4 * total))
                z = pgd(model, x[rows], y[rows], eps, plan.steps, 2.5 * eps / plan.steps)
                optimizer.zero_grad()
                F.cross_entropy(model(z), y[rows]).backward()
                optimizer.step()
                done += 1
        CACHE.mkdir(exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
        torch.set_num_threads(threads)
    model = plan.make()
    model.load_state_dict(load_file(path))
    return model.eval()


def _case(name: str) -> Case:
    plan = TRAININGS[name]
    return Case(lambda: _trained(name), lambda: plan.data("test"), plan.eps)


CASES = {
    "robust": Case(models.robust, lambda: models.mnist("test"), models.EPS),
    "natural": Case(models.natural, lambda: models.mnist("test"), models.EPS),
    "convex": Case(convex, lambda: models.mnist("test"), 0.1),
    **{name: _case(name) for name in TRAININGS},
}


if __name__ == "__main__":
    for name, case in CASES.items():
        model, (x, y) = case.model(), case.test()
        torch.manual_seed(0)
        z = pgd(model, x[:500], y[:500], case.eps, 20, 2.5 * case.eps / 20)
        print(f"{name}: clean {accuracy(model, x, y):.4f}, PGD-20 at {case.eps:.4g} {accuracy(model, z, y[:500]):.3f}")
