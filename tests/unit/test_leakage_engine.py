"""An overfitted model leaks, a model that never saw the data does not, and the report says which is which."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vauban.core.data import Data
from vauban.core.target import Domain, Target
from vauban.engine.case import Case, Check, Outcome
from vauban.engine.leakage import blind_scores, examine
from vauban.engine.reconstruction import psnr
from vauban.engine.records import ReferencePool, draw_records, pool_of, records_of
from vauban.schema.access import EVERYTHING, Access
from vauban.schema.errors import Limit
from vauban.schema.log import Measurement
from vauban.schema.threat import ThreatModel
from vauban.targets.torch import TorchTarget, Training

MEMBERSHIP = ["leakage.loss_threshold", "leakage.entropy_threshold", "leakage.lira", "leakage.rmia"]
D, CLASSES = 20, 3


def noisy_data(n: int = 500, seed: int = 0) -> Data:
    """Labels that nobody can learn but by heart: four in ten are random."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D, generator=generator)
    y = x[:, :CLASSES].argmax(1)
    random = torch.rand(n, generator=generator) < 0.4
    y = torch.where(random, torch.randint(CLASSES, (n,), generator=generator), y)
    return Data(x[: n // 2], y[: n // 2], x[n // 2 :], y[n // 2 :])


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def domain() -> Domain:
    return Domain(
        kind="tabular", task="classification", classes=CLASSES, low=-torch.ones(D) * 4, high=torch.ones(D) * 4
    )


def untrained() -> TorchTarget:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = network()
    training = Training(epochs=45, batch_size=32, rate=3e-3)
    return TorchTarget(module=module, domain=domain(), output="logits", training=training)


def case_of(target: Target, data: Data, **extra: Any) -> Case:
    return Case(target=target, data=data, domain=target.domain, modality=cast(Any, None), profile="smoke", **extra)


@pytest.fixture(scope="module")
def leaky() -> Case:
    data, start = noisy_data(), untrained()
    assert start.recipe is not None
    return case_of(start.recipe.fit(data.x_train, data.y_train, seed=7), data)


@pytest.fixture(scope="module")
def innocent() -> Case:
    """Trained on other rows of the same kind; the case says that it was trained on these."""
    start, other = untrained(), noisy_data(seed=99)
    assert start.recipe is not None
    return case_of(start.recipe.fit(other.x_train, other.y_train, seed=7), noisy_data())


def run(id: str, case: Case, access: Access = EVERYTHING, **settings: Any) -> Outcome:
    return examine(Check(id, ThreatModel(id="any", access=access), settings), case)


def value(outcome: Outcome, name: str) -> Measurement:
    found = outcome.attempt.measurement(name)
    assert found is not None
    return found


def contains(found: Measurement, number: float) -> bool:
    assert found.low is not None
    assert found.high is not None
    return found.low <= number <= found.high


@pytest.mark.parametrize("id", MEMBERSHIP)
def test_an_overfitted_model_leaks(id: str, leaky: Case) -> None:
    outcome = run(id, leaky)
    auc = value(outcome, "leakage.membership.auc")
    assert auc.value is not None
    assert auc.low is not None
    assert auc.value > 0.7
    assert auc.low > 0.6
    assert contains(value(outcome, "leakage.blind_auc"), 0.5)
    assert abs((value(outcome, "leakage.null_auc").value or 0) - 0.5) < 0.09
    one, thousandth = (value(outcome, f"leakage.membership.tpr_at_fpr_{s}") for s in ("1pct", "0.1pct"))
    assert one.value is not None
    assert thousandth.value is None
    assert any("at least 1000 non-members" in c for c in outcome.attempt.caveats)
    labels = [s.label.partition(" (")[0] for s in outcome.attempt.curves[0].series]
    assert labels == ["attack", "blind baseline", "null control", "chance"]


@pytest.mark.parametrize("id", MEMBERSHIP)
def test_a_model_that_never_saw_the_data_is_at_chance(id: str, innocent: Case) -> None:
    assert contains(value(run(id, innocent), "leakage.membership.auc"), 0.5)


def test_lira_beats_the_loss_threshold(leaky: Case) -> None:
    loss, lira = (
        value(run(i, leaky), "leakage.membership.auc").value for i in ("leakage.loss_threshold", "leakage.lira")
    )
    assert loss is not None
    assert lira is not None
    assert lira > loss


def test_most_exposed_rows_are_training_rows_in_order(leaky: Case) -> None:
    outcome = run("leakage.loss_threshold", leaky)
    exposed = outcome.attempt.facts["most_exposed"]
    scores = [row["score"] for row in exposed]
    assert scores == sorted(scores, reverse=True)
    first = exposed[0]
    assert int(leaky.data.y_train[first["row"]]) == first["label"]
    members = outcome.arrays["scores"][outcome.arrays["member"]]
    assert first["score"] == float(members.max())


def test_references_are_shared_and_do_not_depend_on_the_order(leaky: Case) -> None:
    fresh = replace(leaky, shared={})
    again = run("leakage.rmia", fresh)
    pool = pool_of(fresh)
    assert pool is not None
    assert len(pool.outputs) == 4
    run("leakage.lira", fresh)
    assert len(pool.outputs) == 4
    assert torch.equal(again.arrays["scores"], run("leakage.rmia", leaky).arrays["scores"])


def test_who_asks_first_does_not_set_the_time_of_the_others(leaky: Case) -> None:
    late = replace(leaky, shared={}, deadline=time.monotonic() - 1)
    first, second = pool_of(late), pool_of(replace(late, deadline=None))
    assert first is not None
    assert second is not None
    with pytest.raises(Limit):
        first.get(4)
    second.get(4)
    assert len(first.get(4).outputs) == 4
    assert first.null is second.null
    assert first.null is not None


def test_each_record_is_in_half_of_the_references_of_the_targets_size(leaky: Case) -> None:
    sizes = []

    @dataclass
    class Listening:
        def fit(self, x: Tensor, y: Tensor, seed: int) -> Target:
            sizes.append(len(x))
            return leaky.target

    pool = ReferencePool(Listening(), records_of(leaky), replace(leaky, shared={}), len(leaky.data.x_train))
    found = pool.get(6)
    assert (found.inside.sum(0) == 3).all()
    assert sizes == [250] * 6
    assert len(pool.without_null(6)) == 4
    assert (pool.without_null(6).inside.sum(0) == 2).all()


def test_without_a_recipe_there_is_no_null_control_and_it_is_said(leaky: Case) -> None:
    bare = replace(leaky, target=replace(cast(TorchTarget, leaky.target), training=None), shared={})
    outcome = run("leakage.loss_threshold", bare)
    assert value(outcome, "leakage.null_auc").value is None
    assert any("no null control" in caveat for caveat in outcome.attempt.caveats)


def test_without_training_rows_it_is_skipped(leaky: Case) -> None:
    data = Data(x_test=leaky.data.x_test, y_test=leaky.data.y_test)
    attempt = run("leakage.loss_threshold", replace(leaky, data=data, shared={})).attempt
    assert attempt.state == "skipped"
    assert "x_train" in attempt.reason


def test_too_few_records_are_inconclusive(leaky: Case) -> None:
    d = leaky.data
    data = Data(d.x_train, d.y_train, d.x_test[:19], d.y_test[:19])
    attempt = run("leakage.lira", replace(leaky, data=data, shared={})).attempt
    assert attempt.state == "inconclusive"
    assert "only 19" in attempt.reason


def test_members_that_differ_by_themselves_are_found_out(leaky: Case) -> None:
    d = leaky.data
    data = Data(d.x_train + 0.7, d.y_train, d.x_test, d.y_test)
    outcome = run("leakage.loss_threshold", replace(leaky, data=data, shared={}))
    blind = value(outcome, "leakage.blind_auc")
    assert blind.value is not None
    assert blind.value > 0.7
    assert any("differ by themselves" in caveat for caveat in outcome.attempt.caveats)
    assert outcome.attempt.doubts[0].verdict == "warn"


def test_test_rows_that_repeat_training_rows_are_no_non_members(leaky: Case) -> None:
    d = leaky.data
    data = Data(d.x_train, d.y_train, torch.cat([d.x_test, d.x_train[:30]]), torch.cat([d.y_test, d.y_train[:30]]))
    records = draw_records(data, 1000, np.random.default_rng(0))
    assert records.duplicates == 30
    assert int((~records.member).sum()) == len(d.x_test)


def test_records_and_rest_make_up_the_whole_data() -> None:
    data = noisy_data(100)
    records = draw_records(data, 30, np.random.default_rng(0))
    assert int(records.member.sum()) == int((~records.member).sum()) == 30
    whole = torch.cat([records.x, records.x_rest])
    everything = torch.cat([data.x_train, data.x_test])
    assert torch.equal(whole[whole[:, 0].argsort()], everything[everything[:, 0].argsort()])
    assert torch.equal(records.x[records.member], data.x_train[records.rows[records.member]])


def test_a_passed_deadline_stops_before_the_first_references(leaky: Case) -> None:
    late = replace(leaky, deadline=time.monotonic() - 1, shared={})
    with pytest.raises(Limit, match="time limit"):
        run("leakage.lira", late)


def test_blind_scores_have_no_view_of_the_model(leaky: Case) -> None:
    outcome = run("leakage.loss_threshold", leaky)
    pool = records_of(leaky)
    assert outcome.arrays["member"].equal(pool.member)
    assert leaky.shared["leakage.blind"].shape == (len(pool.x),)
    assert blind_scores is not None


# --- regression


def test_membership_of_a_regression() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(240, 10, generator=generator)
    y = (x[:, 0] + torch.randn(240, generator=generator)).double()
    data = Data(x[:120], y[:120], x[120:], y[120:])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1))
    what = Domain(kind="tabular", task="regression", low=-torch.ones(10), high=torch.ones(10))
    start = TorchTarget(module=module, domain=what, training=Training(epochs=80, batch_size=16, rate=5e-3))
    assert start.recipe is not None
    case = case_of(start.recipe.fit(data.x_train, data.y_train, 1), data)
    for attack in ("leakage.loss_threshold", "leakage.lira", "leakage.rmia"):
        auc = value(run(attack, case), "leakage.membership.auc")
        assert auc.value is not None
        assert auc.value > 0.7


# --- inversion


def test_psnr_is_the_textbooks() -> None:
    x, y = torch.zeros(1, 4), torch.full((1, 4), 0.1)
    assert float(psnr(x, y, 1.0)) == pytest.approx(20.0, abs=1e-5)
    assert float(psnr(x, x, 1.0)) == pytest.approx(150.0)


def test_inversion_of_a_linear_model_finds_each_class_beside_the_blind_mean() -> None:
    """Classes far apart: the class means are what the weights point at, and nearer than the mean of all."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(4, 16) * 0.8 + 0.1
    y = torch.arange(400) % 4
    x = (centres[y] + 0.05 * torch.randn(400, 16, generator=generator)).clamp(0, 1).reshape(-1, 1, 4, 4)
    data = Data(x[:200], y[:200], x[200:], y[200:])
    what = Domain(kind="image", task="classification", classes=4, low=0.0, high=1.0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    start = TorchTarget(module=module, domain=what, output="logits", training=Training(epochs=60, rate=1e-2))
    assert start.recipe is not None
    case = case_of(start.recipe.fit(data.x_train, data.y_train, 0), data)
    outcome = run("leakage.inversion", case)
    assert outcome.arrays["reconstructed"].shape == (4, 1, 4, 4)
    rebuilt = outcome.arrays["reconstructed"]
    assert float(rebuilt.min()) >= 0
    assert float(rebuilt.max()) <= 1
    assert case.target.forward(rebuilt).labels.tolist() == [0, 1, 2, 3]
    assert min(outcome.attempt.facts["confidence"]) > 0.5
    for name in ("psnr", "blind_psnr"):
        found = value(outcome, f"leakage.reconstruction.{name}")
        assert found.unit == "dB"
        assert found.n == 4
    pictures = outcome.attempt.exhibits[0].pictures
    assert len(pictures) == 13
    assert outcome.attempt.cost.gradients == 40 * 4
    assert outcome.attempt.cost.queries == 41 * 4


def test_inversion_of_tabular_data_is_shown_as_a_table(leaky: Case) -> None:
    exhibit = run("leakage.inversion", leaky).attempt.exhibits[0]
    assert not exhibit.pictures
    assert len(exhibit.rows) == 3 * CLASSES
    assert len(exhibit.columns) == len(exhibit.rows[0]) == 8
