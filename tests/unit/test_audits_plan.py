"""Plans: everything of a family is named, keys change with what results depend on, families take turns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import vauban
from vauban.attacks.catalog import ATTACKS
from vauban.audits.plan import Request, default_threats, unit_key
from vauban.audits.runner import Ready, left_to_others, prepare, run_identity, seen
from vauban.core.data import Data
from vauban.engine.case import Check
from vauban.schema.access import BLACK_BOX_LABELS, EVERYTHING, Access
from vauban.schema.errors import BadOption, BadThreat, MissingExtra, UnknownName
from vauban.schema.log import Attempt, Cost
from vauban.schema.threat import ThreatModel


def data(rows: int = 60) -> Data:
    rng = np.random.default_rng(0)
    x = rng.random((rows, 6), dtype=np.float32)
    y = (x[:, 0] > 0.5).astype(np.int64)
    return Data(x, y, x[:40], y[:40])


def request(**changes: object) -> Request:
    torch.manual_seed(0)
    target = vauban.target(nn.Linear(6, 2), bounds=(0, 1))
    return replace(Request(target=target, data=data(), profile="smoke", samples=16), **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ready() -> Ready:
    return prepare(request())


def test_the_whole_catalogue_is_in_the_plan(ready: Ready) -> None:
    made, left = {u.check.id for u in ready.plan.units}, {check.id for check in ready.plan.left}
    assert made | left == set(ATTACKS.ids())
    assert "evasion.cascade" in made - left
    assert "evasion.fab" in left - made
    assert all(u.refusal.reason for u in ready.plan.units if u.refusal is not None)
    assert ready.plan.absent == ()


def test_each_evasion_attack_meets_each_threat_that_it_searches(ready: Ready) -> None:
    for name in ATTACKS.ids():
        spaces = set(ATTACKS.load(name).card.spaces)
        checks = [*(u.check for u in ready.plan.units), *ready.plan.left]
        threats = [check.threat for check in checks if check.id == name]
        found = {t.room.space for t in threats if t.room is not None}
        assert found == ({"linf", "l2"} & spaces) if spaces & {"linf", "l2"} else len(threats) == 1


def test_include_and_exclude() -> None:
    plan = prepare(request(include=("evasion.fgsm",), exclude={"evasion.pgd": "slow"})).plan
    reasons = {u.check.id: u.refusal.reason if u.refusal else "" for u in plan.units}
    assert set(plan.absent) == {"leakage", "extraction", "poisoning", "tampering"}
    assert reasons["evasion.fgsm"] == ""
    assert reasons["evasion.pgd"] == "excluded: slow"
    assert reasons["evasion.apgd"].startswith("not asked for")
    assert all(u.check.id == "evasion.fgsm" for u in plan.todo)


def test_an_attack_whose_place_others_take_is_in_a_note_and_can_be_asked_for(ready: Ready) -> None:
    (note,) = left_to_others(ready)
    assert "evasion.cascade" in note
    assert f"{len({check.id for check in ready.plan.left})} other" in note
    for wish in ({"include": ("evasion.fab",)}, {"settings": {"evasion.fab": {"steps": 9}}}):
        plan = prepare(request(**wish)).plan
        assert "evasion.fab" in {u.check.id for u in plan.todo}
    plan = prepare(request(exclude={"evasion.fab": "slow"})).plan
    assert [u.refusal.reason for u in plan.units if u.check.id == "evasion.fab" and u.refusal] == ["excluded: slow"] * 2


def test_without_the_attack_that_stands_for_them_the_others_are_skipped_with_a_reason(ready: Ready) -> None:
    lone = prepare(request(exclude={"evasion.cascade": "slow"}))
    assert left_to_others(lone) == []
    reasons = {u.check.id: u.refusal.reason for u in lone.plan.units if u.refusal}
    assert reasons["evasion.cascade"] == "excluded: slow"
    assert "leaves it to evasion.cascade, not made here: --include evasion.fab" in reasons["evasion.fab"]
    assert lone.plan.estimate.queries < ready.plan.estimate.queries


def test_what_the_profile_leaves_out_can_be_asked_for() -> None:
    left_out = {u.check.id for u in prepare(request()).plan.units if u.refusal and "profile" in u.refusal.reason}
    assert "leakage.lira" in left_out
    assert "leakage.lira" in {u.check.id for u in prepare(request(include=("leakage.lira",))).plan.todo}


def test_families_take_turns_and_nothing_is_lost(ready: Ready) -> None:
    turns = ready.plan.turns()
    assert sorted(u.key for u in turns) == sorted(u.key for u in ready.plan.units)
    done = [u.check.family for u in turns if u.refusal is None]
    assert len(set(done[: len(set(done))])) == len(set(done))


def test_a_key_changes_with_everything_that_a_result_depends_on(ready: Ready) -> None:
    identity = {"target": "t", "data": "d", "profile": "smoke", "seed": 0, "samples": 8, "vauban": "1"}
    check = Check(id="evasion.pgd", threat=ThreatModel.of("linf:0.1"), settings={"steps": 3})
    others = [unit_key(check, {**identity, name: "other"}) for name in identity] + [
        unit_key(replace(check, id="evasion.fgsm"), identity),
        unit_key(replace(check, threat=ThreatModel.of("linf:0.2")), identity),
        unit_key(
            replace(check, threat=ThreatModel(id="linf:0.1", room=check.threat.room, access=BLACK_BOX_LABELS)), identity
        ),
        unit_key(replace(check, settings={"steps": 4}), identity),
        unit_key(check, identity),
    ]
    assert len(set(others)) == len(others)
    assert unit_key(check, dict(reversed(identity.items()))) == others[-1]


def test_limits_and_batch_size_do_not_make_another_run(ready: Ready) -> None:
    same = prepare(request(time_limit=5.0, query_limit=9, batch_size=3, formats=("json",), fail_on="low"))
    assert run_identity(same) == run_identity(ready)
    for change in ({"seed": 1}, {"samples": 8}, {"include": ("evasion",)}, {"profile": "standard"}):
        assert run_identity(prepare(request(**change))) != run_identity(ready)


def test_declared_bounds_make_another_run(ready: Ready) -> None:
    torch.manual_seed(0)
    wider = vauban.target(nn.Linear(6, 2), bounds=(-1, 2))
    assert run_identity(prepare(request(target=wider))) != run_identity(ready)


def test_the_estimate_grows_with_the_samples() -> None:
    small, large = (prepare(request(samples=n, include=("evasion",))).plan.estimate for n in (8, 32))
    assert large.queries == 4 * small.queries
    assert 0 < small.gradients < small.queries


@pytest.mark.parametrize("text", ["linf:0", "linf:-1", "linf:nan", "linf:1.5", "l2:100", "l1:6.5", "tokens:1", "linf"])
def test_rooms_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(BadThreat):
        prepare(request(threats=(ThreatModel.of(text),)))


def test_the_largest_room_that_makes_sense_is_taken() -> None:
    assert prepare(request(threats=(ThreatModel.of("linf:1"),), include=("evasion.fgsm",))).plan.todo


def test_default_rooms() -> None:
    image = Data(None, None, np.zeros((4, 1, 8, 8), np.float32) + np.eye(8, dtype=np.float32), np.array([0, 1, 0, 1]))
    rooms = default_threats(prepare(request()).case.domain, data())
    assert [r.room.space for r in rooms if r.room] == ["linf", "l2"]
    assert rooms[0].room is not None
    assert 0 < rooms[0].room.radius < 0.1
    from vauban.core.target import Domain

    assert [t.id for t in default_threats(Domain(kind="image", low=0.0, high=1.0), image)] == ["linf:0.1", "l2:1"]
    assert [t.id for t in default_threats(Domain(kind="image", low=-1.0, high=1.0), image)] == ["linf:0.2", "l2:2"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"include": ("evasoin",)}, UnknownName),
        ({"exclude": {"evasion.pgdd": "x"}}, UnknownName),
        ({"profile": "quick"}, UnknownName),
        ({"include": ("leakage",), "exclude": {"leakage": "x"}}, BadOption),
        ({"settings": {"evasion.pgd": {"stepz": 1}}}, BadOption),
        ({"settings": {"evasion.pgd": {"steps": -1}}}, BadOption),
        ({"executor": "ray"}, MissingExtra),
        ({"executor": "slurm"}, BadOption),
    ],
)
def test_what_a_request_gets_wrong_is_found_before_anything_is_done(changes: dict, error: type[Exception]) -> None:  # type: ignore[type-arg]
    with pytest.raises(error):
        prepare(request(**changes))


def test_a_model_without_training_rows_is_told_what_it_misses() -> None:
    rows = data()
    plan = prepare(request(data=Data(None, None, rows.x_test, rows.y_test))).plan
    badnets = next(u for u in plan.units if u.check.id == "poisoning.badnets")
    assert badnets.refusal is not None
    assert badnets.refusal.state == "skipped"
    assert "x_train" in badnets.refusal.reason
    assert Access.DATA_WRITE in ATTACKS.load("poisoning.badnets").card.needs


def test_an_attack_saw_what_it_took_of_what_there_was() -> None:
    spent = Attempt(check="evasion.cascade", state="assessed", cost=Cost(queries=3, gradients=2))
    blind = spent.model_copy(update={"cost": Cost(queries=3)})
    scores = Access.LABELS | Access.SCORES
    assert seen(spent, EVERYTHING) == scores | Access.GRADIENTS
    assert seen(blind, scores) == scores
    assert seen(blind, Access.LABELS) == Access.LABELS
