"""One battery for every defence in the catalogue, third parties included."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vauban.attacks.catalog import ATTACKS
from vauban.core.data import Data
from vauban.core.defence import Hardened, Restorable
from vauban.core.registry import configure
from vauban.core.rng import Rng
from vauban.core.target import Domain, Outputs, TorchBacked
from vauban.defences.catalog import DEFENCES
from vauban.parts.projections import L1, L2, Linf
from vauban.schema.access import Access
from vauban.schema.errors import BadData, BadOption, NotOffered
from vauban.targets.torch import TorchTarget, Training

QUICK: dict[str, dict[str, Any]] = {
    "certify.smoothing": {"draws": 4, "sigma": 0.1},
    "detect.dispersion": {"parts": 2},
    "detect.reconstruction": {"epochs": 2, "width": 4},
    "distill.defensive": {"epochs": 2},
    "preprocess.denoise": {"epochs": 2, "width": 4},
    "preprocess.squeeze": {"bits": 2},
    "privacy.dp_sgd": {"epochs": 2, "batch_size": 16, "noise": 1.0, "accountant": "rdp"},
    "train.awp": {"epochs": 2, "steps": 2, "delay": 0.0},
    "train.fast": {"epochs": 2, "validation": 0.2},
    "train.free": {"epochs": 4, "replays": 2},
    "train.ibp": {"epochs": 2},
    "train.mart": {"epochs": 2, "steps": 2},
    "train.multi": {"epochs": 2, "steps": 2, "norms": "l2:0.2"},
    "train.pgd": {"epochs": 2, "steps": 2},
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

    def attack(self, id: str, **settings: Any) -> Any:
        raise AssertionError("no defence of ours asks for an attack")

    def progress(self, done: int, total: int, text: str = "") -> None:
        self.told.append((done, total))
        if self.fail:
            raise KeyboardInterrupt


def pictures() -> Data:
    g = torch.Generator().manual_seed(3)
    y = torch.arange(60) % 3
    x = (0.2 * torch.rand(60, 1, 4, 4, generator=g) + 0.25 * y[:, None, None, None]).clamp(0, 1)
    return Data(x[:48], y[:48], x[48:], y[48:], id="blobs")


def table(task: str) -> Data:
    g = torch.Generator().manual_seed(4)
    x = torch.rand(60, 5, generator=g)
    y = x.sum(1).double() if task == "regression" else (x.sum(1) > 2.5).long()
    return Data(x[:48], y[:48], x[48:], y[48:], id="table")


def network(task: str = "classification", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    if task == "regression":
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 3)
    )


def model(task: str = "classification", training: Training | None = None) -> TorchTarget:
    with torch.random.fork_rng():
        module = network(task)
    domain = Domain(task=task, classes=None if task == "regression" else 3, low=0.0, high=1.0)  # type: ignore[arg-type]
    return TorchTarget(module, "m", domain, None if task == "regression" else "logits", training)


def defend(id: str, target: Any, data: Data, seed: int = 0, context: Context | None = None, **more: Any) -> Hardened:
    settings = {**QUICK.get(id, {}), **more}
    hardened: Hardened = configure(DEFENCES.load(id), settings)(target, data, Rng(seed), context or Context())
    return hardened


def snapshot(module: nn.Module) -> list[Any]:
    parts = list(module.modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [
        [part.training for part in parts],
        [(p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in module.parameters()],
        [len(getattr(part, name)) for part in parts for name in hooks],
        [sorted(vars(p)) for p in module.parameters()],
        {k: v.tolist() for k, v in module.state_dict().items()},
        torch.get_rng_state().tolist(),
        [np.asarray(part).tolist() for part in np.random.get_state()[1:]],  # noqa: NPY002
        random.getstate(),
        torch.is_grad_enabled(),
    ]


@pytest.fixture
def odd_target() -> TorchTarget:
    """In a state that is easy to disturb: part in training mode, one layer frozen, a gradient left over."""
    target = model()
    target.module[0].train()
    target.module[1].eval()
    target.module[0].bias.requires_grad_(False)
    target.module[5].bias.grad = torch.ones(3)
    return target


@pytest.mark.parametrize("id", IDS)
def test_the_given_target_is_left_as_it_was(id: str, odd_target: TorchTarget) -> None:
    data = pictures()
    rows = data.x_train.clone()
    before = snapshot(odd_target.module)
    hardened = defend(id, odd_target, data)
    assert snapshot(odd_target.module) == before
    assert torch.equal(data.x_train, rows)
    assert hardened.target is not odd_target


@pytest.mark.parametrize("id", TRAINED)
def test_the_given_target_is_left_as_it_was_after_an_interruption(id: str, odd_target: TorchTarget) -> None:
    before = snapshot(odd_target.module)
    with pytest.raises(KeyboardInterrupt):
        defend(id, odd_target, pictures(), context=Context(fail=True))
    assert snapshot(odd_target.module) == before


@pytest.mark.parametrize("id", IDS)
def test_the_new_target_answers_in_the_same_form_and_is_clean(id: str) -> None:
    target, data = model(), pictures()
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
    assert Access.GRADIENTS in made.offers
    assert isinstance(made, TorchBacked)
    assert made.module is not target.module
    assert {p.data_ptr() for p in made.module.parameters()}.isdisjoint(p.data_ptr() for p in target.module.parameters())
    shape = snapshot(made.module)
    assert not any(shape[0]), "in evaluation mode"
    assert all(grad is None for _, grad in shape[1])
    assert not any(shape[2]), "no hooks"
    assert not any(shape[3]), "no attributes left on the parameters"


@pytest.mark.parametrize("id", IDS)
def test_settling_and_wrapping_keep_the_answers(id: str) -> None:
    target, data = model(), pictures()
    made: Any = defend(id, target, data).target
    with torch.no_grad():
        answers = made.forward(data.x_test).values
        assert torch.equal(made.settled(target.domain).forward(data.x_test).values, answers)
        assert torch.equal(made.around(made.clone(), "+x").forward(data.x_test).values, answers)
        assert torch.equal(made.forward_features(data.x_test)[0].values, answers)
    assert made.settled(target.domain).sha256() == made.sha256()
    assert hasattr(made.settled(target.domain), "softened") == hasattr(made, "softened")


@pytest.mark.parametrize("id", IDS)
def test_one_seed_one_model(id: str) -> None:
    data = pictures()
    first, second = (defend(id, model(), data, seed=5).target.sha256() for _ in range(2))
    assert first == second
    if id in TRAINED:
        assert defend(id, model(), data, seed=6).target.sha256() != first


@pytest.mark.parametrize("id", IDS)
def test_saved_weights_can_be_put_back(id: str) -> None:
    data = pictures()
    made: Any = defend(id, model(), data).target
    method = configure(DEFENCES.load(id), QUICK.get(id, {}))
    assert isinstance(method, Restorable)
    state = {k: v.clone() for k, v in made.module.state_dict().items()}
    again = method.restore(model(), data, state)
    assert again.sha256() == made.sha256()
    assert again.id == made.id
    with torch.no_grad():
        assert torch.equal(again.forward(data.x_test).values, made.forward(data.x_test).values)
    with pytest.raises(RuntimeError):
        method.restore(model(), data, {"foreign": torch.zeros(1)})


@pytest.mark.parametrize("id", IDS)
def test_regression_is_defended_where_the_card_says_so(id: str) -> None:
    target, data = model("regression"), table("regression")
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

    with pytest.raises(NotOffered, match=r"endpoint offers labels only: give the model as an nn\.Module"):
        defend(id, Black(), pictures())


@pytest.mark.parametrize("id", TRAINED)
def test_without_training_rows_the_user_is_told_to_give_them(id: str) -> None:
    whole = pictures()
    with pytest.raises(BadData, match="give x_train and y_train"):
        defend(id, model(), Data(None, None, whole.x_test, whole.y_test))


@pytest.mark.parametrize("id", IDS)
def test_a_recipe_trains_models_of_the_same_kind(id: str) -> None:
    target, data = model(training=Training(epochs=1)), pictures()
    made = defend(id, target, data).target
    assert Access.TRAINING in made.offers
    assert made.recipe is not None
    first, second = (made.recipe.fit(data.x_train, data.y_train, 9) for _ in range(2))
    assert first.sha256() == second.sha256()
    with torch.no_grad():
        assert first.forward(data.x_test).values.shape == (12, 3 + (made.domain.refusal is not None))


@pytest.mark.parametrize("id", IDS)
def test_facts_and_caveats_can_be_written_down(id: str) -> None:
    hardened = defend(id, model(), pictures())
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
    hardened = defend("train.pgd", model(task), data, context=context, clean=0.5, from_scratch=True)
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
