"""Run one check: gate, examine, and turn whatever happens into a state. Fails closed."""

from __future__ import annotations

import importlib
import time
import traceback

from vauban.attacks.catalog import ATTACKS
from vauban.engine.case import Case, Check, Examiner, Outcome
from vauban.engine.gate import refusal
from vauban.schema.errors import DiskFull, Limit, NotOffered, VaubanError
from vauban.schema.log import Attempt, Cost, State

EXAMINERS = {
    "evasion": "vauban.engine.evasion:examine",
    "leakage": "vauban.engine.leakage:examine",
    "extraction": "vauban.engine.extraction:examine",
    "poisoning": "vauban.engine.poisoning:examine",
    "tampering": "vauban.engine.tampering:examine",
}


def examiner(family: str) -> Examiner:
    module, _, name = EXAMINERS[family].partition(":")
    found: Examiner = getattr(importlib.import_module(module), name)
    return found


def execute(check: Check, case: Case) -> Outcome:
    """The outcome of one check. Only interruption and a full disk pass through as exceptions."""
    started = time.monotonic()

    def ended(state: State, reason: str) -> Outcome:
        cost = Cost(seconds=time.monotonic() - started)
        return Outcome(Attempt(check=check.id, threat=check.threat.id, state=state, reason=reason, cost=cost))

    try:
        no = refusal(ATTACKS.load(check.id).card, check.threat, case)
        if no is not None:
            return ended(no.state, no.reason)
        case.check_time()
        return examiner(check.family)(check, case)
    except DiskFull:
        raise
    except Limit as limit:
        return ended("inconclusive", str(limit))
    except MemoryError:
        return ended("error", "not enough memory; try a smaller --batch-size or fewer --samples")
    except NotOffered as missing:  # found only in the attempt: the model turned out not to give what is needed
        return ended("skipped", str(missing))
    except VaubanError as error:
        return ended("error", f"{error.code}: {error}")
    except Exception as error:  # a user's model may raise anything; the audit goes on and says so
        where = traceback.extract_tb(error.__traceback__)[-1]
        return ended("error", f"{type(error).__name__}: {error} (in {where.name}, line {where.lineno})")
