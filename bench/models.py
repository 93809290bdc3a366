"""The two MNIST models that everything here is measured on: an undefended one and an adversarially trained one.

conv32-conv64-fc128, 421,642 parameters, inputs [n, 1, 28, 28] in [0, 1]. Trained when first asked for, from the data
folder (VAUBAN_DATA), always in one thread and with the same seed, and kept in `bench/.cache`.

    python bench/models.py            trains what is missing and prints the accuracies
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache"
EPS = 0.3


def data_folder() -> Path:
    return Path(os.environ.get("VAUBAN_DATA") or HERE.parent.parent / "shared" / "data")


def mnist(part: str) -> tuple[Tensor, Tensor]:
    """`train` (60,000) or `test` (10,000): x float32 [n, 1, 28, 28] in [0, 1], y int64 [n]."""
    with np.load(data_folder() / "mnist" / "mnist.npz") as arrays:
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    return torch.from_numpy(x).unsqueeze(1).float() / 255, torch.from_numpy(y).long()


def small_cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(250), y.split(250), strict=True))
    return right / len(x)


def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, step: float) -> Tensor:
    """Plain PGD (Madry et al. 2018, section 2.1) with a random start: for training, and as the obvious truth."""
    z = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(steps):
        z.requires_grad_(True)
        (g,) = torch.autograd.grad(F.cross_entropy(model(z), y, reduction="sum"), z)
        z = torch.minimum(torch.maximum(z.detach() + step * g.sign(), x - eps), x + eps).clamp(0, 1)
    return z


def _train(robust: bool, epochs: int, batch: int) -> nn.Module:
    torch.manual_seed(0)
    model = small_cnn().to(memory_format=torch.channels_last)
    x, y = mnist("train")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    total = epochs * -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=total, pct_start=0.15)
    done = 0
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch):
            a, b = x[rows], y[rows]
            if robust:  # eps grows over the first 40 %: training at 0.3 from the start ends at a constant answer
                share = min(1.0, done / (0.4 * total))
                steps = 3 if share < 1 else 7
                a = pgd(model, a, b, EPS * share, steps, 2.5 * EPS * share / steps)
            loss = F.cross_entropy(model(a), b)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            if done % 100 == 0:
                print(f"  {done}/{total}  loss {loss.item():.3f}", flush=True)
    return model


def _cached(name: str, **how: int | bool) -> nn.Module:
    path = CACHE / f"mnist_{name}.safetensors"
    if not path.exists():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        started = time.perf_counter()
        model = _train(**how)  # type: ignore[arg-type]
        torch.set_num_threads(threads)
        CACHE.mkdir(exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
        print(f"trained {name} in {time.perf_counter() - started:.0f} s", flush=True)
    model = small_cnn()
    model.load_state_dict(load_file(path))
    return model.eval()


def natural() -> nn.Module:
    """Undefended."""
    return _cached("natural", robust=False, epochs=2, batch=128)


def robust() -> nn.Module:
    """PGD training, linf 0.3 (Madry et al. 2018), 7 steps once the radius has grown to its full size."""
    return _cached("robust", robust=True, epochs=3, batch=128)


MODELS = {"natural": natural, "robust": robust}


if __name__ == "__main__":
    x, y = mnist("test")
    for name, load in MODELS.items():
        model = load()
        torch.manual_seed(0)
        some = slice(0, 500)
        broken = pgd(model, x[some], y[some], EPS, 20, 2.5 * EPS / 20)
        print(
            f"{name}: clean {accuracy(model, x, y):.4f}, PGD-20 at {EPS} {accuracy(model, broken, y[some]):.3f} (500 images)"
        )
