"""What is told of a detector after two audits, beside another counting of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from torch import nn

from vauban.audits.alarms import Alarms, alarms
from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.core.target import Domain
from vauban.defences.detect.energy import Energy
from vauban.engine.context import HouseContext
from vauban.parts.projections import SPACES
from vauban.schema.log import Attempt
from vauban.targets.torch import TorchTarget

CONTEXT = HouseContext(0.1, SPACES["linf"](0.0, 1.0))


def watched() -> tuple[Any, Data]:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 3
    x = (0.1 * torch.randn(400, 5, generator=g) + 0.8 * torch.eye(5)[y]).clamp(0, 1)
    net = nn.Linear(5, 3)
    net.weight.data, net.bias.data = 6 * torch.eye(5)[:3], torch.zeros(3)
    data = Data(x[:300], y[:300], x[300:], y[300:])
    target = TorchTarget(net, "net", Domain(kind="tabular", task="classification", classes=3), "logits")
    return Energy(alarms=0.1)(target, data, Rng(0), CONTEXT).target, data


def audited(folder: Path, x: torch.Tensor) -> Any:
    folder.mkdir()
    save_file({"rows": torch.arange(len(x)), "x": x}, folder / "a.safetensors")
    attempt = Attempt(
        check="evasion.pgd",
        threat="linf:0.1",
        state="assessed",
        outcomes="b" * len(x),
        facts={"samples": "a.safetensors"},
    )
    return SimpleNamespace(attempts=[attempt, Attempt(check="leakage.lira", threat="leakage", state="assessed")])


def test_areas_and_alarms_are_those_of_the_scores(tmp_path: Path) -> None:
    made, data = watched()
    x, g = data.x_test, torch.Generator().manual_seed(1)
    changed = [(x[:n] + s * torch.randn(n, 5, generator=g)).clamp(0, 1) for n, s in ((60, 0.5), (40, 0.15))]
    folders = [tmp_path / "before", tmp_path / "after"]
    logs = [audited(folder, z) for folder, z in zip(folders, changed, strict=True)]
    found = alarms(logs, folders, made, x, CONTEXT)
    clean = made.suspicion(x).detach()
    assert found.facts["false_alarms"] == pytest.approx(float((clean > made.threshold).double().mean()))
    assert 0 <= found.facts["false_alarms_noise"] <= 1
    for name, z in zip(("model", "model_and_detector"), changed, strict=True):
        scores = torch.cat([clean, made.suspicion(z).detach()])
        expected = roc_auc_score([0] * len(x) + [1] * len(z), scores)
        assert found.facts[f"detection_auc_{name}"] == pytest.approx(expected)
    (curve,) = found.curves
    assert [line.label for line in curve.series] == ["made on the model", "made on the model and detector", "chance"]
    assert all(line.x[0] == 0 and line.x[-1] == line.y[-1] == 1 for line in curve.series)
    assert "60 examples made on the model:" in found.told[1]


def test_without_a_detector_or_examples_little_is_told(tmp_path: Path) -> None:
    made, data = watched()
    nothing = SimpleNamespace(attempts=[])
    assert alarms((nothing, nothing), (tmp_path, tmp_path), made.inner, data.x_test, CONTEXT) == Alarms()
    found = alarms((nothing, nothing), (tmp_path, tmp_path), made, data.x_test, HouseContext(None, None))
    assert found.curves == []
    assert found.told == [f"The detector raises the alarm at {found.facts['false_alarms']:.1%} of clean inputs."]
