"""A time limit is shared by what checks are expected to take."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from vauban.audits.plan import Estimate
from vauban.audits.runner import LEAST, _until


def unit(seconds: float | None, trainings: int = 0) -> Any:
    return SimpleNamespace(estimate=Estimate(seconds=seconds, trainings=trainings))


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    return 100.0


@pytest.mark.parametrize(
    ("own", "ahead", "left", "gets"),
    [
        (8.0, 10.0, 20.0, 16.0),
        (2.0, 2.0, 20.0, 20.0),
        (0.0, 10.0, 20.0, LEAST * 20),
        (0.1, 10.0, 0.5, 0.5),
        (5.0, 10.0, -3.0, -3.0),
    ],
    ids=["dear", "last", "at least", "no more than there is", "too late"],
)
def test_a_check_gets_its_share_of_what_is_left(now: float, own: float, ahead: float, left: float, gets: float) -> None:
    assert _until(unit(own), ahead, now + left, 20.0) == pytest.approx(now + gets)


def test_what_nobody_can_estimate_may_take_what_is_left(now: float) -> None:
    assert _until(unit(None), 10.0, now + 20, 20.0) == now + 20
    assert _until(unit(1.0, trainings=3), 10.0, now + 20, 20.0) == now + 20
    assert _until(unit(1.0), 0.0, now + 20, 20.0) == now + 20
    assert _until(unit(1.0), 10.0, None, None) is None
