"""Integrated gradients: exact for a quadratic, complete for a network."""

from __future__ import annotations

import torch
from torch import nn

from vauban.parts.attribution import integrated_gradients


def test_a_quadratic_form_in_closed_form() -> None:
    x, weight = torch.randn(5, 4), torch.tensor([1.0, -2.0, 0.5, 3.0])
    found = integrated_gradients(lambda z: (weight * z * z).sum(1), x, torch.zeros_like(x), steps=8)
    assert torch.allclose(found, weight * x * x, atol=1e-5)


def test_completeness_on_a_network() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    x, baseline = torch.randn(7, 6), torch.zeros(7, 6)
    found = integrated_gradients(lambda z: net(z)[:, 0], x, baseline, steps=200)
    assert torch.allclose(found.sum(1), (net(x) - net(baseline))[:, 0].detach(), atol=1e-3)
    assert all(p.grad is None for p in net.parameters())
