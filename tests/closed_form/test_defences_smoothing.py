"""The voting defence against the vote written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from vauban.core.crew import ALONE
from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.defences.certify.smoothing import RandomisedSmoothing, Smoothed
from vauban.targets.torch import TorchTarget


@dataclass
class Context:
    radius: float | None = None
    space: Any = None
    store: Any = None
    crew: Any = ALONE
    diary: Any = None

    def attack(self, id: str, **settings: Any) -> Any:
        raise AssertionError

    def progress(self, done: int, total: int, text: str = "") -> None: ...


def data() -> Data:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(240) % 3
    x = 0.15 * torch.randn(240, 4, generator=g) + torch.eye(4)[y]
    return Data(x[:180], y[:180], x[180:], y[180:])


def network(softmax: bool = False) -> TorchTarget:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), *([nn.Softmax(1)] if softmax else [])]
    domain = Domain(task="classification", classes=3)
    return TorchTarget(nn.Sequential(*layers), "m", domain, "probabilities" if softmax else "logits")


def smoothed(target: TorchTarget, **settings: Any) -> Any:
    return RandomisedSmoothing(sigma=0.3, **settings)(target, data(), Rng(1), Context()).target


@pytest.mark.parametrize("softmax", [False, True])
def test_answers_are_shares_of_votes_and_ties_go_to_the_likelier_class(softmax: bool) -> None:
    target, x = network(softmax), data().x_test
    made = smoothed(target, draws=6)
    noise = made.module.noise
    assert noise.shape == (6, 4)
    with torch.no_grad():
        each = torch.stack([target.forward(x + pattern).values for pattern in noise])
        shares = each if softmax else each.softmax(2)
        counts = torch.stack([(each.argmax(2) == c).sum(0) for c in range(3)], 1)
        answer = made.forward(x).values
    expected = (counts + shares.mean(0)) / 7
    torch.testing.assert_close(answer if softmax else answer.exp(), expected, atol=1e-6, rtol=1e-5)
    assert bool((counts.gather(1, answer.argmax(1)[:, None])[:, 0] == counts.amax(1)).all())


def test_gradients_are_those_of_the_mean_softmax() -> None:
    target, x = network(), data().x_test[:10]
    made = smoothed(target, draws=5)

    def slope(answer: Any) -> Tensor:
        leaf = x.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(answer(leaf)[:, 1].sum(), leaf)
        return g

    def soft(z: Tensor) -> Tensor:
        return torch.stack([target.forward(z + pattern).values.softmax(1) for pattern in made.module.noise]).mean(0)

    torch.testing.assert_close(
        slope(lambda z: made.forward(z).values), slope(lambda z: soft(z).log()), atol=1e-6, rtol=1e-4
    )


def test_features_are_the_mean_over_the_noise() -> None:
    target, x = network(), data().x_test[:7]
    made = smoothed(target, draws=3)
    with torch.no_grad():
        found = made.forward_features(x)[1]
        expected = torch.stack([target.forward_features(x + pattern)[1] for pattern in made.module.noise]).mean(0)
    torch.testing.assert_close(found, expected)


def test_training_with_noise_makes_the_vote_surer() -> None:
    rows = data()
    target = network()
    plain, taught = smoothed(target, draws=3), smoothed(target, draws=3, epochs=30, rate=1e-2)
    before, after = (m.certify(rows.x_test[:20], Rng(0, 20), n=400, select=50) for m in (plain, taught))
    right = [(c.labels == rows.y_test[:20]).sum() for c in (before, after)]
    assert right[1] > right[0]
    assert right[1] >= 18


def test_certificates_speak_of_the_model_without_the_fixed_noise() -> None:
    """The vote's own copies are no part of the certificate: another vote, the same certificate."""
    x = data().x_test[:5]
    target = network()
    few, many = (smoothed(target, draws=d).certify(x, Rng(0, 5), n=300) for d in (2, 9))
    assert torch.equal(few.radius, many.radius)
    assert torch.equal(few.labels, many.labels)


def test_no_change_within_the_radius_turns_a_certified_answer() -> None:
    rows, target = data(), network()
    made = smoothed(target, draws=3, epochs=20, rate=1e-2)
    x = rows.x_test[:30]
    found = made.certify(x, Rng(0, 30), n=2000)
    sure = ~found.abstained
    assert int(sure.sum()) > 20
    z = x.clone().requires_grad_(True)
    wide = Smoothed(
        made.base.clone(), 0.3 * torch.randn(2000, 4, generator=torch.Generator().manual_seed(5)), made.module.read
    ).eval()
    away = wide(z).gather(1, found.labels.clamp_min(0)[:, None]).sum()
    (g,) = torch.autograd.grad(-away, z)
    step = g / g.norm(dim=1, keepdim=True).clamp_min(1e-12)
    moved = x + 0.98 * found.radius.to(x)[:, None] * step
    with torch.no_grad():
        assert bool((wide(moved).argmax(1) == found.labels)[sure].all())


def test_copies_of_the_module_share_the_reader_and_not_the_target() -> None:
    made = smoothed(network(), draws=2)
    copy = made.clone()
    assert copy.read is made.module.read
    assert copy.model is not made.module.model


@pytest.mark.parametrize("softmax", [False, True])
def test_a_vote_that_shows_too_little_is_refused(softmax: bool) -> None:
    """As the two-sided binomial test of the first two classes says, for every vote."""
    target = network(softmax)
    x = 2 * torch.randn(300, 4, generator=torch.Generator().manual_seed(3))
    plain, made = smoothed(target, draws=20), smoothed(target, draws=20, abstain=0.01)
    assert torch.equal(plain.module.noise, made.module.noise)
    first, second = plain.module.counts(x).topk(2, 1).values.T.tolist()
    shown = [binomtest(a, a + b, 0.5).pvalue <= 0.01 for a, b in zip(first, second, strict=True)]
    refuses = torch.tensor(shown).logical_not()
    assert 20 < int(refuses.sum()) < 280
    assert made.domain.classes == 4
    assert made.domain.refusal == 3
    answers = made.forward(x)
    assert torch.equal(answers.labels == 3, refuses)
    assert torch.equal(answers.labels[~refuses], plain.forward(x).labels[~refuses])
    torch.testing.assert_close(
        made.certify(x[:3], Rng(0, 3), n=200).radius, plain.certify(x[:3], Rng(0, 3), n=200).radius
    )


def test_an_attacker_sees_how_to_leave_the_refusal() -> None:
    made = smoothed(network(), draws=20, abstain=0.01)
    x = 2 * torch.randn(300, 4, generator=torch.Generator().manual_seed(3))
    z = x[made.forward(x).labels == 3][:20].requires_grad_(True)
    values = made.forward(z).values
    (g,) = torch.autograd.grad((values[:, 3] - values[:, :3].amax(1)).sum(), z)
    assert bool((g.flatten(1).norm(dim=1) > 0).all())
    with torch.no_grad():
        moved = z - 0.3 * g / g.norm(dim=1, keepdim=True)
        assert int((made.forward(moved).labels != 3).sum()) > 10


def test_votes_that_can_show_nothing_are_said_to_be_too_few() -> None:
    with pytest.raises(ValueError, match="would refuse every input, for 5 votes"):
        RandomisedSmoothing(draws=5, abstain=0.001)
    with pytest.raises(ValueError, match="probability from 0"):
        RandomisedSmoothing(abstain=1.0)
