"""Models that fool evaluations are found out and broken; honest ones are left in peace."""

from __future__ import annotations

import pytest
import torch
from judge import examined, measured, truth
from markupsafe import escape
from zoo import HONEST, RADIUS, TRAPS, hardened

import vauban
from vauban.parts.softened import OPEN_GATES, SOFT_GATES, THROUGH, Softened
from vauban.reports.html import Html
from vauban.reports.view import warned

SAMPLES = 200
NEAR = 0.02
"""How far above the truth a robust accuracy may lie."""


def test_the_suite_is_whole() -> None:
    assert (len(TRAPS), len(HONEST)) == (15, 7)


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_is_named(name: str) -> None:
    found, attempt = examined(TRAPS[name], samples=32)
    assert found & TRAPS[name].doubts, found
    assert attempt is None or attempt.state == "assessed"


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_model_is_not_doubted(name: str) -> None:
    found, attempt = examined(HONEST[name], samples=60)
    assert found == set()
    assert attempt is not None
    assert attempt.cost.doubting > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", HONEST)
def test_an_honest_model_is_not_doubted_at_full_strength(name: str) -> None:
    assert examined(HONEST[name], samples=SAMPLES, profile="standard")[0] == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_is_broken_to_the_truth(name: str) -> None:
    model = TRAPS[name]
    found = measured(model, SAMPLES)
    assert found is not None
    assert found <= truth(model, SAMPLES) + NEAR


def test_the_report_of_a_trap_begins_with_the_doubt() -> None:
    model = TRAPS["logits x 10,000"]
    log = vauban.audit(
        vauban.target(model.module().eval(), bounds=(0, 1)),
        model.data(),
        threats=[f"linf:{RADIUS}"],
        include=["evasion.apgd"],
        profile="smoke",
        samples=16,
    )
    page = Html().render(log)
    assert 0 < page.index("the loss is saturated") < page.index('id="findings"')
    assert next(a for a in log.attempts if a.check == "evasion.apgd").cost.doubting > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAPS)
def test_the_audit_as_it_comes_names_the_doubt_before_its_findings(name: str) -> None:
    model = TRAPS[name]
    data = model.data()
    made = vauban.target(model.module().eval(), bounds=(0, 1) if float(data.x_test.min()) >= 0 else None)
    asked = {"threats": [f"linf:{RADIUS}"], "include": ["evasion"], "profile": "smoke", "samples": 32}
    log = vauban.audit(made, data, **asked)
    page = Html().render(log)
    named = [w.doubt for w in warned(log) if w.doubt.id in model.doubts]
    assert named
    assert all(0 < page.index(str(escape(doubt.text))) < page.index('id="findings"') for doubt in named)


def test_a_softened_pass_gives_the_same_answers_and_leaves_nothing_behind() -> None:
    for name in ("detached graph", "rounded input", "k-WTA", "MeanSparse", "test-time optimisation"):
        module = TRAPS[name].module().eval()
        x = TRAPS[name].data().x_test[:8].clone().requires_grad_(True)
        for rules in (THROUGH, SOFT_GATES, OPEN_GATES):
            with Softened(rules):
                soft = module(x)
            assert torch.allclose(soft, module(x), atol=1e-5)
            assert torch.is_grad_enabled()
        assert not any(part._forward_hooks for part in module.modules())
        assert all(parameter.grad is None for parameter in module.parameters())


def test_a_gradient_goes_straight_through_what_blocks_it() -> None:
    x = torch.tensor([[0.2, 1.7]], requires_grad=True)
    blocking = (
        lambda z: z.round(),
        lambda z: torch.floor(z),
        lambda z: z.detach(),
        lambda z: z.data,
        lambda z: (z * 255).to(torch.uint8).float() / 255,
        lambda z: (z * 255).round().int() / 255,
    )
    for block in blocking:
        assert not block(x).requires_grad or not torch.autograd.grad(block(x).sum(), x)[0].any()
        with Softened(THROUGH):
            out = block(x)
        assert torch.allclose(torch.autograd.grad(out.sum(), x)[0], torch.ones(1, 2))
        assert torch.equal(out.detach(), block(x).detach())


def test_the_nets_behind_the_traps_are_worth_attacking() -> None:
    data = TRAPS["detached graph"].data()
    assert float((hardened()(data.x_test).argmax(1) == data.y_test).double().mean()) > 0.9
    assert 0.5 < truth(TRAPS["detached graph"], 100) < 0.9
