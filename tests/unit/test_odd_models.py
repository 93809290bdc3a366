"""Models that are unusual and valid: every check is assessed, skipped or not applicable, and none ends in an error."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vauban
from vauban.parts.training import batches
from vauban.schema.errors import BadOption, BadTarget, NotOffered

X = torch.rand(90, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, :3].sum(1) > X[:, 3:].sum(1)).long()
DATA = vauban.Data(X[:60], Y[:60], X[60:], Y[60:])


def net() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(made.parameters(), 0.05)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(made(X[:60]), Y[:60]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return made


class Wrapped(nn.Module):
    def __init__(self, change: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.inner = net()
        self.change = change

    def forward(self, x: Tensor) -> object:
        return self.change(self.inner, x)


def unseen(inner: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return inner(x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.head = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x[..., None])[0][:, -1])


class Parameterless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 3:].sum(1), x[:, :3].sum(1)], 1)


def frozen() -> nn.Module:
    return net().requires_grad_(False)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "in place first": lambda: nn.Sequential(nn.ReLU(inplace=True), net()),
    "train mode": lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), net()).train(),
    "frozen": frozen,
    "float64": lambda: net().double(),
    "single logit": lambda: Wrapped(lambda m, x: m(x).diff(dim=1)),
    "recurrent": Recurrent,
    "no gradients": lambda: Wrapped(unseen),
    "one hot": lambda: Wrapped(lambda m, x: nn.functional.one_hot(m(x).argmax(1), 2).float()),
    "detached input": lambda: Wrapped(lambda m, x: m(x.detach())),
    "random": lambda: Wrapped(lambda m, x: m(x + 0.1 * torch.randn_like(x))),
    "no parameters": Parameterless,
}


@pytest.mark.parametrize("name", MODELS)
def test_an_unusual_model_ends_in_no_error(name: str) -> None:
    model = MODELS[name]()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    rows = DATA.x_test.clone()
    log = vauban.audit(
        vauban.target(model, bounds=(0, 1)), DATA, threats=["linf:0.1"], profile="smoke", samples=8, time_limit=60
    )
    assert {a.check: a.reason for a in log.attempts if a.state in ("error", "inconclusive")} == {}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [part.training for part in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(DATA.x_test, rows)


def test_frozen_weights_stay_frozen_and_reference_models_learn() -> None:
    model = frozen()
    target = vauban.target(model, bounds=(0, 1), classes=2)
    assert target.recipe is not None
    fresh = target.recipe.fit(X[:60], Y[:60], 1)
    assert not any(p.requires_grad for p in model.parameters())
    assert float((fresh.forward(X[60:]).labels == Y[60:]).float().mean()) > 0.6


def test_what_works_in_place_does_not_reach_the_data() -> None:
    module = vauban.target(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 2)))
    function = vauban.target(lambda x: np.stack([np.negative(x, out=x)[:, 0], x[:, 1]], 1), classes=2)
    x = torch.linspace(-1, 1, 12).reshape(2, 6)
    before = x.clone()
    for target in (module, function):
        target.forward(x)
        assert torch.equal(x, before)


@pytest.mark.parametrize("answer", [["a", "b"], [None, None]])
def test_a_function_that_returns_no_numbers_is_told_what_to_return(answer: list[object]) -> None:
    with pytest.raises(BadTarget, match="it must return numbers"):
        vauban.target(lambda x: answer, classes=2).forward(X[:2])


def test_a_module_that_returns_a_mapping_is_told_to_be_wrapped() -> None:
    with pytest.raises(BadTarget, match=r"returned a dict: .* wrap it"):
        vauban.target(Wrapped(lambda m, x: {"logits": m(x)})).forward(X[:2])


def test_flat_rows_are_no_pictures() -> None:
    with pytest.raises(BadOption, match="kind is image, but a row of the data has shape"):
        vauban.audit(vauban.target(net(), kind="image"), DATA, include=["evasion.pgd"], profile="smoke")


@pytest.mark.parametrize(("rows", "size", "parts"), [(65, 64, [65]), (64, 64, [64]), (129, 64, [64, 65]), (1, 64, [1])])
def test_no_batch_of_a_single_row_is_left_over(rows: int, size: int, parts: list[int]) -> None:
    order = torch.arange(rows)
    found = batches(order, size)
    assert [len(part) for part in found] == parts
    assert torch.equal(torch.cat(list(found)), order)


@pytest.mark.parametrize(
    "defence", ["preprocess.squeeze", "privacy.dp_sgd", "train.pgd", "distill.defensive", "certify.smoothing"]
)
def test_a_model_that_works_in_place_is_hardened(defence: str) -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), net())
    after = vauban.harden(
        vauban.target(model, bounds=(0, 1)),
        DATA,
        defence=defence,
        threat="linf:0.1",
        include=["evasion.pgd"],
        profile="smoke",
        samples=8,
    )
    assert {a.check: a.reason for a in after.log.attempts if a.state == "error"} == {}
    assert model[0].inplace


@pytest.mark.parametrize("defence", ["privacy.dp_sgd", "train.pgd"])
def test_a_frozen_model_cannot_be_trained_and_the_sentence_says_so(defence: str) -> None:
    with pytest.raises(NotOffered, match="frozen"):
        vauban.harden(vauban.target(frozen(), bounds=(0, 1)), DATA, defence=defence, threat="linf:0.1", profile="smoke")
