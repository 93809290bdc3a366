"""Several substitutes carry over better than each of them alone, and more candidates better than one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from vauban.attacks.evasion.rehearsal import RECIPES, rehearsed
from vauban.attacks.evasion.substitutes import Ensemble, Lessons, agreement, lessons, ready, trained, wandered
from vauban.attacks.evasion.transfer import Transfer
from vauban.core.attack import EvasionScene
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.engine.oracle import MeteredOracle
from vauban.parts.goals import Misclassify
from vauban.parts.projections import SPACES
from vauban.parts.samples import digits
from vauban.parts.substitute import network
from vauban.parts.training import fit
from vauban.schema.access import Access
from vauban.schema.errors import BadOption
from vauban.targets.torch import TorchTarget

EPS, N = 0.12, 150


class Blunt(torch.nn.Module):
    """Ten scores without a slope."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()[:, :10]


@dataclass(frozen=True)
class Stand:
    target: TorchTarget
    scene: EvasionScene
    oracle: MeteredOracle
    taught: Lessons
    singles: list[Ensemble]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scene_of(target: TorchTarget, x: Tensor, y: Tensor, donors: Tensor) -> tuple[EvasionScene, MeteredOracle]:
    space = SPACES["linf"](0.0, 1.0)
    oracle = MeteredOracle(target, Misclassify(y), space, x, EPS, access=Access.LABELS)
    oracle.begin()
    return EvasionScene(oracle, x, space, EPS, 10, donors), oracle


@pytest.fixture(scope="module")
def stand(_one_thread: None) -> Stand:
    data = digits()
    assert data.x_train is not None
    assert data.y_train is not None
    victim = network((1, 8, 8), 10, torch.tensor(0.0), torch.tensor(1.0), seed=5, variant=1)
    fit(victim, data.x_train, data.y_train, seed=5, epochs=25, batch_size=64, rate=2e-3)
    target = TorchTarget(victim, domain=Domain(task="classification", classes=10), output="logits")
    right = target.forward(data.x_test).labels == data.y_test
    scene, oracle = scene_of(target, data.x_test[right][:N], data.y_test[right][:N], data.x_train)
    rng = Rng(0, N)
    taught = lessons(scene, torch.arange(1000) % N, rng)
    # the target's own architecture is not among them
    modules = [m for i, m in enumerate(trained(scene, taught, 6, 300, rng)) if i % 3 != 1]
    return Stand(target, scene, oracle, taught, [ready([m], scene) for m in modules])


def carried(stand: Stand, ensemble: Ensemble) -> float:
    (loss,) = stand.oracle.goal.objectives("margin")
    attack = RECIPES["pgd"](steps=10, loss="margin")
    rows = torch.arange(N)
    points = rehearsed(attack, stand.scene, ensemble, loss, rows, Rng(0, N))
    return float((stand.target.forward(points).labels != stand.oracle.goal.labels).double().mean())


def test_several_substitutes_beat_each_of_them(stand: Stand) -> None:
    alone = [carried(stand, one) for one in stand.singles]
    every = carried(stand, Ensemble(tuple(one.members[0] for one in stand.singles), "logits"))
    assert every > max(alone), (every, alone)
    assert min(alone) > 0.02


def test_a_walk_keeps_what_was_learnt_and_goes_somewhere(stand: Stand) -> None:
    start = stand.singles[0]
    before = agreement(start, stand.taught)
    assert before is not None
    module = start.members[0][0].requires_grad_(True)
    walk = wandered(module, stand.taught, 4, 0.05, seed=0)
    module.requires_grad_(False)
    kept = [agreement(Ensemble(((one,),), "logits"), stand.taught) for one in walk]
    assert len(walk) == 4
    assert min(k for k in kept if k is not None) > before - 0.2
    first = [next(iter(one.parameters())).flatten() for one in (module, *walk)]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(first))


def test_more_candidates_break_more(stand: Stand) -> None:
    broken = []
    for candidates in (1, 4):
        scene, oracle = scene_of(stand.target, stand.scene.x, stand.oracle.goal.labels, stand.taught.x)
        made = Transfer(candidates=candidates, substitutes=[one.members[0][0] for one in stand.singles])
        found = made(scene, Rng(0, N))
        assert len(found.facts["carried_over"]) == candidates
        assert sum(found.facts["carried_over"]) == int(oracle.best.reached.sum())
        assert int(oracle.spent.queries.max()) == 1 + candidates
        broken.append(int(oracle.best.reached.sum()))
    assert broken[1] > broken[0]


@pytest.mark.parametrize("wrong", [torch.nn.Linear(64, 7), Blunt()], ids=["classes", "slope"])
def test_a_substitute_that_is_of_no_use_is_named(stand: Stand, wrong: torch.nn.Module) -> None:
    scene, oracle = scene_of(stand.target, stand.scene.x, stand.oracle.goal.labels, stand.taught.x)
    module = torch.nn.Sequential(torch.nn.Flatten(), wrong)
    before = oracle.spent.queries.clone()
    with pytest.raises(BadOption, match="Number 1 of the substitutes"):
        Transfer(substitutes=[stand.singles[0].members[0][0], module])(scene, Rng(0, N))
    assert torch.equal(oracle.spent.queries, before)


def test_numbers_of_double_length_are_moved_in_double_length(stand: Stand) -> None:
    scene, oracle = scene_of(stand.target, stand.scene.x.double(), stand.oracle.goal.labels, stand.taught.x)
    made = Transfer(substitutes=[one.members[0][0] for one in stand.singles], candidates=1)
    found = made(scene, Rng(0, N)).x
    assert found.dtype == torch.float64
    assert bool(oracle.best.reached.any())
    assert float((found - scene.x).abs().max()) <= EPS
