"""Every defence on a small model: accuracy before and after, clean and under attacks that know it, and what it costs.

    python bench/defences.py [--only train.pgd,preprocess.jpeg] [--samples 300] [--costs]

The model is `demo:digits-cnn` on `demo:digits` at linf:0.1 unless CASES says otherwise. What is printed is what `vauban harden` prints:
the worst over all evasion attacks of the standard profile's cascade and those that the card names, on the same samples and seeds.
Results gather in results/defences.json, one entry a defence; docs/defences.md quotes them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import common
import torch
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import vauban
from vauban.api import as_data, as_target
from vauban.core.target import Target
from vauban.defences.catalog import DEFENCES
from vauban.schema.log import Comparison
from vauban.targets.options import Options
from vauban.targets.sklearn import sklearn_target

ROUNDS, COSTS = 15, 16
"""Of answers that are timed in turns; samples where only the costs are asked for."""
SHOWN = {
    "evasion.clean_accuracy": "clean",
    "evasion.robust_accuracy": "robust",
    "evasion.certified_accuracy": "certified",
    "leakage.membership.auc": "membership_auc",
}


def linear() -> Target:
    return _fitted("logistic regression", make_pipeline(StandardScaler(), LogisticRegression()))


def trees() -> Target:
    return _fitted("boosted trees", GradientBoostingClassifier(n_estimators=50, random_state=0))


def _fitted(name: str, estimator: Any) -> Target:
    data = as_data("demo:breast-cancer")
    estimator.fit(data.x_train.numpy(), data.y_train.numpy())
    return sklearn_target(estimator, Options(id=name, domain=as_target("demo:breast-cancer").domain))


@dataclass(frozen=True)
class Case:
    """On what a defence is shown."""

    model: Callable[[], Target] = lambda: as_target("demo:digits-cnn")
    data: str = "demo:digits"
    threat: str = "linf:0.1"
    settings: Mapping[str, Any] = field(default_factory=dict)
    include: tuple[str, ...] = ("evasion.cascade",)
    most: int = 300
    """Samples: fewer where an answer is a vote over many copies."""


CASES = {
    "certify.smoothing": Case(threat="l2:0.5", settings={"epochs": 20}, most=40),
    "certify.bands": Case(most=40),
    "privacy.dp_sgd": Case(include=("evasion.cascade", "leakage.loss_threshold", "leakage.lira")),
    "train.noise": Case(threat="l2:0.5"),
    "train.robust_linear": Case(linear, "demo:breast-cancer", "linf:0.05"),
    "train.robust_trees": Case(trees, "demo:breast-cancer", "linf:0.05", {"trees": 50, "depth": 3}),
}


def shown(comparison: Comparison) -> dict[str, Any]:
    """The headline's numbers, before and after."""
    found: dict[str, Any] = {}
    for change in comparison.headline:
        if change.name in SHOWN:
            found[SHOWN[change.name]] = {
                "before": change.before, "after": change.after, "low": change.low, "high": change.high
            }  # fmt: skip
    return found


def x_answer(before: Target, after: Target, x: torch.Tensor) -> float:
    """CPU time of an answer over that of the undefended model: the median of rounds in turns."""
    ratios = []
    with torch.no_grad():
        for _ in range(ROUNDS):
            spent = []
            for target in (before, after):
                started = time.process_time()
                target.forward(x)
                spent.append(time.process_time() - started)
            ratios.append(spent[1] / spent[0])
    return statistics.median(ratios)


class Clock:
    """A watcher that keeps the time between the words of a hardening."""

    def __init__(self) -> None:
        self.notes: list[tuple[float, str]] = []

    def note(self, text: str) -> None:
        self.notes.append((time.process_time(), text))

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None

    @property
    def defending(self) -> float:
        """CPU seconds from the beginning of the defence to the audit before."""
        start = next(at for at, text in self.notes if text.startswith("defending"))
        return next(at for at, text in self.notes if text.startswith("before")) - start


def row(name: str, samples: int, costs: bool) -> dict[str, Any]:
    case, clock = CASES.get(name, Case()), Clock()
    samples = COSTS if costs else min(samples, case.most)
    target, data = case.model(), as_data(case.data)
    after = vauban.harden(
        target, data, defence=name, threat=case.threat, watcher=clock, samples=samples, formats=(),
        settings={name: dict(case.settings)}, include=["evasion.fgsm"] if costs else list(case.include),
    )  # fmt: skip
    answers = x_answer(target, after.target, data.x_test[:256])
    cost = {"defending_seconds": round(clock.defending, 1), "x_answer": round(answers, 2)}
    if costs:
        return common.stored("defences", name) | cost
    return {
        "model": target.id, "data": case.data, "threat": case.threat, "samples": samples,
        "settings": dict(case.settings), "adaptive": after.comparison.adaptive, **shown(after.comparison),
        **cost,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--costs", action="store_true", help="measure only what the defence costs, and keep the rest")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for name in asked.only.split(",") if asked.only else DEFENCES.ids():
        made = row(name, asked.samples, asked.costs)
        common.update("defences", name, made)
        robust, clean = made.get("robust", {}), made.get("clean", {})
        print(
            f"{name:24} clean {clean.get('before')} -> {clean.get('after')}  under attack {robust.get('before')} -> "
            f"{robust.get('after')}  {made['defending_seconds']} s, an answer {made['x_answer']} x",
            flush=True,
        )


if __name__ == "__main__":
    main()
