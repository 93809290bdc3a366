"""What the battery for defences is played on: a target, the data for it, and how to tell whether it was touched.

A defence is played on a small convolutional network unless it has a row in `STAGES`: then it is made for models of that kind.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from typing import Any

import joblib
import numpy as np
import torch
from sklearn.ensemble import GradientBoostingClassifier
from torch import Tensor, nn

from vauban.core.data import Data
from vauban.core.defence import Hardened
from vauban.core.target import Domain, EstimatorBacked, TorchBacked
from vauban.schema.access import Access
from vauban.targets.load import target as load
from vauban.targets.torch import TorchTarget, Training


class Memory:
    """A store that keeps copies."""

    def __init__(self) -> None:
        self.kept: tuple[dict[str, Tensor], dict[str, Any]] | None = None

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        self.kept = {k: v.clone() for k, v in tensors.items()}, copy.deepcopy(dict(facts))

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return self.kept


def pictures() -> Data:
    g = torch.Generator().manual_seed(3)
    y = torch.arange(60) % 3
    x = (0.2 * torch.rand(60, 1, 4, 4, generator=g) + 0.25 * y[:, None, None, None]).clamp(0, 1)
    return Data(x[:48], y[:48], x[48:], y[48:], id="blobs")


def table(task: str) -> Data:
    g = torch.Generator().manual_seed(4)
    x = torch.rand(60, 5, generator=g)
    y = x.sum(1).double() if task == "regression" else (x.sum(1) > 2.5).long()
    return Data(x[:48], y[:48], x[48:], y[48:], id="table")


def surroundings() -> list[Any]:
    return [
        torch.get_rng_state().tolist(),
        [np.asarray(part).tolist() for part in np.random.get_state()[1:]],  # noqa: NPY002
        random.getstate(),
        torch.is_grad_enabled(),
    ]


class Networks:
    """Networks of torch."""

    refusal = r"endpoint offers labels only: give the model as an nn\.Module"
    seeded = True
    """Another seed gives another model."""
    recipe_needs: Mapping[str, Any] = {"training": Training(epochs=1)}

    def network(self, task: str) -> nn.Module:
        if task == "regression":
            return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 3)
        )

    def model(self, task: str = "classification", training: Training | None = None) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = self.network(task)
        classes = None if task == "regression" else 3
        domain = Domain(task=task, classes=classes, low=0.0, high=1.0)  # type: ignore[arg-type]
        return TorchTarget(module, "m", domain, None if task == "regression" else "logits", training)

    def odd(self) -> Any:
        """In a state that is easy to disturb: part in training mode, a weight frozen, a gradient left over."""
        target = self.model()
        target.module[0].train()
        target.module[1].eval()
        first, last = (list(target.module.parameters())[at] for at in (0, -1))
        first.requires_grad_(False)
        last.grad = torch.ones_like(last)
        return target

    def snapshot(self, target: Any) -> list[Any]:
        module: nn.Module = target.module
        parts = list(module.modules())
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return [
            [part.training for part in parts],
            [(p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in module.parameters()],
            [len(getattr(part, name)) for part in parts for name in hooks],
            [sorted(vars(p)) for p in module.parameters()],
            {k: v.tolist() for k, v in module.state_dict().items()},
            *surroundings(),
        ]

    def check_clean(self, made: Any, target: Any) -> None:
        """The new model shares nothing with the given one, and nothing of its making is left on it."""
        assert Access.GRADIENTS in made.offers
        assert isinstance(made, TorchBacked)
        assert made.module is not target.module
        own = {p.data_ptr() for p in made.module.parameters()}
        assert own.isdisjoint(p.data_ptr() for p in target.module.parameters())
        shape = self.snapshot(made)
        assert not any(shape[0]), "in evaluation mode"
        assert all(grad is None for _, grad in shape[1])
        assert not any(shape[2]), "no hooks"
        assert not any(shape[3]), "no attributes left on the parameters"

    def check_wrapping(self, made: Any, x: Tensor) -> None:
        answers = made.forward(x).values
        assert torch.equal(made.around(made.clone(), "+x").forward(x).values, answers)
        assert torch.equal(made.forward_features(x)[0].values, answers)

    def state(self, hardened: Hardened) -> dict[str, Tensor]:
        module: nn.Module = hardened.target.module  # type: ignore[attr-defined]
        return {k: v.clone() for k, v in (hardened.state or module.state_dict()).items()}


class LinearModels(Networks):
    """One linear layer."""

    refusal = r"endpoint is none: give one linear layer"
    seeded = False

    def network(self, task: str) -> nn.Module:
        if task == "regression":
            return nn.Linear(5, 1)
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(16, 3))


class Trees:
    """Trees of scikit-learn."""

    refusal = r"endpoint is none: give a fitted tree, forest or booster"
    seeded = False
    recipe_needs: Mapping[str, Any] = {}

    def model(self, task: str = "classification") -> Any:
        rows = pictures()
        estimator = GradientBoostingClassifier(n_estimators=3, max_depth=2, random_state=0)
        assert rows.x_train is not None
        estimator.fit(rows.x_train.flatten(1).numpy(), rows.y_train.numpy())
        return load(estimator, bounds=(0, 1), id="m", task=task)

    def odd(self) -> Any:
        return self.model()

    def snapshot(self, target: Any) -> list[Any]:
        return [joblib.hash(target.estimator), *surroundings()]

    def check_clean(self, made: Any, target: Any) -> None:
        assert isinstance(made, EstimatorBacked)
        assert made.estimator is not target.estimator
        assert made.offers == target.offers

    def check_wrapping(self, made: Any, x: Tensor) -> None:
        again = made.refitted(made.estimator, "+x", made.recipe)
        assert torch.equal(again.forward(x).values, made.forward(x).values)

    def state(self, hardened: Hardened) -> dict[str, Tensor]:
        assert hardened.state, "without a module, the defence itself says what is to be kept"
        return dict(hardened.state)


STAGES: Mapping[str, Any] = {"train.robust_linear": LinearModels(), "train.robust_trees": Trees()}


def stage(id: str) -> Any:
    """What the defence `id` is played on."""
    return STAGES.get(id, NETWORKS)


NETWORKS = Networks()
