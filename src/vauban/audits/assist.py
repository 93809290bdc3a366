"""What the other processes of a crew do while the first one hardens a model."""

from __future__ import annotations

from torch import Tensor

from vauban.audits.choose import AUTO, one_process
from vauban.audits.harden import begun, defended, restore
from vauban.audits.plan import Request
from vauban.core.crew import Crew
from vauban.core.target import Target
from vauban.engine.context import HouseContext


def assist(request: Request, defence: str, crew: Crew) -> Target:
    """Help `harden` to train, and give back the defended target.

    Nothing is written, told or audited. `request` and `defence` are those of the first process. Raises what `harden` raises of
    them.
    """
    if defence == AUTO:
        one_process(crew)
    method, ready, threat = begun(request, defence)
    state: dict[str, Tensor] | None = crew.same(dict)  # what the first process found saved; None where it trains
    if state is not None:
        return restore(method, ready, state)
    return defended(method, ready, HouseContext.of(ready.case, threat, crew=crew)).target
