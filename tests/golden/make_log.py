"""A rich audit log made by hand: every family, every state, curves, pictures, doubts, suppressions, before and after."""

from __future__ import annotations

import base64
import io
import math
import random
from datetime import date

from PIL import Image

from vauban.rules.base import Context
from vauban.rules.judge import judge, verdict
from vauban.schema.log import (
    Attempt,
    AuditLog,
    Change,
    Comparison,
    Cost,
    Curve,
    DataInfo,
    Doubt,
    Exhibit,
    Measurement,
    Picture,
    RunInfo,
    Series,
    Suppression,
    TargetInfo,
)

TODAY = date(2026, 11, 20)
N = 500
NEEDS = {
    "evasion.apgd": ("labels", "scores", "logits", "gradients"),
    "evasion.pgd": ("labels", "scores", "logits", "gradients"),
    "evasion.square": ("labels", "scores"),
    "evasion.noise": ("labels",),
    "evasion.universal": ("labels", "gradients"),
    "evasion.hop_skip_jump": ("labels",),
    "leakage.lira": ("scores", "training", "data_read"),
    "leakage.loss_threshold": ("scores",),
    "leakage.inversion": ("gradients",),
    "extraction.exact": ("scores",),
    "extraction.substitute": ("scores", "data_read"),
    "poisoning.badnets": ("data_write", "training"),
    "poisoning.label_flip": ("data_write", "training"),
    "poisoning.data_audit": ("data_read",),
    "tampering.bit_flip": ("weights_read", "weights_write"),
}


def m(name: str, value: float | None, width: float = 0.03, unit: str = "rate", n: int = N) -> Measurement:
    low, high = (None, None) if value is None or not width else (max(0.0, value - width), value + width)
    if high is not None and unit in ("rate", "auc"):
        high = min(1.0, high)
    return Measurement(name=name, value=value, low=low, high=high, n=n, unit=unit, method="95 %")


def picture(seed: int, caption: str, noise: int = 0) -> Picture:
    """A blob of 8 x 8 pixels."""
    dice = random.Random(seed)
    cx, cy = 3 + seed % 3, 2 + seed % 4
    image = Image.new("L", (8, 8))
    for x in range(8):
        for y in range(8):
            bright = 255 * math.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 6) + dice.randint(-noise, noise)
            image.putpixel((x, y), max(0, min(255, int(bright))))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Picture(caption=caption, png=base64.b64encode(buffer.getvalue()).decode())


def exhibit(seed: int) -> Exhibit:
    captions = ("clean: 3", "perturbation x 8", "attacked: 8", "attribution, clean", "attribution, attacked")
    return Exhibit(
        title=f"Row {seed}: a 3 becomes an 8",
        note="Distance 0.098 of 0.1 allowed; survives rounding to 8 bits.",
        pictures=[picture(seed + i, c, noise=40 * (i % 2)) for i, c in enumerate(captions)],
    )


def security_curve(label: str, steep: float) -> Curve:
    x = [0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3]
    y = [0.97 * math.exp(-steep * v) for v in x]
    line = Series(label=label, x=x, y=y, low=[max(0, v - 0.03) for v in y], high=[min(1, v + 0.03) for v in y])
    return Curve(
        id="security_curve",
        title="Accuracy as the attacker gets more room",
        x_label="radius (linf)",
        y_label="accuracy",
        series=[line],
        reading="At radius 0.1 the model is right on 12 % of the inputs, without an attack on 97 %.",
    )


def roc() -> Curve:
    x = [10 ** (-3 + 3 * i / 40) for i in range(41)]
    lines = [("attack", 0.45), ("blind baseline", 0.97), ("null control", 1.02)]
    return Curve(
        id="roc",
        title="Members found against false alarms",
        x_label="false-positive rate",
        y_label="true-positive rate",
        x_scale="log",
        y_scale="log",
        series=[Series(label=name, x=x, y=[v**power for v in x]) for name, power in lines],
        reading="The higher the line at the left edge, the more members are recognised almost without false alarms.",
    )


def evasion(check: str, wrong: int, broken: int, steep: float, queries: float, **more: object) -> Attempt:
    letters = "w" * wrong + "b" * broken + "h" * (N - wrong - broken)
    return Attempt(
        check=check,
        threat="linf:0.1",
        state="assessed",
        cost=Cost(queries=int(queries * N), gradients=int(queries * N / 2), seconds=queries / 20),
        measurements=[
            m("evasion.clean_accuracy", 1 - wrong / N, 0.015),
            m("evasion.robust_accuracy", 1 - (wrong + broken) / N),
            m("evasion.median_distance", 0.062, 0.004, "linf"),
            m("evasion.queries_median", queries, queries / 10, "queries"),
        ],
        curves=[security_curve(check, steep)],
        outcomes=letters,
        params={"steps": 100},
        **more,  # type: ignore[arg-type]
    )


def evasion_attempts() -> list[Attempt]:
    doubts = [
        Doubt(id="zero_gradient", verdict="pass", value=0.0, threshold=0.01, text="gradients are not zero"),
        Doubt(
            id="black_box_beats_white_box",
            verdict="warn",
            value=3,
            threshold=0,
            text="Square breaks 3 pictures that APGD does not",
            remedy="give APGD more steps",
        ),
    ]
    return [
        evasion("evasion.apgd", 15, 425, 20, 100, doubts=doubts, exhibits=[exhibit(i) for i in (11, 42, 97)]),
        evasion("evasion.pgd", 15, 410, 18, 40, caveats=["412 of 425 survive rounding to the grid of 1/255"]),
        evasion("evasion.square", 15, 360, 14, 900),
        evasion("evasion.noise", 15, 4, 0.4, 100),
        evasion("evasion.universal", 15, 190, 6, 20),
        Attempt(
            check="evasion.hop_skip_jump", threat="linf:0.1", state="inconclusive", reason="the time limit was reached"
        ),
        Attempt(
            check="evasion.feature", threat="linf:0.1", state="error", reason="RuntimeError: no layer <last> & so on"
        ),
        Attempt(
            check="evasion.fgsm", threat="linf:0.1", state="skipped", reason="the threat model does not grant gradients"
        ),
    ]


def other_attempts() -> list[Attempt]:
    def done(check: str, *numbers: Measurement, **more: object) -> Attempt:
        cost = Cost(queries=12_345, gradients=0, seconds=8.4)
        return Attempt(check=check, threat="all", state="assessed", cost=cost, measurements=list(numbers), **more)  # type: ignore[arg-type]

    membership = (m("leakage.blind_auc", 0.51, 0.03, "auc"), m("leakage.null_auc", 0.5, 0.03, "auc"))
    table = Exhibit(
        title="Rows most worth a look",
        columns=["row", "label", "score"],
        rows=[["17", "3", "0.99"], ["640", "8", "0.98"]],
    )
    return [
        done(
            "leakage.lira",
            m("leakage.membership.auc", 0.78, 0.02, "auc"),
            m("leakage.membership.tpr_at_fpr_1pct", 0.14),
            m("leakage.membership.tpr_at_fpr_0.1pct", None, n=0),
            *membership,
            curves=[roc()],
        ),
        done("leakage.loss_threshold", m("leakage.membership.auc", 0.64, 0.03, "auc"), *membership, curves=[roc()]),
        done(
            "leakage.inversion",
            m("leakage.reconstruction.psnr", 19.2, 1.1, "dB", 10),
            m("leakage.reconstruction.blind_psnr", 13.0, 0.4, "dB", 10),
            exhibits=[
                Exhibit(
                    title="What the model gives away", pictures=[picture(i, f"{i}: rebuilt", 20) for i in range(10)]
                )
            ],
        ),
        done(
            "extraction.exact",
            m("extraction.max_parameter_error", 3e-12, 0, "absolute"),
            m("extraction.queries", 65, 0, "queries"),
        ),
        done("extraction.substitute", m("extraction.agreement", 0.93), m("extraction.queries", 5000, 0, "queries")),
        done(
            "poisoning.badnets",
            m("poisoning.attack_success_rate", 0.97),
            m("poisoning.clean_accuracy", 0.965),
            facts={"fraction": 0.03, "success_without_poison": 0.02},
        ),
        done(
            "poisoning.label_flip",
            m("poisoning.clean_accuracy", 0.86),
            facts={"fraction": 0.1, "clean_twin_accuracy": 0.97},
        ),
        done(
            "poisoning.data_audit",
            m("poisoning.detection_auc", 0.96, 0.01, "auc"),
            m("poisoning.detection_fpr_clean", 0.01, 0.005),
            facts={"suspicious_count": 61, "suspicious_rows": [17, 640], "expected_rate_at_most": 0.015},
            exhibits=[table],
        ),
        done(
            "tampering.bit_flip",
            m("tampering.flips_to_collapse", 17, 0, "flips"),
            m("tampering.random_control_accuracy", 0.968, 0.01),
        ),
        Attempt(check="extraction.tree", threat="all", state="not_applicable", reason="this target has no trees"),
    ]


def comparison() -> Comparison:
    def change(name: str, before: float, after: float, better: bool | None, threat: str | None = "linf:0.1") -> Change:
        gap = after - before
        return Change(
            check="evasion.apgd", threat=threat, name=name, before=before, after=after, difference=gap,
            low=gap - 0.03, high=gap + 0.03, better=better,
        )  # fmt: skip

    lines = [*security_curve("before", 20).series, *security_curve("after", 3).series]
    return Comparison(
        defence="train.pgd",
        before="demo:digits-cnn",
        after="demo:digits-cnn+train.pgd",
        adaptive=["evasion.apgd", "evasion.apgd_targeted"],
        changes=[
            change("evasion.clean_accuracy", 0.97, 0.945, False, None),
            change("evasion.robust_accuracy", 0.12, 0.71, True),
            change("leakage.membership.auc", 0.64, 0.63, None),
        ],
        curves=[
            security_curve("", 1).model_copy(
                update={"series": lines, "reading": "The gap between the lines is gained."}
            )
        ],
        caveats=["Adversarial training answers evasion; theft and leakage are as before."],
    )


def make_log(rich: bool = True) -> AuditLog:
    """All of it; `rich=False` leaves the comparison out."""
    target = TargetInfo(
        id="demo:digits-cnn",
        sha256="9f" * 32,
        domain="image",
        offers=["labels", "scores", "logits", "gradients", "weights_read", "weights_write", "training"],
        classes=10,
        facts={"clean_accuracy": 0.97, "input_range": [0, 1]},
        preflight=[Doubt(id="range", verdict="pass", text="inputs lie in [0, 1], as declared")],
    )
    data = DataInfo(id="demo:digits", sha256="1c" * 32, train=1297, test=500, shape=[1, 8, 8], samples=N)
    context = Context(target=target, data=data, target_spec="demo:digits-cnn", data_spec="demo:digits", needs=NEEDS)
    attempts = [*evasion_attempts(), *other_attempts()]
    accepted = Suppression(
        rule="extraction.exact_copy",
        reason="The weights are published anyway",
        owner="a.person@example.org",
        until="2027-01-31",
    )
    findings = judge(attempts, context, [accepted], TODAY)
    return AuditLog(
        run=RunInfo(
            id="2026-11-20-demo",
            started="2026-11-20T10:00:00Z",
            finished="2026-11-20T10:02:14Z",
            seed=0,
            argv=["vauban", "audit", "demo:digits-cnn", "--data", "demo:digits", "--out", "run"],
            versions={"vauban": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
            machine={"cpu": "2 cores", "memory": "8 GB"},
        ),
        target=target,
        data=data,
        attempts=attempts,
        findings=findings,
        verdict=verdict(attempts, findings),
        before_after=comparison() if rich else None,
        notes=[
            "The suppression of evasion.untrustworthy by b@example.org (until 2026-12-31) met no finding: remove it."
        ],
    )
