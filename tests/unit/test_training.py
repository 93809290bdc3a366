"""A training that is interrupted, fails, is averaged, or judged."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from stages import Memory
from torch import Tensor, nn

from vauban.parts.training import RATES, Batch, Course, Trained, plain_step, task_loss, train


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def rows() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(50, 4, generator=g)
    return x, x[:, :3].argmax(1)


def judged(module: nn.Module) -> tuple[float, str]:
    x, y = rows()
    with torch.no_grad():
        return float((module(x).argmax(1) == y).double().mean()), ""


def run(course: Course, **how: Any) -> Trained:
    return train(network(), *rows(), plain_step, course, 7, **how)


def same(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, two.state_dict()[k]) for k, a in one.state_dict().items())


COURSE = Course(epochs=6, batch_size=16, rate=1e-2, schedule="cycle", average=0.9)


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_an_interrupted_run_goes_on_to_the_same_result(optimiser: Any) -> None:
    course, store = Course(**{**vars(COURSE), "optimiser": optimiser}), Memory()
    whole = run(course, judge=judged)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(course, judge=judged, store=store, progress=stop)
    told: list[int] = []
    resumed = run(course, judge=judged, store=store, progress=lambda done, total: told.append(done))
    assert told == [4, 5, 6]
    assert same(whole.module, resumed.module)
    assert whole.history == resumed.history
    assert whole.best == resumed.best


def test_a_store_of_another_course_is_not_gone_on_from() -> None:
    store = Memory()
    run(COURSE, store=store)
    other = Course(epochs=2, batch_size=16)
    assert same(run(other).module, run(other, store=store).module)


def test_a_loss_that_is_lost_ends_the_run_with_the_weights_before() -> None:
    def step(module: nn.Module, batch: Batch) -> Tensor:
        loss = task_loss(module(batch.x), batch.y)
        return loss * (torch.nan if batch.number >= 9 else 1.0)

    x, y = rows()
    made = train(network(), x, y, step, Course(epochs=6, batch_size=16), 7)
    assert made.epochs == 2
    assert "nan in epoch 3" in made.ended
    short = train(network(), x, y, step, Course(epochs=2, batch_size=16), 7)
    assert same(made.module, short.module)


def test_the_best_epoch_is_kept_and_patience_ends() -> None:
    scores = iter([0.2, 0.9, 0.4, 0.3, 0.8, 0.8])
    states: list[dict[str, Tensor]] = []

    def judge(module: nn.Module) -> tuple[float, str]:
        states.append(copy.deepcopy(module.state_dict()))
        return next(scores), ""

    made = run(Course(epochs=6, batch_size=16, patience=2), judge=judge)
    assert made.epochs == 4
    assert made.best == 2
    assert made.ended == "no better for 2 epochs"
    assert all(torch.equal(v, states[1][k]) for k, v in made.module.state_dict().items())


def test_a_judge_may_end_a_run() -> None:
    made = run(COURSE, judge=lambda module: (0.5, "seen enough"))
    assert (made.epochs, made.ended) == (1, "seen enough")


def test_averages_are_the_mean_that_decays() -> None:
    seen: list[Tensor] = []

    def step(module: nn.Module, batch: Batch) -> Tensor:
        seen.append(module[0].weight.detach().clone())  # type: ignore[index,operator,union-attr]
        return task_loss(module(batch.x), batch.y)

    x, y = rows()
    plain = train(network(), x, y, plain_step, Course(epochs=2, batch_size=16), 7).module
    made = train(network(), x, y, step, Course(epochs=2, batch_size=16, average=0.5), 7)
    weights = [*seen[1:], plain[0].weight.detach()]  # type: ignore[index]
    mean = seen[0]
    for number, weight in enumerate(weights):
        mean = mean.lerp(weight, 1 - min(0.5, (1 + number) / (10 + number)))
    torch.testing.assert_close(made.module[0].weight.detach(), mean)  # type: ignore[index]


def test_a_batch_is_repeated_before_the_next() -> None:
    seen: list[list[int]] = []

    def step(module: nn.Module, batch: Batch) -> Tensor:
        seen.append(batch.rows.tolist())
        assert 0 < batch.share <= 1
        return task_loss(module(batch.x), batch.y)

    train(network(), *rows(), step, Course(epochs=2, batch_size=25, repeats=3), 7)
    assert len(seen) == 12
    assert all(seen[i] == seen[i - i % 3] for i in range(12))
    assert sorted(seen[0] + seen[3]) == list(range(50))


def test_rates_begin_and_end_where_they_should() -> None:
    assert [RATES["constant"](share, share) for share in (0.0, 0.5, 0.99)] == [1, 1, 1]
    assert RATES["cosine"](0, 0) == 1
    assert RATES["cosine"](1, 1) == pytest.approx(0)
    cycle = [RATES["cycle"](0, step / 100) for step in range(101)]
    assert cycle[0] == cycle[-1] == 0
    assert max(cycle) == cycle[20] == 1
