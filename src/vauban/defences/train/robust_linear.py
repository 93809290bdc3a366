"""Linear models that are best in the worst case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from vauban.core.data import Data
from vauban.core.defence import Context, Hardened
from vauban.core.rng import Rng
from vauban.core.target import Target, TorchBacked
from vauban.defences.common import TorchModel, around, loaded, torch_backed, training_rows
from vauban.defences.train.course import PLAIN
from vauban.parts.affine import Affine, LogSigmoids, affine
from vauban.parts.minmax import ROUNDED, STAGES, Kind, MinMax, Solved
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source
from vauban.schema.errors import BadData, BadThreat, NotOffered


@dataclass(frozen=True, kw_only=True)
class RobustLinear:
    """Trains a linear model anew, on the worst case itself: for a linear model it is known in closed form.

    Within a radius r, an attacker takes r times the dual norm of the weights from a margin, and no more. The logistic loss of what
    is left (in a regression, the squared error with that much added) is convex in the weights, so that there is one best model and
    it is found: neither steps of an attack nor a seed play a part. Works on models of one linear layer, scikit-learn's linear
    models among them, with scalers in front: radius and weights are in the data's own units. In linf the weights of features that
    cannot be relied on go to zero.

    Source: Madry et al. 2018 (arXiv:1706.06083, section 2.1, the min-max loss); Goodfellow et al. 2015 (arXiv:1412.6572, section 5,
    its closed form for logistic regression in linf).
    Departures: every norm with its dual, several classes (each rival class at its own worst, an upper bound), regression. The box of
    valid inputs does not cut the attacker short, who is so taken for stronger than he is. Models that were trained with a hinge or
    a squared loss on classes (`LinearSVC`, `Perceptron`, `RidgeClassifier`) are trained with the logistic one.

    Args:
        penalty: L2 penalty on the weights (for features of deviation 1), above 0.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="train.robust_linear",
        name="Min-max linear model",
        summary="Finds the linear model that is best when every input is moved in the worst way.",
        needs=Access.WEIGHTS_READ | Access.DATA_READ,
        tasks=("classification", "regression"),
        adaptive=("evasion.apgd", "evasion.pgd", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="Towards deep learning models resistant to adversarial attacks",
                where="Madry et al., ICLR 2018, arXiv:1706.06083, section 2.1",
            ),
            Source(
                title="Explaining and harnessing adversarial examples",
                where="Goodfellow, Shlens, Szegedy, ICLR 2015, arXiv:1412.6572, section 5",
            ),
        ),
    )

    penalty: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.penalty < float("inf"):
            raise ValueError(f"penalty must be above 0, got {self.penalty}: without one there need be no best model")

    @classmethod
    def unfit(cls, target: Target) -> str:
        linear = isinstance(target, TorchBacked) and affine(target.module) is not None
        return "" if linear else "is made for linear models"

    def __call__(self, target: Target, data: Data, rng: Rng, context: Context) -> Hardened:
        model = self._linear(target)
        space, radius = context.space, context.radius
        if space is None or radius is None or space.name not in ROUNDED:
            given = "none was given" if space is None else f"this one is in {space.name}"
            raise BadThreat(f"{self.card.id} trains against one threat in {', '.join(ROUNDED)}, and {given}.")
        x, y = training_rows(model, data, self.card)
        done = self._solved(model, x, y, space.name, radius, context)
        made = around(model, filled(model, done), f"+{self.card.id}")
        facts = {"space": space.name, "radius": radius, "penalty": self.penalty, "loss": done.loss, "steps": done.steps}
        return Hardened(made, facts, (PLAIN,) if target.recipe else ())

    def restore(self, target: Target, data: Data, state: Mapping[str, Tensor]) -> Target:
        model = self._linear(target)
        return around(model, loaded(model.clone(), state), f"+{self.card.id}")

    def _linear(self, target: Target) -> TorchModel:
        if self.unfit(target):
            raise NotOffered(
                f"{self.card.id} {self.unfit(target)}, and {target.id} is none: give one linear layer (with scalers in front), "
                "or choose another defence."
            )
        return torch_backed(target, self.card)

    def _solved(self, model: TorchModel, x: Tensor, y: Tensor, space: str, radius: float, context: Context) -> Solved:
        found = _read(model)
        kind = _kind(found, regression=model.domain.task == "regression" or y.is_floating_point())
        outputs = found.layer.out_features
        if kind != "values" and (int(y.min()) < 0 or int(y.max()) >= max(outputs, 2)):
            raise BadData(f"{self.card.id}: the labels are not among the model's {max(outputs, 2)} classes.")

        how = MinMax(kind=kind, space=space, radius=radius, penalty=self.penalty)
        rows, truth = x.flatten(1).cpu().double(), y.cpu().double() if kind == "values" else y.cpu()
        told = partial(context.progress, total=len(STAGES), text="solving")
        return how.solve(rows, truth, outputs, found.layer.bias is not None, told)


def _read(model: TorchModel) -> Affine:
    found = affine(model.module)
    assert found is not None
    return found


def _kind(found: Affine, regression: bool) -> Kind:
    if regression:
        return "values"
    apart = found.layer.out_features == 1 or any(isinstance(part, LogSigmoids) for part in found.end)
    return "sigmoids" if apart else "softmax"


@torch.no_grad()
def filled(model: TorchModel, solved: Solved) -> nn.Module:
    """A copy of the model's module with these weights, put behind its scalers."""
    module = model.clone()
    found = affine(module)
    assert found is not None
    layer, shift, width = found.layer, torch.from_numpy(found.shift), torch.from_numpy(found.width)
    layer.weight.copy_(solved.weights * width)
    if layer.bias is not None:
        layer.bias.copy_(solved.bias + solved.weights @ shift)
    return module
