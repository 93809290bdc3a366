"""The examiner: verified outcomes, honest states, doubts that fire where they should and nowhere else."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vauban
from vauban.core.data import Data
from vauban.core.target import Domain
from vauban.domains.catalog import modality
from vauban.engine.case import Case, Check, Outcome
from vauban.engine.curve import joined
from vauban.engine.doubts import contradictions
from vauban.engine.evasion import goal_for, run
from vauban.engine.execute import execute
from vauban.schema.access import Access
from vauban.schema.log import Attempt
from vauban.schema.threat import Budget, Room, ThreatModel
from vauban.targets.torch import TorchTarget

DOMAIN = Domain(kind="tabular", task="classification", classes=3, low=-4.0, high=4.0)


class Rounded(nn.Module):
    """No gradient gets through."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x * 8) / 8


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * torch.randn_like(x)


def _case(front: nn.Module | None = None, back: nn.Module | None = None, n: int = 40, **options: object) -> Case:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 6, generator=generator)
    layer = nn.Linear(6, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(3, 6, generator=generator))
        layer.bias.zero_()
    y = layer(x).argmax(1).detach()
    module = nn.Sequential(*[m for m in (front, layer, back) if m is not None])
    target = TorchTarget(module, id="toy", domain=DOMAIN)
    return Case(target=target, data=Data(x_test=x, y_test=y), domain=DOMAIN, modality=modality("tabular"), **options)  # type: ignore[arg-type]


def _threat(radius: float = 0.4, **changes: object) -> ThreatModel:
    return ThreatModel.of(f"linf:{radius}").model_copy(update=changes)


def _run(case: Case, attack: str = "evasion.pgd", threat: ThreatModel | None = None, **settings: object) -> Outcome:
    return execute(Check(attack, threat or _threat(), settings), case)


def _flags(outcome: Outcome) -> set[str]:
    return {d.id for d in outcome.attempt.doubts if d.verdict == "fail"}


def test_outcomes_agree_with_the_closed_form() -> None:
    case = _case()
    target = case.target
    assert isinstance(target, TorchTarget)
    layer = target.module[0]  # type: ignore[index]
    scores = layer(case.data.x_test)
    y = case.data.y_test
    gap = scores.gather(1, y[:, None]) - scores
    dual = (layer.weight[y][:, None] - layer.weight[None]).abs().sum(2)
    optimum = (gap / dual.clamp_min(1e-9)).masked_fill(torch.eye(3, dtype=torch.bool)[y], torch.inf).amin(1)
    outcome = _run(case, "evasion.apgd", steps=60)
    for letter, distance in zip(outcome.attempt.outcomes, optimum.tolist(), strict=True):
        if distance < 0.4 / 1.01:
            assert letter == "b"
        if distance > 0.4 * 1.0001:
            assert letter == "h"
    broken = outcome.attempt.outcomes.count("b")
    assert 0 < broken < 40
    measured = outcome.attempt.measurement("evasion.robust_accuracy")
    assert measured is not None
    assert measured.value == pytest.approx(1 - broken / 40)
    assert outcome.arrays["x"].shape == (broken, 6)
    assert _flags(outcome) == set()


def test_a_cascade_leaves_nothing_open_on_a_linear_model() -> None:
    """Attack and proof meet: every sample is broken or certified, and the attempt says how many were proved."""
    outcome = _run(_case(), "evasion.cascade", tier="screen")
    letters = outcome.attempt.outcomes
    assert set(letters) <= {"w", "b", "c"}
    assert letters.replace("c", "h") == _run(_case(), "evasion.apgd").attempt.outcomes
    proved = outcome.attempt.measurement("evasion.certified_accuracy")
    assert proved is not None
    assert proved.value == pytest.approx(letters.count("c") / 40)
    assert letters.count("c") > 0
    assert [stage["stage"] for stage in outcome.attempt.facts["stages"]] == ["evasion.pgd", "proof"]


def test_a_cascade_proves_answers_of_an_estimator_with_one_score() -> None:
    """Two classes in float64, told apart by the sign of one score."""
    from sklearn.neural_network import MLPClassifier

    g = np.random.default_rng(0)
    x = g.uniform(0, 1, (80, 4)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] > 1).astype(np.int64)
    estimator = MLPClassifier((8,), solver="lbfgs", random_state=0).fit(x.astype(np.float64), y)
    data = Data(x[:40], y[:40], x[40:], y[40:])
    target = vauban.target(estimator, bounds=(0, 1))
    log = vauban.audit(target, data, threats=["linf:0.02"], include=["evasion.cascade"], profile="smoke")
    (attempt,) = [a for a in log.attempts if a.check == "evasion.cascade"]
    assert attempt.state == "assessed", attempt.reason
    assert attempt.outcomes.count("c") > 20


def _nearest(case: Case) -> Tensor:
    """The known distance of the nearest other answer of the linear model, in Linf, without a box."""
    layer, y = case.target.module[0], case.data.y_test  # type: ignore[attr-defined]
    scores = layer(case.data.x_test)
    gap = scores.gather(1, y[:, None]) - scores
    dual = (layer.weight[y][:, None] - layer.weight[None]).abs().sum(2)
    return (
        (gap / dual.clamp_min(1e-9)).masked_fill(torch.eye(3, dtype=torch.bool)[y], torch.inf).amin(1).double().detach()
    )


@pytest.mark.parametrize("batch", [None, 7])
def test_one_search_gives_the_whole_security_curve(batch: int | None) -> None:
    case = _case(batch_size=batch)
    truth = _nearest(case)
    attempt = _run(case, "evasion.cascade", tier="standard").attempt
    (curve,) = (c for c in attempt.curves if c.id == "security_curve")
    for radius, accuracy in zip(curve.series[0].x, curve.series[0].y, strict=True):
        assert accuracy is not None
        # never below the truth, and within one percent of the radius of it
        assert (
            float((truth > radius * 1.0001).double().mean())
            <= accuracy
            <= float((truth > radius / 1.01).double().mean())
        )
    middle = attempt.measurement("evasion.nearest_median")
    assert middle is not None
    assert middle.value == pytest.approx(float(truth.sort().values[19:21].mean()), rel=0.01)


def test_what_the_search_without_a_radius_breaks_within_it_is_broken() -> None:
    """A run that held everything is put right by the nearest successes that lie inside."""
    case, threat = _case(), _threat()
    check = Check("evasion.cascade", threat)
    near = run(check, case, radius=torch.inf)
    weak = run(Check("evasion.noise", threat, {"draws": 1}), case)
    assert weak.outcomes.count("b") < near.outcomes.count("b")
    goal = goal_for(case, "untargeted")
    space = case.modality.space("linf", case.domain)
    both = joined(weak, near, goal, space, 0.4, case)
    inside = _nearest(case)
    for letter, distance in zip(both.outcomes, inside.tolist(), strict=True):
        assert letter == ("b" if distance < 0.4 / 1.01 else "h") or 0.4 / 1.01 <= distance <= 0.4001
    hit = torch.tensor([letter == "b" for letter in both.outcomes])
    assert (case.target.forward(both.x).labels != case.data.y_test)[hit].all()
    assert (both.distance[hit] <= 0.4 * 1.0001).all()
    assert (both.verified.broken == hit).all()


def test_attacks_that_aim_at_features_are_not_measured_by_one_step_of_the_margin() -> None:
    doubts = _run(_case(), "evasion.feature", steps=20).attempt.doubts
    assert not any(d.id in ("one_step_beats", "convergence") for d in doubts)


def test_a_cascade_says_why_it_could_not_prove() -> None:
    attempt = _run(_case(front=Rounded()), "evasion.cascade", tier="screen").attempt
    assert "c" not in attempt.outcomes
    assert attempt.measurement("evasion.certified_accuracy") is None
    assert any(text.startswith("nothing was proved: ") for text in attempt.caveats)


def test_an_attack_alone_proves_nothing() -> None:
    attempt = _run(_case(), "evasion.pgd").attempt
    assert attempt.measurement("evasion.certified_accuracy") is None
    assert not any("proved" in text for text in attempt.caveats)


def test_results_do_not_depend_on_the_batch() -> None:
    whole = _run(_case())
    for size in (1, 7):
        part = _run(_case(batch_size=size))
        assert part.attempt.outcomes == whole.attempt.outcomes
        assert torch.equal(part.arrays["x"], whole.arrays["x"])
        assert part.attempt.measurements == whole.attempt.measurements


def test_a_blocked_gradient_is_noticed() -> None:
    outcome = _run(_case(front=Rounded()))
    doubt = next(d for d in outcome.attempt.doubts if d.id == "zero_gradient")
    assert doubt.value == 1.0
    assert doubt.verdict == "warn"  # answered: the attack went through
    assert any("BPDA" in text for text in outcome.attempt.caveats)
    plain = _run(_case())
    assert outcome.attempt.outcomes.count("b") >= 0.9 * plain.attempt.outcomes.count("b")


def test_a_gradient_that_cannot_be_had_stays_a_failure() -> None:
    class Numpy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(np.round(x.detach().numpy()[:, :4] * 8) / 8 @ np.ones((4, 6), np.float32))

    assert "no_graph" in _flags(_run(_case(front=Numpy())))


def test_a_random_model_is_noticed_and_averaged() -> None:
    outcome = _run(_case(front=Noisy()))
    assert [d.verdict for d in outcome.attempt.doubts if d.id == "randomness"] == ["warn"]  # answered by the mean
    assert any("EOT" in text for text in outcome.attempt.caveats)


def test_probabilities_are_noticed() -> None:
    doubts = _run(_case(back=nn.Softmax(1))).attempt.doubts
    assert any(d.id == "softmax_output" and d.verdict == "warn" for d in doubts)


def test_missing_rights_are_skips_with_a_reason_not_passes() -> None:
    attempt = _run(_case(), threat=_threat(access=Access.LABELS)).attempt
    assert attempt.state == "skipped"
    assert "gradients" in attempt.reason
    assert attempt.measurements == []


def test_a_space_or_task_that_an_attack_does_not_know_is_not_applicable() -> None:
    attempt = _run(_case(), "evasion.apgd_targeted", _threat(room=Room.parse("l0:3"))).attempt
    assert attempt.state == "not_applicable"


class Jumps(nn.Module):
    """Moves the clock forward by an hour once so many forward passes were made."""

    def __init__(self, passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.left, self.clock, self.patch = passes, time.monotonic, monkeypatch

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            self.patch.setattr(time, "monotonic", lambda: self.clock() + 3600)
        return x


def test_time_that_ends_amid_a_cascade_leaves_broken_and_unknown_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    case = _case()
    full = _run(case, "evasion.cascade", proofs=False).attempt
    cut = _case(front=Jumps(500, monkeypatch), deadline=time.monotonic() + 1800)
    attempt = _run(cut, "evasion.cascade", proofs=False).attempt
    assert attempt.state == "inconclusive"
    assert set(attempt.outcomes) == {"b", "u"}
    assert all(there == "b" for here, there in zip(attempt.outcomes, full.outcomes, strict=True) if here == "b")
    robust = attempt.measurement("evasion.robust_accuracy")
    assert robust is not None
    assert (robust.value, robust.low, robust.high) == (None, 0.0, attempt.outcomes.count("u") / 40)
    assert not [c for c in attempt.curves if c.id == "security_curve"]


def test_time_that_ran_out_is_inconclusive_and_says_how_far_it_came() -> None:
    late = _run(_case(deadline=time.monotonic() - 1)).attempt
    assert late.state == "inconclusive"
    assert "time" in late.reason


def test_a_query_budget_limits_every_sample() -> None:
    attempt = _run(_case(), "evasion.pgd", _threat(budget=Budget(queries=5))).attempt
    assert attempt.state == "assessed"
    assert attempt.cost.queries <= 5 * 40


def test_an_error_in_the_model_is_a_state_not_a_crash_and_never_a_pass() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("out of order")

    attempt = _run(_case(front=Broken())).attempt
    assert attempt.state == "error"
    assert "out of order" in attempt.reason


def test_targeted_runs_reach_a_drawn_class() -> None:
    outcome = _run(_case(), threat=_threat(1.5, goal="targeted"))
    case = _case()
    rows = outcome.arrays["rows"]
    assert len(rows)
    answers = case.target.forward(outcome.arrays["x"]).labels
    assert (answers != case.data.y_test[rows]).all()


def test_regression_counts_predictions_that_leave_the_tolerance() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=generator)
    layer = nn.Linear(4, 1)
    y = layer(x)[:, 0].detach().to(torch.float64)
    domain = Domain(kind="tabular", task="regression", low=-5.0, high=5.0)
    target = TorchTarget(layer, id="line", domain=domain)
    case = Case(target=target, data=Data(x_test=x, y_test=y), domain=domain, modality=modality("tabular"))
    need = 0.2 / float(layer.weight.detach().abs().sum())
    over = _run(case, threat=_threat(round(need * 1.02, 6)), tolerance=0.2).attempt
    assert set(over.outcomes) == {"b"}
    assert any(text.startswith("a prediction counts as right where it lies within 0.2 of") for text in over.caveats)
    assert set(_run(case, threat=_threat(round(need * 0.98, 6)), tolerance=0.2).attempt.outcomes) == {"h"}


def test_a_weaker_attack_that_wins_is_a_contradiction() -> None:
    attempts = [
        Attempt(check="evasion.pgd", threat="linf:0.1", state="assessed", outcomes="hhhhhhhhbb"),
        Attempt(check="evasion.square", threat="linf:0.1", state="assessed", outcomes="bbhhhhhhbb"),
        Attempt(check="evasion.fgsm", threat="linf:0.1", state="assessed", outcomes="hhhhhhhhbh"),
        Attempt(check="evasion.square", threat="l2:1", state="assessed", outcomes="bbhhhhhhbb"),
    ]
    gradient = Access.LABELS | Access.GRADIENTS
    cards = {"evasion.pgd": gradient, "evasion.fgsm": gradient, "evasion.square": Access.SCORES}
    found = contradictions(attempts, cards)
    assert [(d.id, d.verdict, d.value) for d in found[1]] == [("black_box_wins", "fail", 2.0)]
    assert [(d.id, d.verdict) for d in found[2]] == [("one_step_wins", "pass")]
    assert 3 not in found


def test_the_model_is_left_as_it_was_found() -> None:
    case = _case(front=nn.Dropout(0.5))
    target = case.target
    assert isinstance(target, TorchTarget)
    target.module.train()
    state = {k: v.clone() for k, v in target.module.state_dict().items()}
    random = torch.random.get_rng_state()
    _run(case)
    assert target.module.training
    assert all(p.grad is None for p in target.module.parameters())
    assert all(torch.equal(v, state[k]) for k, v in target.module.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in target.module.modules())


def test_exhibits_show_only_what_survives_saving() -> None:
    case = _case()
    case = replace(case, domain=replace(DOMAIN, step=0.25))
    outcome = _run(case, threat=_threat(0.5))
    for exhibit in outcome.attempt.exhibits:
        assert exhibit.rows
    assert any("survive rounding" in text for text in outcome.attempt.caveats)
