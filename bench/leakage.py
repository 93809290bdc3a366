"""Membership inference on an overfitted MNIST model: LiRA and RMIA of this package beside the attacks of ART.

    python bench/leakage.py [seeds]

A perceptron is trained on 2,000 rows until it knows them by heart. Half of its training rows and as many outsiders
are judged by every attack. ART's learned attacks are first given the other half of the members and as many outsiders
*with the truth* (more than LiRA ever gets), or 16 shadow models of ART's own making. LiRA and RMIA train 16 models.
The null rows are the same attacks on a model that was trained on other rows: there is nothing to find.
ART's label-only boundary attack is left out: hundreds of queries a record, hours here.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from art.attacks.inference.membership_inference import (
    MembershipInferenceBlackBox,
    MembershipInferenceBlackBoxRuleBased,
    ShadowModels,
)
from art.estimators.classification import PyTorchClassifier
from common import table, write
from torch import Tensor, nn

from vauban.attacks.leakage.lira import LiRA
from vauban.attacks.leakage.loss_threshold import LossThreshold
from vauban.attacks.leakage.rmia import RMIA
from vauban.core.attack import LeakScene
from vauban.core.data import Data
from vauban.core.rng import Rng
from vauban.core.target import Domain, Target
from vauban.engine.case import Case
from vauban.engine.measure import bootstrap, clopper_pearson
from vauban.engine.records import Records, ReferencePool, draw_records
from vauban.parts.roc import auc, hits_at_fpr
from vauban.targets.torch import TorchTarget, Training

ROWS, JUDGED, REFERENCES, EPOCHS, BATCH, RATE = 2000, 1000, 16, 40, 32, 1e-3
MODELS = ("nn", "rf", "gb", "lr", "dt", "knn", "svm")
Scores = Callable[[], np.ndarray]


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


class Classifier(PyTorchClassifier):
    """ART's classifier, trained by default as long as the model under attack was: shadow models are refitted without arguments."""

    def fit(self, x: Any, y: Any, batch_size: int = BATCH, nb_epochs: int = EPOCHS, **more: Any) -> None:
        super().fit(x, y, batch_size=batch_size, nb_epochs=nb_epochs, **more)


def mnist() -> tuple[Tensor, Tensor]:
    folder = Path(os.environ.get("VAUBAN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    raw = np.load(folder / "mnist" / "mnist.npz")
    return torch.from_numpy(raw["x_train"]), torch.from_numpy(raw["y_train"].astype(np.int64))


def draw(x: Tensor, y: Tensor, seed: int) -> tuple[Data, Data]:
    """Members and outsiders; and rows that have nothing to do with either, for the null model."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    parts = [(x[rows].reshape(-1, 1, 28, 28), y[rows]) for rows in order[: 3 * ROWS].split(ROWS)]
    (xm, ym), (xo, yo), (xn, yn) = parts
    return Data(xm, ym, xo, yo), Data(xn, yn, xo, yo)


def untrained(seed: int) -> TorchTarget:
    torch.manual_seed(seed)
    domain = Domain(kind="image", task="classification", classes=10, low=0.0, high=1.0)
    training = Training(epochs=EPOCHS, batch_size=BATCH, rate=RATE)
    return TorchTarget(module=network(), domain=domain, output="logits", training=training)


def accuracy(target: Target, x: Tensor, y: Tensor) -> float:
    return float((target.forward(x).labels == y).double().mean())


def ours(target: TorchTarget, data: Data, records: Records, pool: ReferencePool, seed: int) -> dict[str, Scores]:
    scene = LeakScene(
        target=target,
        x=records.x,
        y=records.y,
        member=records.member,
        recipe=target.recipe,
        pool=data,
        domain=target.domain,
        references=pool.get,
    )
    attacks = {
        "vauban LiRA (online)": LiRA(references=REFERENCES),
        "vauban LiRA (offline)": LiRA(references=REFERENCES, mode="offline"),
        "vauban RMIA (online)": RMIA(references=REFERENCES),
        "vauban loss threshold": LossThreshold(),
    }

    def run(attack: Any) -> Scores:
        return lambda: attack(scene, Rng(seed, len(records.x))).scores.numpy()

    return {name: run(attack) for name, attack in attacks.items()}


def art(target: TorchTarget, records: Records, shadows: Any) -> dict[str, Scores]:
    module = target.clone()
    optimiser = torch.optim.Adam(module.parameters(), lr=RATE)
    victim = Classifier(module, nn.CrossEntropyLoss(), (1, 28, 28), 10, optimizer=optimiser, clip_values=(0, 1))
    x, y = records.x.numpy(), records.y.numpy()
    half = len(records.x_rest) // 2  # the rest: members first, then outsiders
    xs, ys = records.x_rest.numpy(), records.y_rest.numpy()

    def told(kind: str, model: str) -> Scores:
        def run() -> np.ndarray:
            attack = MembershipInferenceBlackBox(victim, input_type=kind, attack_model_type=model)
            attack.fit(xs[:half], ys[:half], xs[half:], ys[half:])
            return np.asarray(attack.infer(x, y, probabilities=True), dtype=float).reshape(len(x), -1)[:, -1]

        return run

    def shadowed(model: str) -> Scores:
        def run() -> np.ndarray:
            (mx, my, mp), (nx, ny, np_) = shadows(victim)
            attack = MembershipInferenceBlackBox(victim, attack_model_type=model)
            attack.fit(mx, my, nx, ny, mp, np_)
            return np.asarray(attack.infer(x, y, probabilities=True), dtype=float).reshape(len(x), -1)[:, -1]

        return run

    def rule() -> np.ndarray:
        return np.asarray(MembershipInferenceBlackBoxRuleBased(victim).infer(x, y), dtype=float).reshape(-1)

    contenders = {f"ART {model} on predictions (told half)": told("prediction", model) for model in MODELS}
    contenders |= {f"ART {model} on losses (told half)": told("loss", model) for model in ("nn", "rf", "gb", "lr")}
    contenders |= {f"ART {model}, {REFERENCES} shadow models": shadowed(model) for model in ("rf", "gb")}
    return contenders | {"ART rule-based": rule}


def shadow_data(records: Records, seed: int) -> Callable[[Any], Any]:
    """ART's shadow data set, made once from the rows that are not judged."""
    made: list[Any] = []

    def make(victim: Any) -> Any:
        if not made:
            shadows = ShadowModels(victim, num_shadow_models=REFERENCES, random_state=seed)
            one_hot = np.eye(10, dtype=np.float32)[records.y_rest.numpy()]
            made.append(shadows.generate_shadow_dataset(records.x_rest.numpy(), one_hot))
        return made[0]

    return make


def judge(name: str, run: Scores, member: np.ndarray, seed: int) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        scores = run()
    except Exception as error:  # a peer that fails is a row of the table
        return {"attack": name, "seed": seed, "error": f"{type(error).__name__}: {error}"[:160]}
    seconds = time.perf_counter() - started
    hits = hits_at_fpr(scores, member, 0.01)
    low, high = bootstrap(lambda rows: auc(scores[rows], member[rows]), len(scores), seed, draws=300)
    return {
        "attack": name,
        "seed": seed,
        "auc": round(auc(scores, member), 4),
        "auc_interval": [round(low, 4), round(high, 4)],
        "tpr_at_fpr_1pct": hits / int(member.sum()),
        "tpr_interval": [round(v, 4) for v in clopper_pearson(hits, int(member.sum()))],
        "seconds": round(seconds, 2),
    }


def one(seed: int, x: Tensor, y: Tensor) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, float]]:
    data, other = draw(x, y, seed)
    start = untrained(seed)
    assert start.recipe is not None
    target = start.recipe.fit(data.x_train, data.y_train, seed)
    null = start.recipe.fit(other.x_train, other.y_train, seed)
    assert isinstance(target, TorchTarget)
    assert isinstance(null, TorchTarget)
    records = draw_records(data, JUDGED, np.random.default_rng(seed))
    case = Case(target=target, data=data, domain=target.domain, modality=Any, seed=seed)  # type: ignore[arg-type]
    pool = ReferencePool(start.recipe, records, case, ROWS)
    member = records.member.numpy()
    shadows = shadow_data(records, seed)
    found, nothing = (
        [
            judge(name, run, member, seed)
            for name, run in (ours(model, data, records, pool, seed) | art(model, records, shadows)).items()
        ]
        for model in (target, null)
    )
    facts = {
        "train_accuracy": accuracy(target, data.x_train, data.y_train),
        "test_accuracy": accuracy(target, data.x_test, data.y_test),
    }
    return found, nothing, facts


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(row["attack"] for row in rows))
    out = []
    for name in names:
        mine = [row for row in rows if row["attack"] == name and "auc" in row]
        if not mine:
            error = next(row["error"] for row in rows if row["attack"] == name)
            out.append({"attack": name, "error": error})
            continue
        aucs, tprs = [r["auc"] for r in mine], [r["tpr_at_fpr_1pct"] for r in mine]
        out.append(
            {
                "attack": name,
                "seeds": len(mine),
                "auc": round(mean(aucs), 4),
                "auc_sd": round(stdev(aucs), 4) if len(aucs) > 1 else None,
                "tpr_at_fpr_1pct": round(mean(tprs), 4),
                "chance_inside": sum(r["auc_interval"][0] <= 0.5 <= r["auc_interval"][1] for r in mine),
                "seconds": round(mean(r["seconds"] for r in mine), 2),
            }
        )
    return sorted(out, key=lambda row: -row.get("auc", 0))


def main(seeds: int) -> None:
    warnings.filterwarnings("ignore")
    x, y = mnist()
    found: list[dict[str, Any]] = []
    nothing: list[dict[str, Any]] = []
    facts = []
    for seed in range(seeds):
        started = time.perf_counter()
        rows, null_rows, seen = one(seed, x, y)
        found, nothing, facts = found + rows, nothing + null_rows, [*facts, {"seed": seed, **seen}]
        columns = ["attack", "seeds", "auc", "auc_sd", "tpr_at_fpr_1pct", "chance_inside", "seconds", "error"]
        print(f"seed {seed}: {time.perf_counter() - started:.0f} s, {seen}", flush=True)
        print(table(summary(found), columns), "\n\nnull model\n", table(summary(nothing), columns), sep="", flush=True)
        write("leakage", {"setting": setting(), "models": facts, "results": {"overfitted": summary(found), "null": summary(nothing)}, "runs": {"overfitted": found, "null": nothing}})  # fmt: skip


def setting() -> dict[str, Any]:
    return {
        "data": "MNIST, training file",
        "model": "784-128-10 perceptron, Adam",
        "rows": ROWS,
        "judged": f"{JUDGED} members and {JUDGED} outsiders",
        "references": REFERENCES,
        "epochs": EPOCHS,
        "batch": BATCH,
        "rate": RATE,
    }


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
