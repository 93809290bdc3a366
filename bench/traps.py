"""Fifteen models that fool evaluations and seven honest ones: who notices, and who breaks them all the same.

    python bench/traps.py [--samples 200] [--threads 1] [--only NAME ...]

The models of tests/traps, with the doubts and the figure of our `evasion.apgd` as an audit makes it (for random models
the expected accuracy over 32 draws). `truth` is the robust accuracy of the same net without the trap, by APGD alone: an
upper bound where the trap itself makes the net weaker, so that "within 2 points" means not more than 2 points above it.
Peers are given the benefit of the doubt: a NaN answer or an abstention counts as broken for them. Beside them what peers say of themselves: ART's
`loss_gradient_check` (share of inputs with a gradient that is zero, NaN or infinite), its `SecurityCurve`'s flag for
obfuscated gradients, the accuracy under its PGD, and the accuracy under torchattacks' PGD-40. torchattacks and Foolbox
check nothing, and AutoAttack's own package, which does, is not on the registry. Writes results/traps.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "traps"))

import judge
import zoo

BAD = 0.1
"""Share of bad gradients from which ART's check counts as a flag; the same that ours uses."""
COLUMNS = [
    "model",
    "doubts",
    "flagged",
    "truth",
    "ours",
    "art_bad_gradients",
    "art_curve_flag",
    "art_pgd",
    "torchattacks_pgd",
]


def art_says(model: zoo.Model, samples: int) -> dict[str, Any]:
    from art.estimators.classification import PyTorchClassifier
    from art.evaluations.security_curve import SecurityCurve
    from art.metrics.gradient_check import loss_gradient_check

    data = model.data().head(samples, 0)
    x, y = data.x_test.numpy(), data.y_test.numpy()
    module = model.module().eval()
    low, high = float(data.x_test.min()), float(data.x_test.max())
    with torch.no_grad():
        outputs = module(data.x_test[:2]).shape[1]
    classifier = PyTorchClassifier(
        module, torch.nn.CrossEntropyLoss(), x.shape[1:], outputs, clip_values=(low, high), device_type="cpu"
    )
    out: dict[str, Any] = {}
    try:
        bad = loss_gradient_check(classifier, x, np.eye(outputs, dtype=np.float32)[y], verbose=False)
        out["art_bad_gradients"] = round(float(bad.any(1).mean()), 3)
    except Exception as error:  # a model that stops a peer is a row of the table
        out["art_bad_gradients"] = f"{type(error).__name__}"
    try:
        curve = SecurityCurve(eps=[zoo.RADIUS])
        _, accuracy, _ = curve.evaluate(
            classifier, x, np.eye(outputs, dtype=np.float32)[y], eps_step=zoo.RADIUS / 4, max_iter=40, verbose=False
        )
        out["art_curve_flag"] = bool(curve.detected_obfuscating_gradients)
        out["art_pgd"] = round(float(accuracy[0]), 3)
    except Exception as error:  # likewise
        out["art_curve_flag"] = f"{type(error).__name__}"
    return out


def torchattacks_says(model: zoo.Model, samples: int) -> Any:
    import torchattacks

    data = model.data().head(samples, 0)
    if float(data.x_test.min()) < 0:
        return "wants [0, 1]"
    module = model.module().eval()
    try:
        attack = torchattacks.PGD(module, eps=zoo.RADIUS, alpha=zoo.RADIUS / 4, steps=40)
        found = attack(data.x_test, data.y_test)
        with torch.no_grad():
            return round(float((module(found).argmax(1) == data.y_test).double().mean()), 3)
    except Exception as error:  # likewise
        return type(error).__name__


def row(name: str, model: zoo.Model, samples: int) -> dict[str, Any]:
    started = time.process_time()
    flags, attempt = judge.examined(model, samples, "standard")
    trap = model.honest is not None
    out: dict[str, Any] = {
        "model": name,
        "trap": trap,
        "doubts": sorted(flags),
        "flagged": bool(flags & model.doubts) if trap else bool(flags),
        "truth": round(judge.truth(model, samples), 4) if trap else None,
        "ours": judge.measured(model, samples) if trap else _robust(attempt),
        "reactions": [c for c in attempt.caveats if "survive" not in c] if attempt else [],
        "passes_attacking": attempt.cost.queries + attempt.cost.gradients if attempt else None,
        "passes_doubting": attempt.cost.doubting if attempt else None,
    }
    out["cpu_seconds"] = round(time.process_time() - started, 1)
    return out | art_says(model, samples) | {"torchattacks_pgd": torchattacks_says(model, samples)}


def _robust(attempt: Any) -> float | None:
    found = attempt.measurement("evasion.robust_accuracy")
    return None if found is None else found.value


def score(rows: list[dict[str, Any]]) -> dict[str, Any]:
    traps, honest = ([r for r in rows if r["trap"] is kind] for kind in (True, False))

    def near(key: str) -> int:
        return sum(isinstance(r.get(key), float) and r[key] <= r["truth"] + 0.02 for r in traps)

    def art(r: dict[str, Any]) -> bool:
        bad = r.get("art_bad_gradients")
        return r.get("art_curve_flag") is True or (isinstance(bad, float) and bad > BAD)

    return {
        "traps": len(traps),
        "honest": len(honest),
        "ours": {
            "flagged": sum(r["flagged"] for r in traps),
            "false_flags": sum(r["flagged"] for r in honest),
            "broken_within_2_points": near("ours"),
        },
        "art": {
            "flagged": sum(map(art, traps)),
            "false_flags": sum(map(art, honest)),
            "broken_within_2_points": near("art_pgd"),
        },
        "torchattacks": {"flagged": 0, "false_flags": 0, "broken_within_2_points": near("torchattacks_pgd")},
        "foolbox": "has no checks of its own",
        "autoattack": "its package, which has six checks, is not on the registry",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    for name, model in {**zoo.HONEST, **zoo.TRAPS}.items():
        if given.only and name not in given.only:
            continue
        rows.append(row(name, model, given.samples))
        print(name, rows[-1]["cpu_seconds"], "s", flush=True)
    print(common.table(rows, COLUMNS))
    body = {"samples": given.samples, "radius": zoo.RADIUS, "score": score(rows), "results": rows}
    print(body["score"])
    if not given.only:
        print(common.write("traps", body))


if __name__ == "__main__":
    main()
