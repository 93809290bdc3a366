"""The Python face on a linear model, whose distances are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import vauban
from vauban.schema.errors import BadOption, BadThreat, NotOffered

WEIGHT = torch.tensor([[1.0, 2.0, 0.0], [-1.0, -2.0, 0.0]])


def linear() -> nn.Linear:
    net = nn.Linear(3, 2)
    with torch.no_grad():
        net.weight.copy_(WEIGHT)
        net.bias.copy_(torch.tensor([-1.5, 1.5]))
    return net


def points(rows: int = 40) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).random((rows, 3), dtype=np.float32)
    return x, (x @ np.array([1, 2, 0]) - 1.5 < 0).astype(np.int64)


def test_attack_finds_exactly_what_is_within_reach() -> None:
    """In linf a point is broken exactly where |w.x + b| < radius |w|_1, the box permitting; here it always does."""
    x, y = points()
    x = 0.3 + 0.4 * x
    y = (x @ np.array([1, 2, 0]) - 1.5 < 0).astype(np.int64)
    result = vauban.attack("evasion.pgd", vauban.target(linear(), bounds=(0, 1)), x, y, threat="linf:0.1", steps=20)
    reachable = np.abs(x @ np.array([1, 2, 0]) - 1.5) < 0.1 * 3
    assert (result.status == np.where(reachable, "broken", "held")).all()
    assert ((result.margin > 0) == reachable).all()
    assert (result.distance <= 0.1 + 1e-6).all()
    assert result.artefact.x.shape == x.shape
    assert result.cost.gradients > 0


def test_numpy_and_torch_data_and_short_ids_are_the_same() -> None:
    x, y = points()
    one = vauban.attack("evasion.fgsm", linear(), x, y, threat="l2:0.1")
    two = vauban.attack("fgsm", linear(), torch.from_numpy(x), torch.from_numpy(y), threat="l2:0.1")
    assert torch.equal(one.artefact.x, two.artefact.x)


def test_the_model_is_left_as_it_was() -> None:
    net = linear().train()
    x, y = points()
    state = torch.get_rng_state()
    vauban.attack("evasion.apgd", net, x, y, threat="linf:0.05")
    assert net.training
    assert net.weight.grad is None
    assert torch.equal(net.weight, WEIGHT)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("id", "settings", "error"),
    [
        ("leakage.lira", {}, BadOption),
        ("evasion.pgd", {"stepz": 3}, BadOption),
        ("evasion.pgd", {"threat": "linf:7"}, BadThreat),
        ("evasion.feature", {}, NotOffered),
    ],
)
def test_what_cannot_be_done_is_said(id: str, settings: dict, error: type[Exception]) -> None:  # type: ignore[type-arg]
    x, y = points()
    with pytest.raises(error):
        vauban.attack(id, linear(), x, y, **settings)


def test_audit_and_compare(tmp_path: Path) -> None:
    x, y = points(80)
    data = vauban.Data(x[:40], y[:40], x[40:], y[40:])
    how = {"threats": ["linf:0.05"], "include": ["evasion.fgsm", "evasion.noise"], "samples": 20, "profile": "smoke"}
    log = vauban.audit(linear(), data, out=tmp_path / "run", **how)
    assert isinstance(log, vauban.AuditLog)
    assert [a.check for a in log.attempts if a.state == "assessed"] == ["evasion.fgsm", "evasion.noise"]
    kept_nowhere = vauban.audit(linear(), data, **how)
    assert [a.outcomes for a in kept_nowhere.attempts] == [a.outcomes for a in log.attempts]
    assert all(c.difference == 0 for c in vauban.compare(log, tmp_path / "run").changes)


def test_a_whole_audit_of_a_callable_says_what_it_could_not_do() -> None:
    x, y = points()
    net = linear()

    def scores(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return net(torch.from_numpy(np.asarray(rows, dtype=np.float32))).softmax(1).numpy()

    log = vauban.audit(scores, (x, y), include=["evasion"], samples=10, profile="smoke", time_limit="60s")
    states = {a.check: a.state for a in log.attempts}
    assert states["evasion.fgsm"] == "skipped"
    assert states["evasion.cascade"] == "assessed"
    assert log.verdict.not_assessed > 0


def test_substitutes_of_ones_own_go_to_an_attack_and_not_into_an_audit(tmp_path: Path) -> None:
    """The target's own weights as a substitute: what is within reach is broken, by one query each."""
    x, y = points()
    train, own, there = points(80), linear(), vauban.target(linear(), bounds=(0, 1))
    result = vauban.attack("transfer", there, x, y, threat="linf:0.1", train=train, substitutes=[own])
    white = vauban.attack("evasion.pgd", there, x, y, threat="linf:0.1", steps=20)
    assert result.outcomes == white.outcomes
    assert result.outcomes.count("b") > 0
    assert result.cost.gradients == 0
    with pytest.raises(BadOption, match="no report can tell"):
        vauban.audit(
            there, vauban.Data(*train, x, y), settings={"evasion.transfer": {"substitutes": [own]}}, out=tmp_path
        )
