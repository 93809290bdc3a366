"""One battery for every defence in the catalogue, third parties included."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from stages import NETWORKS, pictures, stage, table
from torch import Tensor, nn

from vauban.attacks.catalog import ATTACKS
from vauban.core.crew import ALONE
from vauban.core.data import Data
from vauban.core.defence import Hardened, Restorable
from vauban.core.registry import configure
from vauban.core.rng import Rng
from vauban.core.target import Domain, Outputs
from vauban.defences.catalog import DEFENCES
from vauban.parts.projections import L1, L2, Linf
from vauban.schema.access import Access
from vauban.schema.errors import BadData, BadOption, NotOffered
from vauban.targets.torch import TorchTarget

QUICK: dict[str, dict[str, Any]] = {
    "certify.bands": {"band": 2, "epochs": 2},
    "certify.smoothing": {"draws": 4, "sigma": 0.1},
    "detect.dispersion": {"parts": 2},
    "detect.reconstruction": {"epochs": 2, "width": 4},
    "distill.defensive": {"epochs": 2},
    "distill.robust": {"epochs": 2, "steps": 2, "teaching": 2},
    "preprocess.denoise": {"epochs": 2, "width": 4},
    "preprocess.squeeze": {"bits": 2},
    "privacy.dp_sgd": {"epochs": 2, "batch_size": 16, "noise": 1.0, "accountant": "rdp"},
    "train.awp": {"epochs": 2, "steps": 2, "delay": 0.0},
    "train.crown_ibp": {"epochs": 2},
    "train.cutout": {"epochs": 2},
    "train.fast": {"epochs": 2, "validation": 0.2},
    "train.free": {"epochs": 4, "replays": 2},
    "train.generated": {"epochs": 2, "steps": 2, "rounds": 2},
    "train.ibp": {"epochs": 2},
    "train.mart": {"epochs": 2, "steps": 2},
    "train.mixup": {"epochs": 2},
    "train.multi": {"epochs": 2, "steps": 2, "norms": "l2:0.2"},
    "train.noise": {"epochs": 2, "steps": 2, "copies": 2},
    "train.pgd": {"epochs": 2, "steps": 2},
    "train.robust_trees": {"trees": 3, "depth": 2},
    "train.trades": {"epochs": 2, "steps": 2},
}
"""Settings that take a moment; a defence that is not here runs with its own."""
IDS = DEFENCES.ids()
TRAINED = [name for name in IDS if Access.DATA_READ in DEFENCES.load(name).card.needs]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The work is too small to be shared out."""
    torch.set_num_threads(1)


@dataclass
class Context:
    radius: float | None = 0.1
    space: Any = field(default_factory=lambda: Linf(0.0, 1.0))
    told: list[tuple[int, int]] = field(default_factory=list)
    fail: bool = False
    store: Any = None
    crew: Any = ALONE
    diary: Any = None

    def attack(self, id: str, **settings: Any) -> Any:
        raise AssertionError("no defence of ours asks for an attack")

    def progress(self, done: int, total: int, text: str = "") -> None:
        self.told.append((done, total))
        if self.fail:
            raise KeyboardInterrupt


def defend(id: str, target: Any, data: Data, seed: int = 0, context: Context | None = None, **more: Any) -> Hardened:
    settings = {**QUICK.get(id, {}), **more}
    hardened: Hardened = configure(DEFENCES.load(id), settings)(target, data, Rng(seed), context or Context())
    return hardened


@pytest.mark.parametrize("id", IDS)
def test_the_given_target_is_left_as_it_was(id: str) -> None:
    odd_target, data = stage(id).odd(), pictures()
    rows = data.x_train.clone()
    before = stage(id).snapshot(odd_target)
    hardened = defend(id, odd_target, data)
    assert stage(id).snapshot(odd_target) == before
    assert torch.equal(data.x_train, rows)
    assert hardened.target is not odd_target


@pytest.mark.parametrize("id", TRAINED)
def test_the_given_target_is_left_as_it_was_after_an_interruption(id: str) -> None:
    odd_target = stage(id).odd()
    before = stage(id).snapshot(odd_target)
    with pytest.raises(KeyboardInterrupt):
        defend(id, odd_target, pictures(), context=Context(fail=True))
    assert stage(id).snapshot(odd_target) == before


@pytest.mark.parametrize("id", IDS)
def test_the_new_target_answers_in_the_same_form_and_is_clean(id: str) -> None:
    target, data = stage(id).model(), pictures()
    made = defend(id, target, data).target
    with torch.no_grad():
        old, new = target.forward(data.x_test), made.forward(data.x_test)
    refusal = made.domain.refusal
    if refusal is None:
        assert new.values.shape == old.values.shape
    else:  # one class more, the last, and the others as they were
        assert refusal == old.values.shape[1] == made.domain.true_classes
        assert new.values.shape == (len(old.values), refusal + 1)
        assert torch.equal(new.values[:, :refusal], old.values)
    assert new.kind == old.kind
    assert bool(new.values.isfinite().all())
    assert made.id != target.id
    assert made.id.startswith(target.id)
    stage(id).check_clean(made, target)


@pytest.mark.parametrize("id", IDS)
def test_settling_and_wrapping_keep_the_answers(id: str) -> None:
    target, data = stage(id).model(), pictures()
    made: Any = defend(id, target, data).target
    with torch.no_grad():
        answers = made.forward(data.x_test).values
        assert torch.equal(made.settled(target.domain).forward(data.x_test).values, answers)
        stage(id).check_wrapping(made, data.x_test)
    assert made.settled(target.domain).sha256() == made.sha256()
    assert hasattr(made.settled(target.domain), "softened") == hasattr(made, "softened")


@pytest.mark.parametrize("id", IDS)
def test_one_seed_one_model(id: str) -> None:
    data = pictures()
    first, second = (defend(id, stage(id).model(), data, seed=5).target.sha256() for _ in range(2))
    assert first == second
    if id in TRAINED:
        changed = defend(id, stage(id).model(), data, seed=6).target.sha256() != first
        assert changed == stage(id).seeded


@pytest.mark.parametrize("id", IDS)
def test_saved_weights_can_be_put_back(id: str) -> None:
    data = pictures()
    hardened = defend(id, stage(id).model(), data)
    made: Any = hardened.target
    method = configure(DEFENCES.load(id), QUICK.get(id, {}))
    assert isinstance(method, Restorable)
    again = method.restore(stage(id).model(), data, stage(id).state(hardened))
    assert again.sha256() == made.sha256()
    assert again.id == made.id
    assert again.offers == made.offers
    with torch.no_grad():
        assert torch.equal(again.forward(data.x_test).values, made.forward(data.x_test).values)
    with pytest.raises((RuntimeError, ValueError)):
        method.restore(stage(id).model(), data, {"foreign": torch.zeros(1)})


@pytest.mark.parametrize("id", IDS)
def test_regression_is_defended_where_the_card_says_so(id: str) -> None:
    target, data = stage(id).model("regression"), table("regression")
    card = DEFENCES.load(id).card
    if "regression" not in card.tasks:
        with pytest.raises(NotOffered, match="regression"):
            defend(id, target, data)
        return
    if card.modalities and "tabular" not in card.modalities:
        with pytest.raises(NotOffered, match="pictures"):
            defend(id, target, data)
        return
    made = defend(id, target, data).target
    with torch.no_grad():
        answer = made.forward(data.x_test)
    assert answer.kind == "values"
    assert answer.values.shape == (12,)


@pytest.mark.parametrize("id", IDS)
def test_what_is_no_torch_module_is_refused_in_a_sentence(id: str) -> None:
    @dataclass(frozen=True)
    class Black:
        id: str = "endpoint"
        domain: Domain = field(default_factory=Domain)
        offers: Access = Access.LABELS
        recipe: Any = None

        def forward(self, x: Tensor) -> Outputs:
            return Outputs(torch.zeros(len(x), dtype=torch.int64), "labels")

    with pytest.raises(NotOffered, match=stage(id).refusal):
        defend(id, Black(), pictures())


@pytest.mark.parametrize("id", TRAINED)
def test_without_training_rows_the_user_is_told_to_give_them(id: str) -> None:
    whole = pictures()
    with pytest.raises(BadData, match="give x_train and y_train"):
        defend(id, stage(id).model(), Data(None, None, whole.x_test, whole.y_test))


@pytest.mark.parametrize("id", IDS)
def test_a_recipe_trains_models_of_the_same_kind(id: str) -> None:
    target, data = stage(id).model(**stage(id).recipe_needs), pictures()
    made = defend(id, target, data).target
    assert Access.TRAINING in made.offers
    assert made.recipe is not None
    first, second = (made.recipe.fit(data.x_train, data.y_train, 9) for _ in range(2))
    assert first.sha256() == second.sha256()
    with torch.no_grad():
        assert first.forward(data.x_test).values.shape == (12, 3 + (made.domain.refusal is not None))


@pytest.mark.parametrize("id", IDS)
def test_facts_and_caveats_can_be_written_down(id: str) -> None:
    hardened = defend(id, stage(id).model(), pictures())
    assert json.loads(json.dumps(hardened.facts)) == hardened.facts
    assert hardened.facts
    assert all(text.endswith(".") for text in hardened.caveats)


@pytest.mark.parametrize("id", IDS)
def test_the_card_is_complete(id: str) -> None:
    cls = DEFENCES.load(id)
    card = cls.card
    assert card.id == id
    assert card.sources
    assert card.adaptive, "every defence names the attacks that know it"
    assert set(card.adaptive) <= set(ATTACKS.ids())
    assert set(card.adaptive_settings) <= set(card.adaptive)
    for attack, settings in card.adaptive_settings.items():
        configure(ATTACKS.load(attack), settings)
    assert (cls.__doc__ or "").count("Source:") == 1
    with pytest.raises(BadOption, match="has no setting"):
        configure(cls, {"no_such_setting": 1})


@pytest.mark.parametrize(
    ("id", "settings"),
    [
        ("certify.smoothing", {"sigma": 0.0}),
        ("certify.smoothing", {"draws": 0}),
        ("certify.smoothing", {"epochs": -1}),
        ("train.pgd", {"epochs": 0}),
        ("train.pgd", {"steps": 0}),
        ("train.pgd", {"clean": 1.0}),
        ("train.pgd", {"ramp": 1.5}),
        ("train.pgd", {"rate": 0.0}),
        ("train.pgd", {"weight_decay": -1.0}),
        ("train.robust_linear", {"penalty": 0.0}),
        ("train.robust_trees", {"trees": 0}),
        ("train.robust_trees", {"depth": 0}),
        ("train.robust_trees", {"rate": 1.5}),
        ("train.robust_trees", {"penalty": -1.0}),
        ("train.robust_trees", {"share": 1.5}),
        ("distill.defensive", {"temperature": 1.0}),
        ("distill.defensive", {"epochs": 0}),
        ("distill.defensive", {"rate": -1.0}),
        ("privacy.dp_sgd", {"epsilon": 0.0}),
        ("privacy.dp_sgd", {"noise": 0.0}),
        ("privacy.dp_sgd", {"delta": 1.0}),
        ("privacy.dp_sgd", {"clip": 0.0}),
        ("privacy.dp_sgd", {"batch_size": 0}),
        ("privacy.dp_sgd", {"accountant": "hope"}),
        ("preprocess.squeeze", {"bits": 9}),
        ("preprocess.squeeze", {"median": 1}),
        ("preprocess.squeeze", {"bits": 0}),
    ],
)
def test_settings_that_make_no_sense_are_refused(id: str, settings: dict[str, Any]) -> None:
    with pytest.raises(BadOption, match=f"{id} cannot take these settings"):
        configure(DEFENCES.load(id), settings)


@pytest.mark.parametrize("space", [Linf(0.0, 1.0), L2(0.0, 1.0), L1(0.0, 1.0)], ids=["linf", "l2", "l1"])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_adversarial_training_runs_in_every_space(space: Any, task: str) -> None:
    data = pictures() if task == "classification" else table(task)
    context = Context(radius=0.3, space=space)
    hardened = defend("train.pgd", NETWORKS.model(task), data, context=context, clean=0.5, from_scratch=True)
    assert hardened.facts["space"] == space.name
    assert context.told == [(1, 2), (2, 2)]


@pytest.mark.parametrize("id", ["distill.defensive", "privacy.dp_sgd"])
def test_parameters_that_cannot_be_drawn_anew_are_named(id: str) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.last = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x.flatten(1)) * self.scale

    target = TorchTarget(Odd(), "odd", Domain(task="classification", classes=3), "logits")
    with pytest.raises(NotOffered, match="initialise Odd of odd anew: give a factory"):
        defend(id, target, pictures())
