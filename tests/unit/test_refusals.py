"""A class by which a model refuses: no success for an attacker, no right answer, no target."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vauban
from vauban.core.data import Data
from vauban.core.target import Domain, Outputs
from vauban.domains.catalog import modality, settle
from vauban.engine.case import Case, Check
from vauban.engine.evasion import examine, goal_for
from vauban.engine.preflight import preflight
from vauban.parts.goals import Firmly, Misclassify, MisclassifyOutright, misclassify, shunned
from vauban.schema.errors import BadData
from vauban.schema.threat import ThreatModel
from vauban.targets.torch import TorchTarget


class Between(nn.Module):
    """Class 0 below 0.4 and class 1 above 0.6, by the first feature; in between it refuses by class 2."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, x: Tensor) -> Tensor:
        away = (x[:, 0] - 0.5) * self.scale
        return torch.stack([-away, away, torch.full_like(away, 2.0)], 1)


def target(**facts: object) -> TorchTarget:
    domain = Domain(kind="tabular", task="classification", low=0.0, high=1.0, refusal=2)
    return TorchTarget(Between(), "between", replace(domain, **facts), "logits")  # type: ignore[arg-type]


# of class 0: far below, near below, in the gap; of class 1: far above, near above, in the gap
X = torch.tensor([[0.1, 0.0], [0.35, 0.0], [0.5, 0.0], [0.9, 0.0], [0.65, 0.0], [0.55, 0.0]])
Y = torch.tensor([0, 0, 0, 1, 1, 1])
ATTACKS = ["evasion.apgd", "evasion.apgd_targeted", "evasion.pgd", "evasion.fgsm", "evasion.square"]


@pytest.mark.parametrize("id", ATTACKS)
@pytest.mark.parametrize(("radius", "broken"), [(0.2, ""), (0.3, "14"), (0.9, "0134")])
def test_only_wrong_answers_that_are_given_count(id: str, radius: float, broken: str) -> None:
    """From 0.35 the answer is refused from 0.4 on, and wrong from 0.6 on; rows in the gap are no right answers to begin with."""
    result = vauban.attack(id, target(), X, Y, threat=f"linf:{radius}")
    expected = "".join("w" if i in (2, 5) else "b" if str(i) in broken else "h" for i in range(6))
    assert result.outcomes == expected
    with torch.no_grad():
        labels = target().forward(result.artefact.x).labels
    hit = torch.tensor([letter == "b" for letter in result.outcomes])
    assert bool((labels[hit] == 1 - Y[hit]).all())


def test_a_model_that_does_not_say_so_is_found_out_and_judged_alike() -> None:
    """Its third class has no rows, and lies between the others."""
    result = vauban.attack("evasion.apgd", target(refusal=None), X, Y, threat="linf:0.2")
    assert result.outcomes == "hhwhhw"


def case(**facts: object) -> Case:
    data = Data(X, Y, X, Y)
    made, _, _ = preflight(target(**facts), data, settle(target(**facts).domain, data))
    return Case(made, data, made.domain, modality("tabular"))


def test_goals_and_wanted_classes_leave_the_refusal_out() -> None:
    here = case()
    assert isinstance(goal_for(here, "untargeted"), MisclassifyOutright)
    assert torch.equal(goal_for(here, "targeted").labels, 1 - Y)
    wide = replace(here, domain=replace(here.domain, classes=5, refusal=1), data=replace(here.data, y_test=Y * 3))
    for seed in range(5):
        wanted = goal_for(replace(wide, seed=seed), "targeted").labels
        assert set(wanted.tolist()) <= {0, 2, 3, 4}
        assert bool((wanted != Y * 3).all())


def test_the_goal_that_shuns_a_class() -> None:
    goal = misclassify(torch.tensor([0, 1]), 2)
    outputs = Outputs(torch.tensor([[1.0, 0.0, 3.0], [4.0, 1.0, 2.0]]), "logits")
    assert goal.margin(outputs, torch.arange(2)).tolist() == [-3.0, 2.0]
    assert type(misclassify(torch.tensor([0]), None)) is Misclassify
    assert shunned(goal) == shunned(Firmly(goal, 1.0)) == 2
    assert shunned(Misclassify(torch.tensor([0]))) is None


def test_false_alarms_are_told() -> None:
    outcome = examine(Check("evasion.apgd", ThreatModel.of("linf:0.2")), case())
    told = [text for text in outcome.attempt.caveats if "refuses" in text]
    assert told == [
        "the model refuses 2 of 6 clean inputs (false alarms), which counts as no right answer; to be refused is no success of "
        "the attacker"
    ]
    clean = outcome.attempt.measurement("evasion.clean_accuracy")
    assert clean is not None
    assert clean.value == pytest.approx(4 / 6)
    assert not any(doubt.id == "abstain_class" for doubt in outcome.attempt.doubts)


def test_preflight_knows_the_class_that_has_no_rows() -> None:
    data = Data(X, Y, X, Y)
    made, doubts, facts = preflight(target(), data, settle(target().domain, data))
    by_id = {doubt.id: doubt for doubt in doubts}
    assert by_id["classes"].verdict == "pass"
    assert by_id["classes"].text == "The model has 2 classes and one for refusing; 2 of them occur in the test rows."
    assert by_id["refusals"].value == facts["refused_clean"] == pytest.approx(2 / 6)
    assert made.domain.classes == 3
    assert made.domain.true_classes == 2
    silent, doubts, facts = preflight(target(refusal=None), data, settle(target(refusal=None).domain, data))
    assert {doubt.id: doubt for doubt in doubts}["classes"].verdict == "warn"
    assert "refused_clean" not in facts
    assert silent.domain.true_classes == 3


def test_a_label_that_is_the_refusal_is_refused() -> None:
    y = torch.tensor([0, 0, 2, 1, 1, 1])
    with pytest.raises(BadData, match="by which the model refuses to answer"):
        preflight(target(), Data(X, Y, X, y), settle(target().domain, Data(X, Y, X, y)))
    assert np.array_equal(np.unique(y.numpy()), [0, 1, 2])


def test_that_far_points_are_refused_is_a_warning_and_no_failure() -> None:
    """With all the room there is an attack ends where the model refuses, as it should."""

    class Near(nn.Module):
        """Refuses all that is further than 0.3 from the middle; the classes meet beyond that."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(20.0))

        def forward(self, x: Tensor) -> Tensor:
            side = (x[:, 0] - 0.95) * self.scale
            far = (x - 0.5).abs().amax(1) - 0.3
            return torch.stack([-side, side, 100 * far * self.scale], 1)

    x = 0.5 + 0.2 * torch.rand(20, 2, generator=torch.Generator().manual_seed(0))
    data = Data(x, torch.arange(20) % 3, x, torch.zeros(20, dtype=torch.int64))
    known = replace(data, y_train=torch.arange(20) % 2)
    for refusal, rows, verdict in ((2, known, "warn"), (None, data, "pass")):
        domain = replace(target().domain, refusal=refusal, classes=3)
        made = Case(TorchTarget(Near(), "near", domain, "logits"), rows, domain, modality("tabular"))
        attempt = examine(Check("evasion.apgd", ThreatModel.of("linf:0.1")), made).attempt
        doubts = {doubt.id: doubt for doubt in attempt.doubts}
        assert doubts["unbounded"].verdict == verdict, doubts["unbounded"].text
