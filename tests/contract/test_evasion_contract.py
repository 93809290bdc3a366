"""What every evasion attack must do, whatever it is: one row of small settings adds one."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vauban.attacks.catalog import ATTACKS
from vauban.core.attack import EvasionScene, Perturbed
from vauban.core.rng import Rng
from vauban.core.space import Frame
from vauban.core.target import Domain
from vauban.domains.image.spaces import PICTURES
from vauban.engine.oracle import MeteredOracle
from vauban.parts.goals import ClassAs, Misclassify, ReachValue, Shift
from vauban.parts.projections import SPACES
from vauban.schema.cards import Task
from vauban.schema.errors import BadThreat
from vauban.schema.threat import Budget
from vauban.targets.torch import TorchTarget

SMALL: dict[str, dict[str, Any]] = {
    "evasion.adba": {"queries": 120, "starts": 8},
    "evasion.alma": {"steps": 8},
    "evasion.apgd": {"steps": 8},
    "evasion.apgd_targeted": {"steps": 6, "targets": 3},
    "evasion.boundary": {"queries": 150, "starts": 10},
    "evasion.brendel_bethge": {"steps": 10, "starts": 5},
    "evasion.carlini_wagner": {"steps": 12, "rounds": 2},
    "evasion.cascade": {"tier": "screen"},
    "evasion.ddn": {"steps": 8},
    "evasion.deep_fool": {"steps": 6, "finish": 3},
    "evasion.ead": {"steps": 12, "rounds": 2},
    "evasion.fab": {"steps": 8},
    "evasion.feature": {"steps": 8, "donors": 3},
    "evasion.fgsm": {},
    "evasion.fmn": {"steps": 8},
    "evasion.gen_attack": {"queries": 60},
    "evasion.geoda": {"queries": 150, "probes": 10, "starts": 10},
    "evasion.grid": {"points": 27, "rounds": 1},
    "evasion.hop_skip_jump": {"queries": 150, "probes": 12, "starts": 10},
    "evasion.jsma": {"steps": 4},
    "evasion.mi_fgsm": {"steps": 4, "diversity": 0.5, "kernel": 3},
    "evasion.nes": {"queries": 130, "pairs": 5},
    "evasion.ni_si": {"steps": 4, "copies": 2, "diversity": 0.5, "kernel": 3},
    "evasion.noise": {"draws": 6},
    "evasion.one_pixel": {"queries": 120, "population": 12},
    "evasion.patch": {"places": 2, "trial": 3, "steps": 4},
    "evasion.pdgd": {"steps": 8},
    "evasion.pdpgd": {"steps": 8},
    "evasion.pgd": {"steps": 8, "restarts": 2},
    "evasion.rays": {"queries": 120, "starts": 8},
    "evasion.selective": {"steps": 8},
    "evasion.sigma_zero": {"steps": 60},
    "evasion.sign_hunter": {"queries": 40},
    "evasion.sign_opt": {"queries": 200, "probes": 10, "starts": 10},
    "evasion.simba": {"queries": 60},
    "evasion.sparse_pgd": {"steps": 8},
    "evasion.sparse_rs": {"queries": 40},
    "evasion.spsa": {"queries": 130, "pairs": 5},
    "evasion.square": {"queries": 40},
    "evasion.super_deep_fool": {"steps": 6, "finish": 3},
    "evasion.surfree": {"queries": 150, "starts": 10},
    "evasion.transfer": {"queries": 40, "candidates": 2, "members": 2, "training": 40, "steps": 4},
    "evasion.universal": {"steps": 6},
    "evasion.universal_patch": {"steps": 6, "places": 2},
    "evasion.vmi": {"steps": 4, "neighbours": 2, "diversity": 0.5, "kernel": 3},
    "evasion.zoo": {"queries": 150, "features": 6},
}
NEAREST: dict[str, dict[str, Any]] = {
    "evasion.adba": {"queries": 400, "starts": 60},
    "evasion.alma": {"steps": 100},
    "evasion.boundary": {"queries": 400, "starts": 60},
    "evasion.brendel_bethge": {"steps": 60, "starts": 60},
    "evasion.carlini_wagner": {"steps": 200},
    "evasion.cascade": {"tier": "screen"},
    "evasion.ddn": {"steps": 100},
    "evasion.deep_fool": {"steps": 30},
    "evasion.ead": {"steps": 200},
    "evasion.fab": {"steps": 100},
    "evasion.fmn": {"steps": 100},
    "evasion.geoda": {"queries": 400, "starts": 60},
    "evasion.hop_skip_jump": {"queries": 400, "starts": 60},
    "evasion.pdgd": {"steps": 100},
    "evasion.pdpgd": {"steps": 100},
    "evasion.rays": {"queries": 400, "starts": 60},
    "evasion.sigma_zero": {"steps": 100},
    "evasion.sign_opt": {"queries": 400, "starts": 60},
    "evasion.super_deep_fool": {"steps": 30},
    "evasion.surfree": {"queries": 400, "starts": 60},
}
"""Look for the nearest success where there is no radius."""
STEADY = (
    "evasion.alma",
    "evasion.carlini_wagner",
    "evasion.ddn",
    "evasion.deep_fool",
    "evasion.ead",
    "evasion.fab",
    "evasion.fgsm",
    "evasion.fmn",
    "evasion.grid",
    "evasion.jsma",
    "evasion.mi_fgsm",
    "evasion.ni_si",
    "evasion.patch",
    "evasion.pdgd",
    "evasion.pdpgd",
    "evasion.super_deep_fool",
    "evasion.universal",
)
"""Draw no random numbers."""
IDS = [name for name in ATTACKS.ids() if name.startswith("evasion.")]
SHAPES = {"vector": (12,), "picture": (2, 5, 4), "series": (3, 4)}
COLOURED = (3, 6, 5)
"""What spaces of pictures are tried on where any shape will do."""
RADIUS = {
    "linf": 0.12,
    "l2": 0.4,
    "l1": 1.2,
    "l0": 3.0,
    "rotation": 30.0,
    "translation": 1.0,
    "rigid": 25.0,
    "flow": 0.8,
    "brightness": 0.3,
    "contrast": 0.9,
    "gamma": 1.2,
    "saturation": 2.0,
    "hue": 60.0,
    "blur": 1.5,
    "corruption": 2.5,
    "patch": 0.14,
}
LITTLE = {"l0": 1.0, "patch": 0.04}
"""A radius at which hardly a row is broken, where it is not 0.01."""
ROWS = 9


def model(shape: tuple[int, ...], outputs: int, values: bool = False) -> TorchTarget:
    """A small net with batch normalisation and dropout, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        d = int(np.prod(shape))
        module = nn.Sequential(
            nn.Flatten(), nn.Linear(d, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, outputs)
        ).eval()
        with torch.no_grad():
            module[-1].weight.mul_(4.0)
    task: Task = "regression" if values else "classification"
    return TorchTarget(module, domain=Domain(task=task), output="values" if values else "logits")


PAIRS = [(name, space) for name in IDS for space in ATTACKS.load(name).card.spaces]


def first(id: str) -> str:
    """The space to try an attack in where any will do."""
    return ATTACKS.load(id).card.spaces[0]


def made(space: str) -> Any:
    """The space of that name, for inputs from 0 to 1."""
    return (SPACES | PICTURES)[space](torch.tensor(0.0), torch.tensor(1.0))


def usual(space: str) -> tuple[int, ...]:
    """A shape that it knows."""
    return (12,) if space in SPACES else COLOURED


def lacking(space: str, shape: tuple[int, ...]) -> str:
    """Why inputs of that shape have no such space; empty where they have."""
    try:
        made(space).frame(torch.zeros(1, *shape))
    except BadThreat as error:
        return str(error)
    return ""


@dataclass
class Run:
    oracle: MeteredOracle
    found: Perturbed
    frame: Frame


def attacked(
    id: str,
    *,
    shape: tuple[int, ...] | None = None,
    classes: int = 4,
    space: str | None = None,
    goal: str = "untargeted",
    seed: int = 0,
    rows: list[int] | None = None,
    budget: Budget | None = None,
    radius: float | None = None,
    target: TorchTarget | None = None,
    task: str = "classification",
    settings: dict[str, Any] | None = None,
) -> Run:
    space = space or first(id)
    shape = shape or usual(space)
    g = torch.Generator().manual_seed(8)
    x = torch.rand(ROWS, *shape, generator=g)
    donors = torch.rand(20, *shape, generator=g)
    target = target or model(shape, classes if task == "classification" else 1, task == "regression")
    with torch.no_grad():
        answer = target.forward(x)
    pick = torch.tensor(rows if rows is not None else list(range(ROWS)))
    goals = {
        ("classification", "untargeted"): lambda: Misclassify(answer.labels[pick]),
        ("classification", "targeted"): lambda: ClassAs((answer.labels[pick] + 1) % classes),
        ("regression", "untargeted"): lambda: Shift(answer.values[pick], 0.5),
        ("regression", "targeted"): lambda: ReachValue(answer.values[pick] + 0.5, 0.2),
    }
    radius = RADIUS[space] if radius is None else radius
    room = made(space)
    frame = room.frame(x[pick], pick.numpy())
    oracle = MeteredOracle(
        target,
        goals[task, goal](),
        room,
        frame.start,
        radius,
        budget=budget,
        nearest=radius == float("inf"),
        render=frame.render,
    )
    oracle.begin()
    known = classes if task == "classification" else None
    scene = EvasionScene(oracle, frame.start, room, radius, known, None if room.knobs else donors)
    attack = ATTACKS.load(id)(**(SMALL[id] if settings is None else settings))
    return Run(oracle, attack(scene, Rng(seed, pick.numpy())), frame)


def test_every_attack_has_a_row_here() -> None:
    assert sorted(SMALL) == IDS


@pytest.mark.parametrize("id", IDS)
def test_card_profiles_and_price_are_sound(id: str) -> None:
    kind = ATTACKS.load(id)
    assert kind.card.id == id
    assert kind.card.sources
    assert kind.card.summary.endswith(".")
    for settings in ({}, *kind.profiles.values()):
        for classes in (10, None):
            price = kind(**settings).price(classes)
            assert price.queries > 0
    assert set(kind.profiles) == {"smoke", "deep"}


@pytest.mark.parametrize("id", IDS)
def test_bad_settings_are_refused_in_words(id: str) -> None:
    kind = ATTACKS.load(id)
    for field in fields(kind):
        if isinstance(field.default, bool):
            continue
        wrong = "nonsense" if isinstance(field.default, str) else -3
        with pytest.raises(ValueError, match=r"got"):
            kind(**{field.name: wrong})


@pytest.mark.parametrize("id", IDS)
def test_leaves_no_trace(id: str) -> None:
    target = model(usual(first(id)), 4)
    before = {k: v.clone() for k, v in target.module.state_dict().items()}
    state = torch.random.get_rng_state()
    np_state = np.random.get_state()[1].copy()  # noqa: NPY002
    attacked(id, target=target)
    assert all(torch.equal(v, before[k]) for k, v in target.module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in target.module.parameters())
    assert not any(part.training or part._forward_hooks or part._backward_hooks for part in target.module.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], np_state)  # noqa: NPY002
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("id", "space"), PAIRS)
def test_a_row_is_the_same_alone_in_sevens_and_all_together(id: str, space: str) -> None:
    if ATTACKS.load(id).card.joint:
        pytest.skip("attacks samples jointly")
    whole = attacked(id, space=space)
    for size in (1, 7):
        for start in range(0, ROWS, size):
            rows = list(range(start, min(start + size, ROWS)))
            part = attacked(id, space=space, rows=rows)
            assert torch.equal(part.found.x, whole.found.x[rows]), rows
            assert part.oracle.spent.queries.tolist() == whole.oracle.spent.queries[rows].tolist()


@pytest.mark.parametrize("id", IDS)
def test_the_budget_of_no_row_is_overrun(id: str) -> None:
    for limit in (Budget(queries=30, gradients=5), Budget(queries=4), Budget(queries=1)):
        run = attacked(id, budget=limit, radius=0.02)
        assert int(run.oracle.spent.queries.max()) <= (limit.queries or 0)
        assert limit.gradients is None or int(run.oracle.spent.gradients.max()) <= limit.gradients


@pytest.mark.parametrize("id", IDS)
def test_no_row_costs_more_than_the_price(id: str) -> None:
    run = attacked(id, radius=1e-4)
    price = ATTACKS.load(id)(**SMALL[id]).price(4)
    assert not bool(run.oracle.best.reached.any())
    assert int(run.oracle.spent.queries.max()) - 1 <= price.queries
    assert int(run.oracle.spent.gradients.max()) <= price.gradients


@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("id", IDS)
def test_any_shape_and_number_of_classes(id: str, classes: int, shape: str) -> None:
    card = ATTACKS.load(id).card
    if classes < card.min_classes:
        pytest.skip(f"needs {card.min_classes} classes")
    reasons = {space: lacking(space, SHAPES[shape]) for space in card.spaces}
    for space in (name for name, reason in reasons.items() if not reason):
        for goal in card.goals:
            run = attacked(id, shape=SHAPES[shape], classes=classes, space=space, goal=goal)
            assert run.found.x.shape == run.frame.start.shape
            assert run.found.x.dtype == torch.float32
            shown = run.frame.render(run.found.x, torch.arange(ROWS))
            assert shown.shape == (ROWS, *SHAPES[shape])
    if all(reasons.values()):
        pytest.skip(next(iter(reasons.values())))


@pytest.mark.parametrize(("id", "space"), PAIRS)
def test_successes_are_admissible_in_float64_and_real(id: str, space: str) -> None:
    radius = 2 * RADIUS[space]
    run = attacked(id, space=space, radius=radius)
    room, start = made(space), run.frame.start
    hit = run.oracle.best.reached.nonzero().flatten()
    assert len(hit), "the battery is too weak to see anything"
    best, target = run.oracle.best.x[hit], model(usual(space), 4)
    assert bool((room.distance(best, start[hit]) <= radius).all())
    assert bool(room.allowed(best, start[hit]).all.all())
    clean, shown = run.frame.render(start, torch.arange(ROWS)), run.frame.render(best, hit)
    assert bool(made("linf").allowed(shown, clean[hit]).all.all())
    with torch.no_grad():
        truth = target.forward(clean).labels
        assert bool((target.forward(shown).labels != truth[hit]).all())


@pytest.mark.parametrize("id", IDS)
def test_seeds_reproduce_and_differ(id: str) -> None:
    """Judged by the points that the model is asked about: different draws may end at the same best point."""
    asked = []
    for seed in (0, 0, 1):
        target = model(usual(first(id)), 4)
        points: list[torch.Tensor] = []
        layer = target.module[0]  # type: ignore[index]
        layer.register_forward_pre_hook(lambda _module, inputs, into=points: into.append(inputs[0].detach().clone()))
        attacked(id, seed=seed, radius=LITTLE.get(first(id), 0.01), target=target)
        asked.append(torch.cat(points))
    assert torch.equal(asked[0], asked[1])
    same = asked[0].shape == asked[2].shape and torch.equal(asked[0], asked[2])
    assert same == (id in STEADY)


@pytest.mark.parametrize("id", IDS)
def test_decided_rows_cost_nothing_more(id: str) -> None:
    """A model that is wrong from the start is not attacked at all."""
    g = torch.Generator().manual_seed(8)
    shape, room = usual(first(id)), made(first(id))
    x, target = torch.rand(ROWS, *shape, generator=g), model(shape, 4)
    frame = room.frame(x)
    with torch.no_grad():
        wrong = (target.forward(x).labels + 1) % 4
    oracle = MeteredOracle(target, Misclassify(wrong), room, frame.start, 0.1, render=frame.render)
    oracle.begin()
    found = ATTACKS.load(id)(**SMALL[id])(EvasionScene(oracle, frame.start, room, 0.1, 4, x), Rng(0, ROWS))
    assert oracle.spent.queries.tolist() == [1] * ROWS
    assert torch.equal(found.x, frame.start)


@pytest.mark.parametrize("goal", ["untargeted", "targeted"])
@pytest.mark.parametrize("id", IDS)
def test_regression_where_the_card_says_so(id: str, goal: str) -> None:
    card = ATTACKS.load(id).card
    if "regression" not in card.tasks:
        pytest.skip("classification only")
    for space in card.spaces:
        run = attacked(id, task="regression", goal=goal, space=space, radius=3 * RADIUS[space])
        assert bool(run.oracle.best.reached.any()) or goal == "targeted"
        assert bool(run.found.x.isfinite().all())


@pytest.mark.parametrize("id", IDS)
def test_without_a_radius_there_is_a_nearest_success_or_a_clear_word(id: str) -> None:
    if id in NEAREST:
        for space in ATTACKS.load(id).card.spaces:
            run = attacked(id, radius=float("inf"), space=space, settings=NEAREST[id])
            assert bool(run.oracle.best.distance.isfinite().all())
        return
    with pytest.raises(BadThreat, match="works within a radius"):
        attacked(id, radius=float("inf"))


@pytest.mark.parametrize("id", IDS)
def test_donors_may_be_missing(id: str) -> None:
    g = torch.Generator().manual_seed(8)
    shape, room = usual(first(id)), made(first(id))
    x, target = torch.rand(ROWS, *shape, generator=g), model(shape, 4)
    frame = room.frame(x)
    with torch.no_grad():
        labels = target.forward(x).labels
    radius = 2.5 * RADIUS[first(id)]
    oracle = MeteredOracle(target, Misclassify(labels), room, frame.start, radius, render=frame.render)
    oracle.begin()
    ATTACKS.load(id)(**SMALL[id])(EvasionScene(oracle, frame.start, room, radius, 4), Rng(0, ROWS))
    assert bool(oracle.best.reached.any()) or id == "evasion.noise"
