"""What the poisoning attacks share: which rows are changed, and how many."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vauban.core.attack import Poison, PoisonScene
from vauban.core.rng import Rng
from vauban.parts.triggers import Trigger
from vauban.schema.errors import BadData, BadOption


def draw(scene: PoisonScene, candidates: Tensor, rng: Rng, *, evenly: bool = False) -> Tensor:
    """Sorted numbers `[m]` of the rows to change: `round(fraction * n)` of the candidates, or all where they are fewer.

    `evenly` takes the classes in turn instead of as they come. With the same generator a larger fraction changes the rows of a smaller one and some more.
    """
    if not scene.data.has_train:
        raise BadData("There are no training rows to poison: give x_train and y_train.")
    if not 0 <= scene.fraction <= 1:
        raise BadOption(f"The poisoned fraction is {scene.fraction:g}: it must lie between 0 and 1, such as 0.03.")
    count = min(round(scene.fraction * len(scene.data.y_train)), len(candidates))
    order = torch.from_numpy(rng.numpy("rows").permutation(len(candidates)))
    if evenly:
        order = order[_turns(scene.data.y_train[candidates[order]])]
    picked: Tensor = candidates[order[:count]].sort().values
    return picked


def _turns(labels: Tensor) -> Tensor:
    """The order `[n]` in which the first row of every class comes before the second of any."""
    turn = torch.empty_like(labels)
    for label in labels.unique():
        members = labels == label
        turn[members] = torch.arange(int(members.sum()), dtype=turn.dtype)
    return turn.sort(stable=True).indices


def check_class(scene: PoisonScene, label: int, name: str) -> None:
    """Raise BadOption where there is no such class."""
    if not 0 <= label < scene.classes:
        raise BadOption(f"{name}={label} is no class: the model has the classes 0 to {scene.classes - 1}.")


def backdoor(scene: PoisonScene, trigger: Trigger, wanted: int, rng: Rng) -> Poison:
    """Rows of other classes, of each equally many, get the trigger and the wanted label (dirty label)."""
    check_class(scene, wanted, "wanted")
    data = scene.data
    others = (data.y_train != wanted).nonzero().flatten() if data.has_train else torch.arange(0)
    rows = draw(scene, others, rng, evenly=True)
    x, y = data.x_train.clone(), data.y_train.clone()
    x[rows] = trigger(data.x_train[rows])
    y[rows] = wanted
    return Poison(data=replace(data, x_train=x, y_train=y), rows=rows, trigger=trigger, wanted=wanted)


def check_rates(rates: tuple[float, ...]) -> None:
    """Raise ValueError where a rate is no share of the training rows."""
    if not all(isinstance(rate, int | float) and 0 < rate <= 1 for rate in rates):
        raise ValueError(f"rates is {rates!r}: shares of the training rows above 0 and up to 1, such as [0.01, 0.1]")
