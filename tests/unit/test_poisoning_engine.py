"""The examiner of poisoning on models that train in a second."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vauban.core.target import Domain
from vauban.data.demo import digits
from vauban.domains.catalog import modality, settle
from vauban.engine.case import Case, Check
from vauban.engine.execute import execute
from vauban.engine.poisoning import delong
from vauban.schema.threat import Budget, ThreatModel
from vauban.targets.torch import TorchTarget, Training

THREAT = ThreatModel(id="training-data")


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def make_case(profile: str = "smoke", **changes) -> Case:
    data = digits()
    domain = replace(settle(Domain(), data), classes=10)
    target = TorchTarget(_mlp(), domain=domain, training=Training(factory=_mlp, epochs=30, rate=3e-3))
    target = target.recipe.fit(data.x_train, data.y_train, 0)
    return Case(
        **{"target": target, "data": data, "domain": domain, "modality": modality("image"), "profile": profile}
        | changes
    )


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case()


def value(attempt, name):
    return attempt.measurement(f"poisoning.{name}").value


@pytest.mark.parametrize(("attack", "success"), [("badnets", 0.9), ("blended", 0.85)])
def test_three_percent_of_poison_plant_a_backdoor_that_the_audit_finds(case, attack, success):
    attempt = execute(Check(f"poisoning.{attack}", THREAT), case).attempt
    assert attempt.state == "assessed", attempt.reason
    assert attempt.facts["poisoned_rows"] == 30
    assert value(attempt, "attack_success_rate") > success
    assert value(attempt, "clean_accuracy") >= attempt.facts["clean_twin_accuracy"] - 0.01
    assert attempt.facts["success_without_poison"] < 0.05
    assert value(attempt, "detection_auc") > 0.9
    assert value(attempt, "detection_fpr_clean") < 0.02
    assert attempt.measurement("poisoning.attack_success_rate").n == int((case.data.y_test != 0).sum())
    assert [s.x for s in attempt.curves[0].series] == [[0.0, 0.03]] * 2
    assert len(attempt.exhibits) == 3


def test_the_clean_twin_is_trained_once(case):
    twin = case.shared.get("poisoning.twin")
    execute(Check("poisoning.badnets", THREAT), case)
    assert twin is None or case.shared["poisoning.twin"] is twin


def test_label_flips_measure_accuracy_and_have_no_success_rate():
    case = make_case()
    threat = ThreatModel(id="many", budget=Budget(poison_fraction=0.4))
    attempt = execute(Check("poisoning.label_flip", threat), case).attempt
    assert attempt.facts["poisoned_rows"] == 400
    assert attempt.measurement("poisoning.attack_success_rate") is None
    assert attempt.facts["accuracy_lost"] > 0.02
    assert attempt.facts["accuracy_lost"] == pytest.approx(
        attempt.facts["clean_twin_accuracy"] - value(attempt, "clean_accuracy")
    )


def test_the_audit_proves_its_power_and_stays_silent_on_clean_data(case):
    attempt = execute(Check("poisoning.data_audit", THREAT), case).attempt
    assert attempt.state == "assessed", attempt.reason
    planted = attempt.facts["planted"]
    assert set(planted) == {"poisoning.badnets", "poisoning.blended", "poisoning.label_flip"}
    assert value(attempt, "detection_auc") == min(p["auc"] for p in planted.values()) > 0.9
    assert value(attempt, "detection_fpr_clean") < 0.02
    assert not attempt.facts["more_than_expected"]
    assert len(attempt.facts["suspicious_rows"]) == attempt.facts["suspicious_count"]


def test_the_audit_names_poison_in_the_users_own_data(case):
    rows = torch.arange(0, 1000, 25)
    y = case.data.y_train.clone()
    y[rows] = (y[rows] + 3) % 10
    dirty = replace(case, data=replace(case.data, y_train=y), shared={})
    facts = execute(Check("poisoning.data_audit", THREAT), dirty).attempt.facts
    assert facts["more_than_expected"]
    assert np.isin(rows.numpy(), facts["suspicious_rows"]).mean() > 0.7


def test_the_same_seed_gives_the_same_numbers_and_nothing_is_changed():
    case = make_case()
    before = (case.data.sha256(), case.target.sha256())
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (
        execute(Check("poisoning.badnets", THREAT), replace(case, shared={})).attempt.model_dump(exclude={"cost"})
        for _ in range(2)
    )
    assert first == second
    assert before == (case.data.sha256(), case.target.sha256())
    assert torch.equal(state[0], torch.random.get_rng_state())
    assert (state[1] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_a_larger_budget_widens_the_curve_at_the_standard_profile():
    attempt = execute(Check("poisoning.badnets", THREAT, {"rates": (0.01,)}), make_case("standard")).attempt
    accuracy, success = attempt.curves[0].series
    assert accuracy.x == [0.0, 0.01, 0.03]
    assert success.y[0] < success.y[1] < success.y[2]


def test_without_a_recipe_it_is_skipped(case):
    bare = replace(case, target=replace(case.target, training=None))
    attempt = execute(Check("poisoning.badnets", THREAT), bare).attempt
    assert attempt.state == "skipped"
    assert "training" in attempt.reason


def test_a_class_that_is_not_there_is_refused(case):
    attempt = execute(Check("poisoning.badnets", THREAT, {"wanted": 12}), case).attempt
    assert attempt.state == "error"
    assert "wanted=12" in attempt.reason


def test_delong_covers_the_truth():
    rng = np.random.default_rng(0)
    truth = 0.76025  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    covered = 0
    for _ in range(300):
        scores = np.concatenate([rng.normal(1, 1, 40), rng.normal(0, 1, 120)])
        low, high = delong(scores, np.arange(160) < 40)
        covered += low <= truth <= high
    assert 0.90 <= covered / 300 <= 0.99


def test_delong_of_a_perfect_separation_leaves_room():
    low, high = delong(np.arange(20.0), np.arange(20) >= 10)
    assert high == 1
    assert 0.6 < low < 0.8
