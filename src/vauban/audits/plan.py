"""What an audit will do: every check under every threat that fits it, what is left out and why, what it costs at most."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import vauban.attacks.catalog as attacks
from vauban.audits.gate import Gate
from vauban.audits.machine import version
from vauban.audits.profiles import PLAIN, STRONGEST, Profile
from vauban.core.data import Data
from vauban.core.registry import configure
from vauban.core.target import Domain, Target
from vauban.engine.case import Case, Check
from vauban.engine.curve import RADII
from vauban.engine.gate import Refusal, refusal
from vauban.schema.cards import AttackCard
from vauban.schema.errors import BadOption, BadThreat
from vauban.schema.log import Suppression
from vauban.schema.threat import NORMS, ThreatModel

FAMILY_THREATS = {
    "leakage": ThreatModel(id="queries", knows="the model's answers, and data of the same kind"),
    "extraction": ThreatModel(id="queries", knows="the model's answers, and inputs of the same kind"),
    "poisoning": ThreatModel(id="training-data", knows="the training data and how the model is trained"),
    "tampering": ThreatModel(id="weights", knows="the stored weights, and some labelled inputs"),
}
"""Whom an attack is made for where the user names nobody. Rights are all granted: the attack's card says what it takes."""


OF_THE_GOAL = frozenset({"tolerance"})
"""Settings of what an evasion attack is after, not of the attack."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One audit: everything that the result depends on, and how it is carried out."""

    target: Target
    data: Data
    target_spec: str = ""
    """What names the model on a command line; of a defended one, the model that was given."""
    defence: str = ""
    """Id of the defence that the target was made with here, if any: what is to be made again before it can be seen."""
    data_spec: str = ""
    threats: tuple[ThreatModel, ...] = ()
    """Rooms for the evasion attacks; the defaults of `default_threats` where empty."""
    include: tuple[str, ...] = ()
    exclude: Mapping[str, str] = field(default_factory=dict)
    """Attack or family -> reason."""
    profile: str = "standard"
    seed: int = 0
    samples: int | None = None
    """Test rows that are attacked one by one; checks that only measure on test rows take more (`runner.MEASURED`)."""
    batch_size: int | None = None
    time_limit: float | None = None
    """Seconds; None for the profile's own, inf for none."""
    query_limit: int | None = None
    """Model evaluations in all; a check that could overrun it is not begun."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    suppressions: tuple[Suppression, ...] = ()
    gates: tuple[Gate, ...] = ()
    fail_on: str = "high"
    formats: tuple[str, ...] = ("json", "html")
    lang: tuple[str, ...] = ("en",)
    executor: str = "local"
    whole_families: bool = True
    """False leaves checks that were not asked for out of the log."""
    options: tuple[str, ...] = ()
    """Further words of the command line that loads the same model and data."""
    argv: tuple[str, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """The most that something costs."""

    queries: int = 0
    gradients: int = 0
    trainings: int = 0
    seconds: float | None = None

    def __add__(self, other: Estimate) -> Estimate:
        seconds = None if self.seconds is None or other.seconds is None else self.seconds + other.seconds
        return Estimate(
            self.queries + other.queries, self.gradients + other.gradients, self.trainings + other.trainings, seconds
        )


@dataclass(frozen=True)
class Unit:
    """One check, its key in the journal, and its price; or the reason why it is not made."""

    check: Check
    key: str
    estimate: Estimate = field(default_factory=Estimate)
    refusal: Refusal | None = None


@dataclass(frozen=True)
class Plan:
    """In the order of the report."""

    units: tuple[Unit, ...]
    absent: tuple[str, ...]
    """Families that the user did not ask for."""
    left: tuple[Check, ...] = ()
    """Not made, for the profile makes others in their place: what they would try is not left untried."""

    @property
    def todo(self) -> tuple[Unit, ...]:
        return tuple(u for u in self.units if u.refusal is None)

    def turns(self) -> list[Unit]:
        """The order of work: families take turns, so that a limit cuts each of them a little and none of them off."""
        seen: Counter[str] = Counter()
        rounds = []
        for unit in self.units:
            rounds.append(seen[unit.check.family])
            seen[unit.check.family] += unit.refusal is None
        return [unit for _, unit in sorted(zip(rounds, self.units, strict=True), key=lambda pair: pair[0])]

    @property
    def estimate(self) -> Estimate:
        return sum((u.estimate for u in self.todo), Estimate(seconds=0.0))


def plan(request: Request, case: Case, profile: Profile, speed: Speed) -> Plan:
    """The units of an audit. Raises UnknownName, BadOption, BadThreat for what the request gets wrong."""
    catalogue = attacks.ATTACKS
    chosen = catalogue.select(request.include, request.exclude)
    threats = request.threats or (*default_threats(case.domain, case.data), *_rooms(profile, case))
    for threat in threats:
        check_threat(threat, case)
    families = {name.partition(".")[0] for name in chosen}
    listed = (
        [name for name in catalogue.ids() if name.partition(".")[0] in families] if request.whole_families else chosen
    )
    identity = identify(request, case, profile)
    checks = [(check, card) for name in listed for check, card in _checks(name, request, threats)]
    wished = [
        (_unit(check, card, request, case, profile, identity, speed), _stand_ins(check, card, request, profile))
        for check, card in checks
    ]
    made = {(unit.check.id, unit.check.threat.id) for unit, instead in wished if unit.refusal is None and not instead}
    units, left = [], []
    for unit, instead in wished:
        if any((name, unit.check.threat.id) in made for name in instead):
            left.append(unit.check)
        else:
            units.append(_alone(unit, instead, profile) if instead else unit)
    if not units:
        raise BadOption("Nothing is left to do: --include and --exclude name no check together.")
    everything = {name.partition(".")[0] for name in catalogue.ids()}
    return Plan(tuple(units), tuple(sorted(everything - families)), tuple(left))


def identify(request: Request, case: Case, profile: Profile) -> dict[str, Any]:
    """What every unit's result depends on."""
    return {
        "target": case.target.sha256(),
        "data": request.data.sha256(),
        "domain": _domain_digest(case),
        "profile": profile.id,
        "seed": request.seed,
        "samples": len(case.data.x_test),
        "vauban": version(),
    }


def _domain_digest(case: Case) -> str:
    domain = case.domain
    digest = hashlib.sha256(repr((domain.kind, domain.task, domain.classes, domain.step)).encode())
    for side in (domain.low, domain.high):
        digest.update(_row(side, case).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _checks(id: str, request: Request, threats: Sequence[ThreatModel]) -> list[tuple[Check, AttackCard]]:
    card = attacks.ATTACKS.load(id).card
    fitting = [t for t in threats if t.room is not None and t.room.space in card.spaces] or list(threats[:1])
    mine = fitting if card.spaces else [FAMILY_THREATS.get(card.family, ThreatModel(id="any"))]
    return [(Check(id=id, threat=t, settings=dict(request.settings.get(id, {}))), card) for t in mine]


def _unit(
    check: Check,
    card: AttackCard,
    request: Request,
    case: Case,
    profile: Profile,
    identity: Mapping[str, Any],
    speed: Speed,
) -> Unit:
    key = unit_key(check, identity)
    no = _unwanted(check, request) or refusal(card, check.threat, case) or _too_long(check, request, profile)
    return Unit(check, key, price(check, case, speed) if no is None else Estimate(), no)


def _unwanted(check: Check, request: Request) -> Refusal | None:
    for name, reason in request.exclude.items():
        if check.within(name):
            return Refusal("skipped", f"excluded: {reason}")
    if request.include and not any(map(check.within, request.include)):
        return Refusal("skipped", f"not asked for: this run includes {', '.join(request.include)}")
    return None


def _too_long(check: Check, request: Request, profile: Profile) -> Refusal | None:
    if check.id not in profile.left_out or _wanted(check, request):
        return None
    return Refusal("skipped", f"the profile {profile.id} leaves it out: use --profile standard")


def _wanted(check: Check, request: Request) -> bool:
    """Who names a check, or sets something about it, wants it made."""
    return check.id in request.include or check.id in request.settings


def _stand_ins(check: Check, card: AttackCard, request: Request, profile: Profile) -> tuple[str, ...]:
    """The attacks that make this one needless in this profile; none where somebody names it, or it is made anyway."""
    if not card.spaces or check.id in profile.left_out or _unwanted(check, request) or _wanted(check, request):
        return ()
    space = check.threat.room.space if check.threat.room else ""
    known = space in NORMS
    # nobody stands for an attack that has nothing to search here
    searches = space in card.spaces or (known and check.id not in profile.beyond)
    if not searches or check.id in (profile.evasion if known else profile.beyond):
        return ()
    return (STRONGEST,) if known else tuple(name for name in profile.beyond if name not in PLAIN)


def _alone(unit: Unit, instead: tuple[str, ...], profile: Profile) -> Unit:
    """What was left to others that are not made either: nobody has tried it."""
    reason = f"the profile {profile.id} leaves it to {', '.join(instead)}, not made here: --include {unit.check.id}"
    return replace(unit, estimate=Estimate(), refusal=unit.refusal or Refusal("skipped", reason))


def unit_key(check: Check, identity: Mapping[str, Any]) -> str:
    """The name of a unit's result: equal exactly where the result must be equal."""
    parts = {
        **identity,
        "check": check.id,
        "threat": check.threat.model_dump(mode="json"),
        "settings": dict(check.settings),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Speed:
    """Seconds for one sample's forward pass, and forward and backward, in a batch; None where not measured."""

    forward: float | None = None
    backward: float | None = None


def price(check: Check, case: Case, speed: Speed) -> Estimate:
    """The most that a check costs, from the attack's own price. Trainings are not timed beforehand."""
    attack_class = attacks.ATTACKS.load(check.id)
    settings = {k: v for k, v in check.settings.items() if k not in OF_THE_GOAL}
    attack = configure(attack_class, {**getattr(attack_class, "profiles", {}).get(case.profile, {}), **settings})
    each = attack.price(case.domain.classes)
    n = len(case.data.x_test) if attack_class.card.spaces else 1
    # the security curve: one more search where the attack has one, else a run a radius
    curve = [attack.nearest(case.domain.classes)] if hasattr(attack, "nearest") else []
    runs = len(RADII[case.profile]) if attack_class.card.curve and not curve else 1
    queries, gradients = (
        n * (runs * getattr(each, name) + sum(getattr(c, name) for c in curve)) for name in ("queries", "gradients")
    )
    seconds = None
    if speed.forward is not None:
        plain = max(queries - gradients, 0)
        seconds = plain * speed.forward + gradients * (speed.backward or 3 * speed.forward)
    return Estimate(queries, gradients, each.trainings, seconds)


def default_threats(domain: Domain, data: Data) -> tuple[ThreatModel, ...]:
    """The rooms to search where the user names none.

    Pictures: linf 0.1 and l2 1.0 of the range from the lowest to the highest valid value. Everything else: linf a
    quarter of the median standard deviation of the features that vary, l2 the same times the square root of their
    number, both rounded to two digits. A room of one's own, from what an attacker can do, is always better.
    """
    if domain.kind == "image":
        width = float(_tensor(domain.high).max() - _tensor(domain.low).min())
        return (_threat("linf", 0.1 * width), _threat("l2", 1.0 * width))
    rows = (data.x_train if data.has_train else data.x_test).flatten(1).to(torch.float64)
    spread = rows.std(0, correction=0)
    spread = spread[spread > 0]
    if len(spread) == 0:
        raise BadThreat("No feature of the data varies, so there is no room to search: name one with --threat.")
    step = 0.25 * float(spread.median())
    return (_threat("linf", step), _threat("l2", step * math.sqrt(len(spread))))


def _rooms(profile: Profile, case: Case) -> tuple[ThreatModel, ...]:
    """What a profile adds for pictures."""
    return tuple(map(ThreatModel.of, profile.rooms)) if case.domain.kind == "image" else ()


def _threat(space: str, radius: float) -> ThreatModel:
    return ThreatModel.of(f"{space}:{float(f'{radius:.2g}'):g}")


def _tensor(value: Tensor | float | None) -> Tensor:
    return torch.as_tensor(0.0 if value is None else value, dtype=torch.float64)


def check_threat(threat: ThreatModel, case: Case) -> None:
    """Raise BadThreat where this kind of data has no such space, or where the radius leaves nothing of an input."""
    if threat.room is None:
        raise BadThreat(f"The threat {threat.id!r} has no radius: write a space and a number, such as linf:0.1.")
    space = case.modality.space(threat.room.space, case.domain)
    low, high = (_row(side, case) for side in (case.domain.low, case.domain.high))
    space.frame(case.data.x_test[:1])
    widest = space.widest(low, high)
    if threat.room.radius > widest and space.knobs:
        raise BadThreat(
            f"The threat {threat.room.text} goes further than {space.name} can ({space.name}:{widest:g}): give a smaller "
            f"radius, in {space.unit}."
        )
    if threat.room.radius > widest:
        raise BadThreat(
            f"The threat {threat.room.text} allows more than the whole range of valid inputs ({threat.room.space}:{widest:.4g}), "
            "so that every input could become every other: give a smaller radius, in the units of the data."
        )


def _row(side: Tensor | float | None, case: Case) -> Tensor:
    """One input `[1, ...]` with every feature at its lowest or highest valid value."""
    return torch.as_tensor(0.0 if side is None else side, dtype=torch.float32).expand(1, *case.data.shape)
