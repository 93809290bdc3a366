"""Before and after for parts of the samples, and what old examples still do: counted by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import vauban
from vauban.audits.effects import FEWEST, old_examples, slices, told
from vauban.core.target import Domain
from vauban.schema.log import Attempt
from vauban.targets.torch import TorchTarget

N = 50


def ready(kind: str = "tabular", task: str = "classification") -> Any:
    """Two features, one of which is 0 or 1; class 1 where the first is above 0.5."""
    x = torch.stack([torch.arange(N) / N, (torch.arange(N) % 2).float()], 1)
    y = (x[:, 0] >= 0.5).long()
    domain = Domain(kind=kind, task=task, classes=2, label_names=("good", "bad"), feature_names=("age", "owns"))  # type: ignore[arg-type]
    return SimpleNamespace(case=SimpleNamespace(data=SimpleNamespace(x_test=x, y_test=y), domain=domain))


def log(outcomes: str, check: str = "evasion.pgd", threat: str = "linf:0.1", **facts: Any) -> Any:
    attempt = Attempt(check=check, threat=threat, state="assessed", outcomes=outcomes, facts=facts)
    return SimpleNamespace(attempts=[attempt])


def test_classes_and_parts_of_a_table_are_counted() -> None:
    before = log("h" * 10 + "b" * 15 + "w" * 5 + "b" * 20)
    after = log("h" * 25 + "b" * 5 + "c" * 20)
    found = {part.name: part for part in slices(before, after, ready(), "linf:0.1")}
    good, bad = found["class good"], found["class bad"]
    assert (good.n, good.clean_before, good.robust_before, good.robust_after) == (25, 1.0, 0.4, 1.0)
    assert (bad.clean_before, bad.clean_after, bad.robust_before, bad.robust_after) == (0.8, 1.0, 0.0, 0.8)
    assert good.low > 0.3
    assert {"owns = 0", "owns = 1", "age <= 0.48", "age > 0.48"} == set(found) - {"class good", "class bad"}
    assert all(part.n >= FEWEST for part in found.values())
    assert found["owns = 1"].n == 25


def test_pictures_have_classes_alone_and_other_threats_do_not_count() -> None:
    before, after = log("h" * N), log("b" * N)
    assert [part.name for part in slices(before, after, ready("image"), "linf:0.1")] == ["class good", "class bad"]
    assert slices(before, after, ready(), "l2:1") == []
    assert slices(before, after, ready(task="regression"), "linf:0.1") == []


class Answers(nn.Module):
    """Class 1 where the first feature is above a threshold."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(x)), x[:, 0] - self.threshold], 1)


@pytest.mark.parametrize(("refusal", "still", "alone"), [(None, 2, 1), (1, 0, 0)])
def test_old_examples_are_shown_to_the_new_model(tmp_path: Path, refusal: int | None, still: int, alone: int) -> None:
    """Rows 0 to 2 (class 0) were broken before; the new model still falls for two of them, one of which no new attack broke."""
    (tmp_path / "samples").mkdir()
    x = torch.tensor([[0.4, 0.0], [0.6, 0.0], [0.7, 0.0]])
    save_file({"rows": torch.arange(3), "x": x}, tmp_path / "samples" / "a.safetensors")
    before = log("bbb" + "h" * 47, samples="samples/a.safetensors")
    after = log("hhb" + "h" * 47)
    target = TorchTarget(Answers(0.5), "m", Domain(task="classification", classes=2, refusal=refusal), "logits")
    found = old_examples(before, after, tmp_path, target, ready())
    assert found == {"old_examples": 3, "old_examples_still_break": still, "old_examples_alone_break": alone}
    words = told(found)
    assert words[0] == f"Of 3 samples that were broken before, the old examples still break {still}."
    assert len(words) == 1 + bool(alone)


def test_where_there_are_no_examples_nothing_is_said(tmp_path: Path) -> None:
    target = TorchTarget(Answers(0.5), "m", Domain(task="classification", classes=2), "logits")
    for before in (log("h" * N), log("b" * N, samples="samples/gone.safetensors")):
        assert old_examples(before, log("h" * N), tmp_path, target, ready()) == {}
    assert told({}) == []


def test_a_hardening_tells_both() -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(160) % 2
    x = (0.4 * torch.rand(160, 1, 3, 3, generator=g) + 0.3 * y[:, None, None, None]).clamp(0, 1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    after = vauban.harden(
        vauban.target(net, bounds=(0, 1), classes=2), vauban.Data(x[:100], y[:100], x[100:], y[100:]),
        defence="preprocess.squeeze", threat="linf:0.2", include=["evasion.pgd"], profile="smoke",
    )  # fmt: skip
    assert [part.name for part in after.comparison.slices] == ["class 0", "class 1"]
    assert sum(part.n for part in after.comparison.slices) == 60
    assert after.comparison.facts["old_examples"] > 10
    assert any("the old examples still break" in text for text in after.comparison.caveats)
