"""What the doubts call for. Which way is taken is decided by a short trial on a few rows, never by the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vauban.core.goal import Goal
from vauban.core.target import Adaptive, Target
from vauban.engine.doubts import BEFORE, Probe
from vauban.engine.doubts.gradients import ZERO_SHARE
from vauban.engine.doubts.model import spread
from vauban.engine.react import stand_ins as to
from vauban.parts.goals import Firmly, Misclassify, MisclassifyOutright
from vauban.parts.softened import LOGGED, NOTED, OPEN_GATES, SOFT_GATES, THROUGH, Softened, frozen
from vauban.schema.log import Doubt

DRAWS, VOTES = 8, 16
TRIAL = 12
"""Steps of the short attack by which ways are compared."""
USUAL = 8.0
"""Lead of the largest logit over the mean that a rescaled model has."""
SURE = 3.0
"""A success on a random model leads by that many deviations of its margin."""
ROUGH = frozenset({"no_graph", "zero_gradient", "jumps", "gradient_agreement", "test_time_optimisation"})
"""Doubts of the gradient itself: what is held in spite of them is attacked once more without gradients."""


@dataclass
class Plan:
    """How the attack is changed. `target` is searched, `judge` decides what counts."""

    target: Target
    judge: Target
    real: Probe
    clean: Tensor
    """Rows of data, for what has to be seen in a batch."""
    doubts: list[Doubt] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    shunned: int | None = None
    lead: float = 0.0
    limits: tuple[Tensor, Tensor] | None = None
    """Lowest and highest values that a search may use."""

    @property
    def red(self) -> frozenset[str]:
        """The doubts that something was found for."""
        return frozenset(d.id for d in self.doubts if d.verdict != "pass")

    @cached_property
    def usable(self) -> bool:
        """What is searched has gradients that lead somewhere."""
        probe = self.probe
        return not probe.gradients or probe.dead["margin"] <= ZERO_SHARE

    @property
    def rough(self) -> bool:
        return bool(self.red & ROUGH)

    @property
    def probe(self) -> Probe:
        return self.real.on(self.target)

    def goal(self, goal: Goal) -> Goal:
        """What counts as a success: an abstention does not."""
        if self.shunned is None or not isinstance(goal, Misclassify):
            return goal
        return MisclassifyOutright(goal.labels, shunned=self.shunned)

    def sought(self, goal: Goal) -> Goal:
        """What the search is told to reach, by a lead where answers vary."""
        return Firmly(goal, self.lead) if self.lead else goal

    def say(self, text: str) -> None:
        self.words.append(text)


Response = Callable[[Plan], None]


def plan(real: Probe, clean: Tensor) -> Plan:
    """Ask all doubts of the model, and react to those that are no pass."""
    made = Plan(real.target, real.target, real, clean)
    if not len(real):
        return made
    found = [ask(real) for ask in BEFORE.values()]
    made.doubts = [doubt for doubt in found if doubt is not None]
    if isinstance(real.target, Adaptive):
        made.target = real.target.softened()
        made.say("gradients were taken through the defence by its straight-through stand-in (BPDA)")
    called = dict.fromkeys(response for name, response in RESPONSES.items() if name in made.red)
    for response in (*called, *LAST):
        response(made)
    return made


def _abstain(made: Plan) -> None:
    made.shunned = made.real.unlabelled
    made.real = replace(made.real, goal=made.goal(made.real.goal))
    made.say(f"the attack aimed at answers of real classes: class {made.shunned}, an abstention, counts as no error")


def _inside(made: Plan) -> None:
    made.limits = (made.clean.amin(0), made.clean.amax(0))
    space = replace(made.real.space, low=made.limits[0], high=made.limits[1])  # type: ignore[type-var]
    made.real = replace(made.real, space=space)
    made.say("the search stayed within the range of the data, where the model's answers are finite")


def _logits(made: Plan) -> None:
    made.target = to.unrounded(made.target, LOGGED)
    made.say("the attack saw logarithms of probabilities from before they were rounded")


def _statistics(made: Plan) -> None:
    with torch.no_grad(), Softened(NOTED) as mode:
        made.target.forward(made.clean)
    if not mode.statistics:
        return
    made.target = to.softened(made.target, frozen(mode.statistics), "frozen")
    made.lead = float(made.real.margin(made.real.x).abs().median()) * 0.25
    made.say("batch statistics were frozen to those of clean inputs, so that every input was attacked by itself")


def _through(made: Plan) -> None:
    """Pass gradients through what blocks them: operations by a mode, layers of unknown inside by hooks."""
    ways = [(made.target, ""), (to.softened(made.target, THROUGH, "through"), "operations that block gradients")]
    dead = _blocking_layers(made)
    if dead:
        copy = to.passing(made.target, dead)
        ways += [(copy, f"layers that block gradients ({', '.join(sorted(dead))})")]
        ways += [(to.softened(copy, THROUGH, "through"), ways[-1][1])]
    taken = _best(made, ways)
    if taken:
        made.say(f"gradients were passed straight through {taken} (BPDA)")


def _gates(made: Plan) -> None:
    narrow, wide = 0.25 * made.real.reach, 0.75 * made.real.reach
    around = "gradients were averaged over points around, to see across jumps"
    ways = [
        (made.target, ""),
        (to.softened(made.target, SOFT_GATES, "soft"), "thresholds were softened on the way back"),
        (
            to.softened(made.target, OPEN_GATES, "open"),
            "thresholds were passed straight through on the way back (BPDA)",
        ),
        (to.smoothed(made.target, narrow), around),
        (to.smoothed(made.target, wide), around),
    ]
    taken = _best(made, ways)
    if taken:
        made.say(taken)


def _scale(made: Plan) -> None:
    found = spread(made.target, made.real.x)
    if found > USUAL:
        made.target = to.rescaled(made.target, USUAL / found)
        made.say(f"logits were divided by {found / USUAL:.3g} for the attack's losses")


def _average(made: Plan) -> None:
    probe = made.probe
    draws = torch.stack([probe.margin(probe.x) for _ in range(6)])
    made.lead = SURE * float(draws.std(0).median())
    made.target = to.averaged(made.target, DRAWS)
    made.judge = to.voted(made.judge, VOTES)
    made.say(
        f"gradients were averaged over {DRAWS} answers of the random model (EOT); an input counts as broken where most "
        f"of {VOTES} answers are wrong"
    )


def _loss(made: Plan) -> None:
    probe = made.probe
    if probe.faint.get("ce", 0.0) > ZERO_SHARE >= probe.dead["margin"]:
        made.settings["loss"] = "margin"
        made.say("the attack climbed the margin, because the cross-entropy has no gradient")


RESPONSES: Mapping[str, Response] = {
    "abstain_class": _abstain,
    "nonfinite": _inside,
    "softmax_output": _logits,
    "batch_dependence": _statistics,
    "no_graph": _through,
    "zero_gradient": _through,
    "test_time_optimisation": _through,
    "gradient_agreement": _gates,
    "jumps": _gates,
    "logit_scale": _scale,
    "randomness": _average,
}
"""Doubt -> what is done about it, in this order."""
LAST: Sequence[Response] = (_loss,)


def _best(made: Plan, ways: Sequence[tuple[Target, str]]) -> str:
    """Take the way whose short attack breaks most of the few rows, or raises the real margin most."""
    scored = [(_trial(made, target), -number, target, text) for number, (target, text) in enumerate(ways)]
    _, _, made.target, text = max(scored, key=lambda row: row[:2])
    return text


def _trial(made: Plan, target: Target) -> tuple[float, float]:
    """Rows broken and mean margin of the model itself after a short attack on `target`."""
    try:
        probe = made.real.on(target)
        best = probe.climb(TRIAL, "trial")
        margin = made.real.margin(best.x).nan_to_num(-1e9)
    except RuntimeError:  # the code does not bear other rules for its gradients
        return -1.0, 0.0
    size = made.real.margin(made.real.x).abs().median().clamp_min(1e-12)
    return float((margin > 0).double().mean()), float((margin / size).clamp(-2, 2).mean())


def _blocking_layers(made: Plan) -> frozenset[str]:
    """Layers that give what depends on their input, and no gradient; of shapes that the identity fits."""
    module = made.probe.module
    if module is None:
        return frozenset()
    heard: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        layer.register_forward_hook(_listen(heard, name))
        for name, layer in module.named_modules()
        if name and not isinstance(layer, torch.jit.ScriptModule)
    ]
    try:
        made.real.answer(made.real.x)
    finally:
        for handle in handles:
            handle.remove()
    layers = dict(module.named_modules())
    dead = {name for name, (given, out) in heard.items() if given.shape == out.shape and _blocks(layers[name], given)}
    return frozenset(name for name in dead if not any(other.startswith(f"{name}.") for other in dead))


def _listen(heard: dict[str, tuple[Tensor, Tensor]], name: str) -> Callable[..., None]:
    def hook(_layer: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        if (
            len(given) == 1
            and isinstance(given[0], Tensor)
            and isinstance(out, Tensor)
            and given[0].is_floating_point()
        ):
            heard[name] = (given[0].detach().clone(), out.detach())

    return hook


def _blocks(layer: nn.Module, given: Tensor) -> bool:
    leaf = given.clone().requires_grad_(True)
    with torch.enable_grad():
        out = layer(leaf.clone())
        moved = layer(given + 0.5 * given.std().clamp_min(1e-6))
        if torch.equal(moved, out):
            return False
        slope = torch.autograd.grad(out.sum(), leaf, allow_unused=True)[0] if out.requires_grad else None
    return slope is None or not bool((slope != 0).any())
