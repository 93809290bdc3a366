"""docs/benchmarks.md: every table of bench/results, with the command that makes it. No figure is typed in here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docs import plots

RESULTS = Path(__file__).resolve().parent.parent / "bench" / "results"
Row = Mapping[str, Any]
Tables = Iterator[tuple[str, Sequence[Row]]]


@dataclass(frozen=True)
class Section:
    """One results file: what it shows, and which columns of its rows."""

    file: str
    title: str
    words: str
    columns: Mapping[str, str]
    """Key in a row -> heading."""
    tables: Callable[[Any], Tables]


def _plain(results: Any) -> Tables:
    for name, part in results.items():
        yield name, part["rows"] if isinstance(part, dict) else part


def _cascade(results: Any) -> Tables:
    for name, part in results.items():
        yield f"{name}, {part['rows'][0].get('samples', 0)} samples", part["rows"]


def _proofs(results: Any) -> Tables:
    boxes = {name: part for name, part in results.items() if isinstance(part, dict) and "images" in part}
    for name, part in boxes.items():
        yield f"{results['model']}, {part['images']:,} images, {name}", [part]


def _one(results: Any) -> Tables:
    yield "", results


def _all(results: Any) -> Tables:
    yield "", list(results.values())


def _detectors(results: Any) -> Tables:
    """A row a detector: its areas under the curve, in brackets those at 5 % false alarms."""
    for name, part in results.items():
        rows = []
        for detector, found in part.items():
            against = {attack.removeprefix("evasion."): row for attack, row in found["against"].items()}
            told = {
                attack: f"{row['auc']['value']:.3f} ({row['tpr_at_fpr_5pct']['value']:.2f})"
                for attack, row in {**against, "joint": found["joint"]}.items()
            }
            alarms = {
                key: found[key]["value"] for key in ("false_alarms", "false_alarms_noise", "passed") if found.get(key)
            }
            rows.append({"detector": detector, **told, **alarms})
        yield name, sorted(rows, key=lambda row: row["joint"], reverse=True)


SECTIONS = (
    Section(
        "cascade",
        "The cascade beside AutoAttack",
        "AutoAttack's standard at the paper's steps, put together from torchattacks' parts; every seed has its own samples. "
        "`accuracy` is what is left, `only AutoAttack` the samples that it breaks and the cascade does not.",
        {
            "contender": "", "seeds": "seeds", "accuracy": "accuracy", "certified": "certified",
            "only_autoattack": "only AutoAttack", "only_us": "only this", "forwards": "forwards a sample",
            "seconds": "seconds", "x_autoattack": "x AutoAttack",
        },
        _cascade,
    ),
    Section(
        "proofs",
        "Proofs on a published net",
        "Certificates for all test images beside PGD-100 on them; `proofs / PGD` compares CPU time.",
        {
            "certified_error": "certified error", "attack_error": "attack error", "gap": "gap",
            "broken_although_certified": "broken although certified", "proof_over_pgd": "proofs / PGD",
            "proof_over_pgd_cpu": "the same, CPU",
        },
        _proofs,
    ),
    Section(
        "evasion",
        "Attacks within a radius",
        "Time over the bare passes, passes a sample, accuracy left or median distance.",
        {
            "contender": "", "seconds": "seconds", "x_floor": "x bare passes", "passes": "passes",
            "accuracy": "accuracy", "median": "median distance", "only_them": "only they", "only_us": "only this",
        },
        _plain,
    ),
    Section(
        "minimal_norm",
        "Nearest success",
        "Everybody has the same passes; `optimality` is 1 where an attack is as near as all peers together, input by input.",
        {
            "contender": "", "optimality": "optimality", "median": "median", "found": "found", "passes": "passes",
            "seconds": "seconds", "per_pass": "x a bare pass", "per_pass_cpu": "the same, CPU",
        },
        _plain,
    ),
    Section(
        "score_based",
        "Scores alone",
        "Queries until the first success, in Linf; beside a peer's where a quarter, half, three quarters and all of those are "
        "broken that it breaks. `time` puts a query over a bare forward pass.",
        {
            "contender": "", "seeds": "seeds", "broken": "broken", "mean_queries": "mean queries", "at_100": "by 100",
            "at_300": "by 300", "at_1000": "by 1,000", "of_torchattacks": "x torchattacks' queries", "of_art": "x ART's",
            "per_query": "x a forward", "per_query_cpu": "the same, CPU",
        },
        _plain,
    ),
    Section(
        "label_only",
        "Labels alone",
        "The median distance that a budget of queries an image leaves.",
        {
            "contender": "", "seeds": "seeds", "median": "median distance", "of_white_box": "x the white box", "queries": "queries", "seconds": "seconds",
            "per_query": "x a forward", "per_query_cpu": "the same, CPU",
        },
        _plain,
    ),
    Section(
        "transfer",
        "Transfer",
        "Share of the images broken, in per cent, without the model's scores or gradients.",
        {"contender": "", "substitutes": "substitutes", "broken": "broken", "lowest": "lowest", "highest": "highest"},
        _plain,
    ),
    Section(
        "smoothing",
        "Certificates by sampling",
        "Time a certificate over that of the published algorithm.",
        {
            "contender": "", "x_reference": "x reference", "x_reference_cpu": "the same, CPU", "draws_a_row": "draws",
            "median_radius": "median radius",
        },
        _one,
    ),
    Section(
        "hardening",
        "Training against attacks",
        "`epoch`: one epoch of PGD-7 over the bare passes that it needs. Elsewhere everybody has the same CPU minutes, rows and first weights; "
        "`robust` is what the cascade leaves, at tier `standard` on MNIST and `screen` on the others. On CIFAR-10, of "
        "which there are 3,000 pictures, ours mirror and move them, the loop does not. The papers' order (AWP over TRADES over PGD over one step) "
        "is that of hundreds of epochs of large nets, where what is learnt by heart decides. Within minutes cheap steps make up for what they find "
        "less, because more of them are made (`epochs`), and two points between ours are within what 500 images tell. `certified`: training for proofs. "
        "`smoothing`: training for votes over noisy copies, certified by the published algorithm and by ours, and our share of its samples.",
        {
            "contender": "", "seeds": "seeds", "seconds": "seconds", "x_floor": "x bare passes", "vauban_over_it": "this / it", "bf16_over_it": "this in bf16 / it",
            "minutes": "CPU minutes", "epochs": "epochs", "clean": "clean", "robust": "robust", "certified_error": "certified error",
            "by_intervals": "proved by intervals", "reference_0.25": "published, 0.25", "vauban_0.25": "ours, 0.25",
            "reference_0.5": "published, 0.5", "vauban_0.5": "ours, 0.5", "samples_share": "samples",
        },
        _plain,
    ),
    Section(
        "robust_trees",
        "Robust trees",
        "Boosted trees of equal size, scikit-learn's and ours; robust error is exact, or between bounds where a second a row was not enough.",
        {
            "data": "", "radius": "linf", "model": "model", "clean_error": "clean error", "robust_error_least": "robust error, at least",
            "robust_error_most": "at most", "seconds": "seconds",
        },
        _one,
    ),
    Section(
        "detectors",
        "Detectors",
        "Area under the curve (and the share found at 5 % false alarms) against attacks that do not know the detector, none of which it learnt "
        "from, and against an attacker who knows both (`joint`); `passed` is how much of the joint attacker's gets through.",
        {
            "detector": "", "fgsm": "FGSM", "pgd": "PGD", "pgd confident": "PGD, confident", "square": "Square",
            "ddn nearest l2": "DDN, nearest", "joint": "joint", "passed": "passed", "false_alarms": "false alarms",
            "false_alarms_noise": "on noise",
        },
        _detectors,
    ),
    Section(
        "attributions",
        "Attributions",
        "Integrated gradients, 50 points, beside Captum's: time over Captum's as it comes, and the largest difference.",
        {
            "contender": "", "seconds": "seconds", "x_captum": "x Captum", "x_captum_cpu": "the same, CPU",
            "against_captum": "difference", "against_float64": "from float64",
        },
        _one,
    ),
    Section(
        "generated",
        "Training with generated data",
        "Differences of accuracy at equal steps, from the same fresh weights; the interval is the widest of the seeds, each paired over 500 test rows. "
        "Something is claimed where every seed's interval leaves out zero.",
        {
            "of": "", "what": "accuracy", "seeds": "seeds", "difference": "difference", "low": "from", "high": "to", "claim": "claim",
        },
        _plain,
    ),
    Section(
        "traps",
        "Models that fool evaluations",
        "Accuracy under attack found, beside the truth without the trap, and whether a doubt was raised.",
        {"model": "", "trap": "trap", "flagged": "flagged", "truth": "truth", "ours": "found", "reactions": "went through by"},
        _one,
    ),
    Section(
        "leakage",
        "Membership",
        "An overfitted MNIST model, and one that never saw the data (`null`). Who comes first of LiRA and RMIA trains the 16 "
        "reference models that they share; ART's learned attacks are told the truth on as many rows, or train 16 shadow models.",
        {
            "attack": "", "seeds": "seeds", "auc": "AUC", "auc_sd": "its deviation", "tpr_at_fpr_1pct": "TPR at 1 % FPR",
            "chance_inside": "seeds with chance inside the interval", "seconds": "seconds",
        },
        _plain,
    ),
    Section(
        "passes",
        "Ways to make a pass",
        "A forward and backward pass to the input, over one batch in plain order and over the engine's own way (`ordered`: "
        "micro-batches, channels-last for pictures). `bfloat16` has a forward in float32 on top, as a scout would need; "
        "compiled forwards are beside eager ones.",
        {
            "contender": "", "micro_batch": "micro-batch", "x_plain": "x plain", "x_ordered": "x ordered",
            "x_eager": "x an eager forward", "compile_seconds": "seconds to compile",
        },
        _plain,
    ),
    Section(
        "start",
        "Start",
        "Seconds until a fresh process is done; files in the page cache.",
        {"what": "", "median_s": "seconds", "bar_s": "bar", "met": "met"},
        _one,
    ),
    Section(
        "memory",
        "Memory",
        "The highest resident memory of a `standard` run over that of one forward and backward pass.",
        {
            "case": "", "micro_batch": "micro-batch", "images": "images", "pass_mb": "pass, MB",
            "standard_mb": "standard, MB", "peak_over_peak": "ratio",
        },
        _all,
    ),
)  # fmt: skip


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value).replace("|", "\\|")


def _table(columns: Mapping[str, str], rows: Sequence[Row]) -> list[str]:
    shown = [row for row in rows if not row.get("error")]
    used = {key: head for key, head in columns.items() if any(row.get(key) is not None for row in shown)}
    lines = [f"| {' | '.join(used.values())} |", "|---" * len(used) + "|"]
    return lines + [f"| {' | '.join(_cell(row.get(key)) for key in used)} |" for row in shown]


def page() -> str:
    """Every section whose results are there."""
    lines = [
        "# Benchmarks",
        "",
        "Made from `bench/results` by `make docs`; [bench/README.md](../bench/README.md) says how it was measured. Medians over",
        "the seeds that were run. `load` is the machine's at the end: much above the number of threads, times say little.",
        "",
    ]
    for section in SECTIONS:
        path = RESULTS / f"{section.file}.json"
        if not path.exists():
            continue
        whole = json.loads(path.read_text(encoding="utf-8"))
        lines += [f"## {section.title}", "", section.words, ""]
        lines += [
            f"`bash bench/run {section.file}` · threads {whole['machine']['threads']}, load {whole['machine']['load_at_end']}",
            "",
        ]
        for title, rows in section.tables(whole["results"]):
            lines += [*([f"**{title}**", ""] if title else []), *_table(section.columns, rows), ""]
        for curve in plots.curves(section.file):
            lines += [f"![{curve.title}]({plots.FOLDER}/{curve.id}.svg)", ""]
    return "\n".join(lines).rstrip() + "\n"
