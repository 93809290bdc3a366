"""What the preflight finds, and what it does not go on with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch import Tensor, nn

from vauban.core.data import Data
from vauban.core.target import Target
from vauban.domains.catalog import settle
from vauban.engine.preflight import preflight
from vauban.schema.errors import BadData, BadTarget, WrongUnits
from vauban.schema.log import Doubt
from vauban.targets.load import target
from vauban.targets.torch import Training

RNG = np.random.default_rng(0)
X = RNG.uniform(0, 1, (90, 4)).astype(np.float32)
Y = (X[:, 0] * 3).astype(np.int64)


class Thirds(nn.Module):
    """Three classes by thirds of the first feature, exactly right on [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.tensor([1 / 6, 3 / 6, 5 / 6]))

    def forward(self, x: Tensor) -> Tensor:
        return -20 * (x.flatten(1)[:, :1] - self.centres).square()


class Through(nn.Module):
    """Thirds, and something done to its answer."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.thirds, self.change = Thirds(), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.thirds(x))


def fly(model: Any, x: Any = X, y: Any = Y, **facts: Any) -> tuple[Target, dict[str, Doubt], dict[str, Any]]:
    found = target(model, **facts)
    data = Data(None, None, x, y)
    settled, doubts, measured = preflight(found, data, settle(found.domain, data))
    return settled, {doubt.id: doubt for doubt in doubts}, measured


def test_a_good_model_passes() -> None:
    settled, doubts, facts = fly(Thirds().eval(), bounds=(0, 1))
    assert {doubt.verdict for doubt in doubts.values()} == {"pass"}
    assert settled.domain.classes == 3
    assert settled.domain.kind == "tabular"
    assert facts["clean_accuracy"] == 1.0
    assert facts["clean_accuracy_low"] == pytest.approx(0.025 ** (1 / 90))
    assert facts["output"] == "logits"
    assert 0 < facts["forward_seconds"] < 1
    assert 0 < facts["backward_seconds"] < 1


def test_a_function_has_no_gradients_to_time() -> None:
    _, doubts, facts = fly(lambda x: np.eye(3)[np.minimum((x[:, 0] * 3).astype(int), 2)])
    assert facts["backward_seconds"] is None
    assert facts["clean_accuracy"] == 1.0
    assert "gives no gradients" in doubts["gradients"].text


def test_labels_alone_tell_the_number_of_classes() -> None:
    settled, _, _ = fly(lambda x: np.minimum((x[:, 0] * 3).astype(int), 2))
    assert settled.domain.classes == 3


def test_probabilities_are_warned_of() -> None:
    settled, doubts, _ = fly(Through(lambda z: z.softmax(1)))
    assert doubts["softmax_output"].verdict == "warn"
    assert settled.forward(torch.from_numpy(X)).kind == "probabilities"


def test_training_mode_is_found_and_left() -> None:
    module = nn.Sequential(Thirds(), nn.Dropout()).train()
    _, doubts, _ = fly(module)
    assert doubts["train_mode"].verdict == "warn"
    assert doubts["randomness"].verdict == "pass"
    assert module.training


def test_randomness_is_found() -> None:
    _, doubts, _ = fly(Through(lambda z: z + 0.1 * torch.randn_like(z)))
    assert doubts["randomness"].verdict == "fail"


def test_batch_dependence_is_found() -> None:
    _, doubts, _ = fly(Through(lambda z: z - z.mean(0, keepdim=True)))
    assert doubts["batch_dependence"].verdict == "fail"
    assert fly(Thirds())[1]["batch_dependence"].verdict == "pass"


@pytest.mark.parametrize("change", [torch.round, torch.Tensor.detach])
def test_missing_gradients_are_found(change: Any) -> None:
    _, doubts, _ = fly(Through(change))
    assert doubts["gradients"].verdict == "warn"
    assert doubts["gradients"].value == 1.0


def test_a_model_at_chance_is_no_model() -> None:
    wrong = (Y + 1) % 3
    _, doubts, facts = fly(Thirds(), y=wrong)
    assert facts["clean_accuracy"] == 0.0
    assert doubts["clean_accuracy"].verdict == "fail"
    assert doubts["clean_accuracy"].threshold == pytest.approx(np.bincount(wrong).max() / 90)


def test_absent_classes_are_told() -> None:
    _, doubts, _ = fly(Thirds(), x=X[Y < 2], y=Y[Y < 2])
    assert doubts["classes"].verdict == "warn"


@pytest.mark.parametrize(
    ("rescaled", "words"),
    [
        (X * 255, "divided by 255"),
        (X / 255, "multiplied by 255"),
    ],
)
def test_wrong_units_are_found_by_accuracy(rescaled: np.ndarray, words: str) -> None:
    often = np.concatenate([np.flatnonzero(c == Y)[:20] for c in range(3)])  # the middle class is no majority
    with pytest.raises(WrongUnits, match=words):
        fly(Thirds(), x=rescaled[often], y=Y[often])


def test_a_few_rows_are_no_proof_of_wrong_units() -> None:
    few = np.concatenate([np.flatnonzero(c == Y)[:2] for c in range(3)])
    _, doubts, _ = fly(Thirds(), x=X[few] / 255, y=Y[few])
    assert doubts["clean_accuracy"].verdict == "fail"


def test_a_wrong_origin_is_found_by_accuracy() -> None:
    centred = (X[:, 0] > 0.5).astype(np.int64)  # right for a model of the sign, on inputs in [-1, 1]
    with pytest.raises(WrongUnits, match=r"mapped from \[0, 1\] to \[-1, 1\]"):
        fly(lambda x: np.stack([-x[:, 0], x[:, 0]], 1), y=centred)


def test_missing_standardisation_is_found() -> None:
    x = RNG.normal(50, 4, (120, 3)).astype(np.float32)
    z = (x - x.mean(0)) / x.std(0)
    model = LogisticRegression().fit(z, (z[:, 0] > 0).astype(int))
    with pytest.raises(WrongUnits, match="standardised"):
        fly(model, x=x, y=(z[:, 0] > 0).astype(np.int64))


@pytest.mark.parametrize(
    ("bounds", "words"),
    [((0, 0.5), "rows lie outside"), ((0, 255), "less than 1% of the declared range")],
)
def test_wrong_bounds(bounds: Any, words: str) -> None:
    with pytest.raises(WrongUnits, match=words):
        fly(Thirds(), bounds=bounds)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (Y + 1, "labels from 1 to 3, but the model has 3 classes"),
        (Y - 1, "labels from -1 to 1"),
        (Y * 0 + 2, "only class 2 in all 90 rows"),
    ],
)
def test_labels_that_do_not_fit(y: np.ndarray, words: str) -> None:
    with pytest.raises(BadData, match=words):
        fly(Thirds(), y=y)


def test_training_labels_are_looked_at_too() -> None:
    found = target(Thirds(), training=Training(factory=Thirds))
    data = Data(X, Y + 1, X, Y)
    with pytest.raises(BadData, match="y_train holds labels from 1 to 3"):
        preflight(found, data, settle(found.domain, data))


@pytest.mark.parametrize(
    ("model", "facts", "words"),
    [
        (Through(lambda z: z / 0 * 0), {}, "NaN or infinity to 90 of 90"),
        (Thirds(), {"classes": 5}, "3 scores an input, but 5 classes were declared"),
        (nn.Linear(9, 3), {}, r"failed on inputs of shape \(90, 4\)"),
        (Through(lambda z: z[:1]), {"output": "logits"}, "one row an input"),
        (nn.Unflatten(1, (2, 2)), {"output": "logits"}, r"must be \[rows, classes\]"),
    ],
)
def test_models_that_cannot_be_used(model: nn.Module, facts: dict[str, Any], words: str) -> None:
    with pytest.raises(BadTarget, match=words):
        fly(model, **facts)


def test_real_labels_of_a_classifier() -> None:
    with pytest.raises(BadTarget, match="give a classifier's labels as integers"):
        fly(Thirds(), y=Y.astype(float))
    with pytest.raises(BadData, match="real numbers, but the model is a classifier"):
        fly(LogisticRegression().fit(X, Y), y=Y.astype(float))


def test_regressions_are_scored_by_variance() -> None:
    y = (X @ np.array([1.0, 2.0, 0.0, -1.0])).astype(np.float64)
    settled, doubts, facts = fly(LinearRegression().fit(X, y), y=y)
    assert facts["r2"] == pytest.approx(1.0)
    assert settled.domain.task == "regression"
    assert settled.domain.classes is None
    assert doubts["clean_accuracy"].verdict == "pass"
    with pytest.raises(WrongUnits, match="divided by 255"):
        fly(LinearRegression().fit(X, y), x=X * 255, y=y)
