"""The demo models: good, overfitted, and always the same."""

from __future__ import annotations

import time

import pytest
import torch

from vauban.data.load import load_data
from vauban.domains.catalog import settle
from vauban.engine.preflight import preflight
from vauban.schema.access import Access
from vauban.targets.demo import DEMOS, _trained
from vauban.targets.load import load_target

DATA = {
    "demo:digits-cnn": ("demo:digits", 0.975),
    "demo:digits-mlp": ("demo:digits", 0.96),
    "demo:digits-softmax": ("demo:digits", 0.95),
    "demo:breast-cancer": ("demo:breast-cancer", 0.95),
    "demo:diabetes": ("demo:diabetes", 0.4),
}


def test_every_demo_is_here() -> None:
    assert sorted(DATA) == DEMOS.ids()


@pytest.mark.parametrize("name", DATA)
def test_demos_are_good_and_whole(name: str) -> None:
    source, least = DATA[name]
    found, data = load_target(name), load_data(source)
    settled, doubts, facts = preflight(found, data, settle(found.domain, data))
    assert facts.get("clean_accuracy", facts.get("r2")) >= least
    assert {doubt.id for doubt in doubts if doubt.verdict != "pass"} == set()
    assert Access.GRADIENTS | Access.TRAINING | Access.WEIGHTS_WRITE in found.offers
    assert settled.domain.kind == data.kind
    assert found.id == name


def test_the_cnn_knows_its_rows_by_heart() -> None:
    found, data = load_target("demo:digits-cnn"), load_data("demo:digits")
    assert bool((found.forward(data.x_train).labels == data.y_train).all())
    with torch.no_grad():
        seen, unseen = (
            torch.nn.functional.cross_entropy(found.forward(x).values, y)
            for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test))
        )
    assert float(unseen) > 10 * float(seen)


@pytest.mark.parametrize("name", ["demo:digits-mlp", "demo:breast-cancer"])
def test_the_same_weights_every_time(name: str) -> None:
    first = load_target(name)
    _trained.cache_clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.perf_counter()
    try:
        again = load_target(name)
    finally:
        torch.set_num_threads(threads)
    assert again.sha256() == first.sha256()
    assert time.perf_counter() - started < 60


def test_everybody_gets_a_copy() -> None:
    one, two = load_target("demo:digits-mlp"), load_target("demo:digits-mlp")
    before = two.sha256()
    with torch.no_grad():
        next(one.module.parameters()).zero_()  # type: ignore[attr-defined]
    assert two.sha256() == before


def test_bounds_can_be_said_of_a_demo() -> None:
    assert load_target("demo:digits-mlp", bounds=(0, 2)).domain.high == 2.0
    assert load_target("demo:digits-mlp").domain.high == 1.0
