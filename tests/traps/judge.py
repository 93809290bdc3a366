"""How the suite examines a model: as an audit does, with one attack."""

from __future__ import annotations

from typing import Any

import torch
from zoo import RADIUS, Model

from vauban.attacks.catalog import ATTACKS
from vauban.core.attack import EvasionScene
from vauban.core.rng import Rng
from vauban.domains.catalog import modality, settle
from vauban.engine.batching import answers
from vauban.engine.case import Case, Check
from vauban.engine.evasion import examine, run
from vauban.engine.oracle import MeteredOracle
from vauban.engine.preflight import preflight
from vauban.parts.goals import Firmly, Misclassify
from vauban.schema.errors import WrongUnits
from vauban.schema.log import Attempt, Doubt
from vauban.schema.threat import ThreatModel
from vauban.targets.load import target
from vauban.targets.torch import TorchTarget

DRAWS = 32


def case_of(model: Model, samples: int, profile: str) -> tuple[Case | None, list[Doubt]]:
    """The case of an audit of that model, with what the preflight doubts; None where it refuses the units."""
    data = model.data()
    made = target(model.module().eval(), bounds=_bounds(data))
    try:
        settled, doubts, _ = preflight(made, data, settle(made.domain, data))
    except WrongUnits as error:
        return None, [Doubt(id="units", verdict="fail", text=str(error))]
    part = data.head(samples, 0)
    kind = modality(str(settled.domain.kind))
    return Case(target=settled, data=part, domain=settled.domain, modality=kind, profile=profile), doubts


def _bounds(data: Any) -> tuple[float, float] | None:
    return (0, 1) if float(data.x_test.min()) >= 0 else None


def examined(model: Model, samples: int = 60, profile: str = "smoke") -> tuple[set[str], Attempt | None]:
    """Ids of all doubts that are no pass, and the attempt."""
    case, doubts = case_of(model, samples, profile)
    attempt = None
    if case is not None:
        attempt = examine(Check("evasion.apgd", ThreatModel.of(f"linf:{RADIUS}")), case).attempt
        doubts = [*doubts, *attempt.doubts]
    return {d.id for d in doubts if d.verdict != "pass"}, attempt


def measured(model: Model, samples: int, profile: str = "standard") -> float | None:
    """Robust accuracy by our attack; for a random model, the expected accuracy at the points found."""
    case, _ = case_of(model, samples, profile)
    if case is None:
        return None
    result = run(Check("evasion.apgd", ThreatModel.of(f"linf:{RADIUS}")), case)
    if not model.random:
        return sum(letter in "hc" for letter in result.outcomes) / samples
    return expected(case.target, result.verified.x, case.data.y_test)


def expected(model: Any, x: torch.Tensor, y: torch.Tensor) -> float:
    """Accuracy over draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return float(torch.stack([(answers(model, x).labels == y).double().mean() for _ in range(DRAWS)]).mean())


def truth(model: Model, samples: int) -> float:
    """Robust accuracy without the trap, by APGD alone."""
    assert model.honest is not None
    data = model.data().head(samples, 0)
    plain = TorchTarget(model.honest().eval())
    kind = modality("image")
    domain = settle(target(plain.module, bounds=_bounds(data)).domain, data)
    space = kind.space("linf", domain)
    goal = Firmly(Misclassify(data.y_test), model.lead)
    oracle = MeteredOracle(plain, goal, space, data.x_test, RADIUS)
    oracle.begin()
    ATTACKS.load("evasion.apgd")()(EvasionScene(oracle, data.x_test, space, RADIUS, 10), Rng(0, samples))
    return float((~oracle.best.reached).double().mean())
