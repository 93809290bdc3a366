"""Can this number be trusted? Each doubt is a measured value against a threshold, with a remedy. A row adds one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vauban.engine.doubts import gradients, model, optimisation
from vauban.engine.doubts.families import contradictions
from vauban.engine.doubts.model import output_kind, randomness
from vauban.engine.doubts.optimisation import Aftermath, curve_monotone
from vauban.engine.doubts.probe import Meter, Probe
from vauban.schema.log import Doubt

__all__ = [
    "AFTER",
    "BEFORE",
    "BETWEEN",
    "Aftermath",
    "Meter",
    "Probe",
    "contradictions",
    "curve_monotone",
    "output_kind",
    "randomness",
]

BEFORE: Mapping[str, Callable[[Probe], Doubt | None]] = {
    "softmax_output": model.output,
    "randomness": model.steady,
    "batch_dependence": model.alone,
    "side_effects": model.side_effects,
    "precision": model.precision,
    "nonfinite": model.nonfinite,
    "abstain_class": model.abstaining,
    "test_time_optimisation": model.optimises,
    "no_graph": gradients.graph,
    "zero_gradient": gradients.zero,
    "logit_scale": gradients.logit_scale,
    "float64_gradient": gradients.double,
    "gradient_agreement": gradients.agreement,
    "jumps": gradients.jumps,
}
"""A and B: asked of a few rows before an attack, by id of the doubt."""

AFTER: Mapping[str, Callable[[Aftermath], Doubt | None]] = {
    "convergence": optimisation.convergence,
    "restart_gain": optimisation.restart,
    "unbounded": optimisation.unbounded,
    "unstable": optimisation.unstable,
    "noise_wins": optimisation.noise,
    "one_step_beats": optimisation.one_step,
    "transfer_failure": optimisation.transfer,
    "silent_success": optimisation.silent,
}
"""C: asked of what an attack left, by id of the doubt."""

BETWEEN = ("black_box_wins", "one_step_wins")
"""D: what `contradictions` finds between attempts."""
