"""The search for few features against every choice of few features."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from vauban.attacks.evasion.exchange import exchange
from vauban.attacks.evasion.fmn import FMN
from vauban.attacks.evasion.nearest import Nearest
from vauban.attacks.evasion.sigma_zero import SigmaZero
from vauban.core.attack import EvasionScene
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.engine.oracle import MeteredOracle
from vauban.parts.goals import Misclassify
from vauban.parts.projections import SPACES
from vauban.targets.torch import TorchTarget

D, ROWS, MOST = 12, 40, 3


def scene_of(box: bool = True) -> tuple[EvasionScene, TorchTarget]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(D, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    for part in (net[0], net[2]):
        part.weight.data *= 3
    target = TorchTarget(net, domain=Domain(task="classification", classes=3), output="logits")
    x = torch.rand(ROWS, D)
    with torch.no_grad():
        y = net(x).argmax(1)
    space = SPACES["l0"](0.0, 1.0) if box else SPACES["l0"]()
    oracle = MeteredOracle(target, Misclassify(y), space, x, float("inf"), nearest=True)
    oracle.begin()
    return EvasionScene(oracle, x, space, float("inf"), 3), target


def fewest(scene: EvasionScene, target: TorchTarget) -> Tensor:
    """The smallest number of features of which some are at a wall in another class; MOST + 1 where more are needed."""
    found = torch.full((ROWS,), MOST + 1)
    for count in range(MOST, 0, -1):
        for which in itertools.combinations(range(D), count):
            for walls in itertools.product((0.0, 1.0), repeat=count):
                z = scene.x.clone()
                z[:, which] = torch.tensor(walls)
                with torch.no_grad():
                    wrong = target.forward(z).labels != scene.oracle.goal.labels
                found[wrong] = count
    return found


@pytest.mark.parametrize("attack", [SigmaZero(steps=400), FMN(steps=400)], ids=["sigma_zero", "fmn"])
def test_no_choice_of_features_is_smaller(attack: SigmaZero | FMN) -> None:
    scene, target = scene_of()
    attack(scene, Rng(0, ROWS))
    count = (scene.oracle.best.x != scene.x).sum(1)
    best = fewest(scene, target)
    assert len(best.unique()) > 2
    assert int((count.clamp_max(MOST + 1) > best).sum()) <= 1


@pytest.mark.parametrize("box", [True, False], ids=["box", "open"])
def test_only_successes_with_fewer_features_are_kept(box: bool) -> None:
    scene, target = scene_of(box)
    found = Nearest(scene)
    far = (scene.x < 0.5).float() if box else scene.x + 5 * torch.randn(ROWS, D)
    rows = torch.arange(ROWS)
    found.see(far, rows, scene.oracle.margins(far, rows))
    begun = found.distance.isfinite()
    assert 0 < int(begun.sum()) < ROWS
    exchange(scene, found, 150, Rng(0, ROWS))
    hit = found.distance.isfinite()
    # rows without a success find one, too
    assert bool(hit.all())
    assert float(found.distance.mean()) < D / 3
    assert torch.equal((found.x != scene.x).sum(1).double(), found.distance)
    with torch.no_grad():
        answers = target.forward(found.x).labels
    assert bool((answers != scene.oracle.goal.labels).all())
    assert bool(found.x.isfinite().all())
    if box:
        assert bool(((found.x >= 0) & (found.x <= 1)).all())
