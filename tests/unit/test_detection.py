"""Detectors examined: which rows count, what an attacker who knows them leaves, areas and their intervals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.defences.catalog import DEFENCES
from vauban.engine.context import HouseContext
from vauban.engine.detection import UNFITTED, Examples, Foe, attacked, examine
from vauban.engine.detection_joint import Joint
from vauban.engine.measure import area
from vauban.parts.roc import auc, auc_deviation
from vauban.parts.samples import digits
from vauban.parts.training import fit
from vauban.schema.errors import BadData, BadOption
from vauban.targets.torch import TorchTarget

FOES = (
    Foe(id="evasion.fgsm"),
    Foe(id="evasion.pgd", settings={"steps": 10}, confident=True),
    Foe(id="evasion.ddn", settings={"steps": 20}, space="l2"),
)
ROWS = 60


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> tuple[TorchTarget, Data]:
    whole = digits()
    data = Data(whole.x_train, whole.y_train, whole.x_test[:ROWS], whole.y_test[:ROWS], step=whole.step)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))
    fit(net, data.x_train, data.y_train, seed=0, epochs=15, rate=3e-3)
    domain = Domain(kind="image", task="classification", classes=10, low=0.0, high=1.0)
    return TorchTarget(net, "net", domain, "logits"), data


@pytest.fixture(scope="module")
def examples(model: tuple[TorchTarget, Data]) -> Examples:
    return attacked(*model, threat="linf:0.15", foes=FOES)


def test_only_rows_that_were_right_and_are_fooled_count(model: tuple[TorchTarget, Data], examples: Examples) -> None:
    target, data = model
    with torch.no_grad():
        right = target.forward(data.x_test).labels == data.y_test
        assert torch.equal(examples.right, right)
        for name, z in examples.changed.items():
            now = target.forward(z).labels != data.y_test
            assert torch.equal(examples.fooled[name], right & now)
            if "l2" not in name:
                assert float((z - data.x_test).abs().max()) <= 0.15 + 1e-6
    assert set(examples.changed) == {"evasion.fgsm", "evasion.pgd confident", "evasion.ddn nearest l2"}
    noise = (examples.noisy - data.x_test).abs()
    assert 0.1 < float(noise.max()) <= 0.15 + 1e-6


def test_the_confident_attack_goes_on_after_its_success(model: tuple[TorchTarget, Data], examples: Examples) -> None:
    target, _ = model
    both = examples.fooled["evasion.pgd confident"] & examples.fooled["evasion.ddn nearest l2"]
    assert int(both.sum()) > 20
    with torch.no_grad():
        sure, near = (
            target.forward(examples.changed[name][both]).values.softmax(1).amax(1).mean()
            for name in ("evasion.pgd confident", "evasion.ddn nearest l2")
        )
    assert float(sure) > float(near) + 0.2


@pytest.fixture(scope="module")
def seen(model: tuple[TorchTarget, Data], examples: Examples) -> Any:
    return examine("detect.mahalanobis", *model, examples, joint=Joint(steps=30))


def test_a_detector_is_told_in_full(model: tuple[TorchTarget, Data], examples: Examples, seen: Any) -> None:
    target, data = model
    assert [one.attack for one in seen.against] == [foe.name for foe in FOES]
    assert {one.fitted_on for one in seen.against} == {UNFITTED}
    rng = Rng(0)
    made: Any = DEFENCES.load("detect.mahalanobis")()(target, data, rng, HouseContext(None, None)).target
    assert made.domain.refusal == 10
    for one in seen.against:
        assert one.fooled == int(examples.fooled[one.attack].sum())
        assert one.auc.n == ROWS + one.fooled
        assert 0 <= one.auc.low <= one.auc.value <= one.auc.high <= 1
        assert one.caught.n == one.refused.n == one.fooled
    assert seen.clean.n == seen.noisy.n == ROWS


def test_the_attacker_who_knows_it_does_better(seen: Any) -> None:
    assert seen.joint.auc.value < min(one.auc.value for one in seen.against)
    assert seen.passed.value > 0.3
    assert seen.joint.fooled >= max(one.fooled for one in seen.against if "l2" not in one.attack)


def test_the_joint_points_are_what_they_are_said_to_be(model: tuple[TorchTarget, Data], examples: Examples) -> None:
    target, data = model
    made: Any = DEFENCES.load("detect.energy")()(target, data, Rng(0), HouseContext(None, None)).target
    made = made.settled(target.domain)
    points, fooled = Joint(steps=10)(made, examples, Rng(3, ROWS))
    assert float((points - data.x_test).abs().max()) <= 0.15 + 1e-6
    assert float(points.min()) >= 0
    assert float(points.max()) <= 1
    with torch.no_grad():
        wrong = target.forward(points).labels != data.y_test
        assert torch.equal(fooled, examples.right & wrong)
        # of all that was found, the least suspicious
        for name in ("evasion.fgsm", "evasion.pgd confident"):
            both = fooled & examples.fooled[name]
            known = made.suspicion(examples.changed[name][both])
            assert bool((made.suspicion(points[both]) <= known + 1e-5).all())


def test_an_attack_is_left_out_of_what_it_is_tried_on(model: tuple[TorchTarget, Data], examples: Examples) -> None:
    settings = {"attacks": "evasion.fgsm,evasion.pgd", "rows": 400, "layers": 2}
    found = examine("detect.lid", *model, examples, settings=settings, joint=Joint(steps=2, restarts=1))
    told = {one.attack: one.fitted_on for one in found.against}
    assert told == {
        "evasion.fgsm": "evasion.pgd",
        "evasion.pgd confident": "evasion.fgsm",
        "evasion.ddn nearest l2": "evasion.fgsm, evasion.pgd",
    }


def test_what_is_no_detector_is_refused(model: tuple[TorchTarget, Data], examples: Examples) -> None:
    target, data = model
    with pytest.raises(BadOption, match=r"train\.pgd is no detector: use one of detect\.dispersion"):
        examine("train.pgd", target, data, examples)
    with pytest.raises(BadData, match="gets none of the 60 test rows right"):
        attacked(
            target, Data(None, None, data.x_test, (target.forward(data.x_test).labels + 1) % 10), threat="linf:0.1"
        )


def scores(seed: int) -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(seed)
    positive = g.random(60) < 0.4
    return np.round(g.normal(size=60) + positive, 1), positive


@pytest.mark.parametrize("seed", range(5))
def test_the_area_is_that_of_sklearn_with_ties(seed: int) -> None:
    value, positive = scores(seed)
    assert auc(value, positive) == pytest.approx(roc_auc_score(positive, value))


@pytest.mark.parametrize("seed", range(5))
def test_delong_is_the_formula_written_out(seed: int) -> None:
    value, positive = scores(seed)
    a, b = value[positive], value[~positive]
    wins = np.array([[1.0 if p > q else 0.5 if p == q else 0.0 for q in b] for p in a])
    first = sum((row.mean() - wins.mean()) ** 2 for row in wins) / (len(a) - 1)
    second = sum((column.mean() - wins.mean()) ** 2 for column in wins.T) / (len(b) - 1)
    assert auc_deviation(value, positive) == pytest.approx(np.sqrt(first / len(a) + second / len(b)))


def test_the_interval_covers_the_true_area() -> None:
    """Of normal scores one deviation apart, the area is Phi(1 / sqrt 2)."""
    g, hits = np.random.default_rng(0), 0
    positive = np.arange(80) >= 40
    for _ in range(300):
        found = area("x", g.normal(size=80) + positive, positive)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.76025 <= found.high
    assert 0.92 <= hits / 300 <= 0.98


def test_the_interval_of_a_perfect_area_is_not_a_point() -> None:
    positive = np.arange(40) >= 10
    found = area("x", positive.astype(float), positive)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 10))
    assert area("x", np.zeros(3), np.array([True, False, False])).low is None
    assert area("x", np.zeros(3), np.zeros(3, dtype=bool)).value is None
