"""Write the pages of docs/ from cards and docstrings, and its tables and the README's from measured results."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docs import measured, plots

from vauban.attacks.catalog import ATTACKS
from vauban.core.registry import Catalogue
from vauban.defences.catalog import DEFENCES
from vauban.rules.catalog import RULES
from vauban.schema.access import Access

HERE = Path(__file__).resolve().parent
README, RESULTS = HERE.parent / "README.md", HERE.parent / "bench" / "results"
BEGIN, END = "<!-- made from bench/results by make docs -->", "<!-- end -->"
LISTS = {
    "needs": "Needs",
    "spaces": "Searches",
    "tasks": "Tasks",
    "modalities": "Data",
    "goals": "Goals",
    "adaptive": "Attacks that know it",
}
PAGES: dict[str, tuple[str, Catalogue[Any]]] = {
    "attacks.md": ("Attacks", ATTACKS),
    "defences.md": ("Defences", DEFENCES),
    "rules.md": ("Rules", RULES),
}


def section(cls: Any, drawn: Mapping[str, str]) -> str:
    """One id as Markdown; `drawn`: name of a picture -> the line that shows it."""
    card = cls.card
    told = card.model_dump(mode="json")
    parts = [f"## {card.id}", f"**{card.name}.** {told.get('summary') or told.get('meaning', '')}"]
    if cls.__doc__ and dataclasses.is_dataclass(cls) and not cls.__doc__.startswith(f"{cls.__name__}("):
        parts.append(_arguments(inspect.cleandoc(cls.__doc__)))
    facts = [f"- {label}: {', '.join(told[key])}" for key, label in LISTS.items() if told.get(key)]
    facts += _costs(cls) if hasattr(cls, "price") else _before_after(card.id)
    parts += ["\n".join(facts)] if facts else []
    parts += [drawn[name]] if (name := f"defence-{card.id}") in drawn else []
    parts += [
        f"{label}: {told[key]}"
        for key, label in (("measured", "Measured"), ("false_positives", "When it is wrong"))
        if told.get(key)
    ]
    if told.get("remedies"):
        parts.append("What to do:\n\n" + "\n".join(f"- {remedy}" for remedy in told["remedies"]))
    if told.get("sources"):
        parts.append("Sources:\n\n" + "\n".join(f"- {s['title']}. {s['where']}" for s in told["sources"]))
    return "\n\n".join(parts)


CLASSES = 10


def _costs(cls: Any) -> list[str]:
    """What one sample costs at most, and how near the attack comes to optima that are known."""
    price = cls().price(CLASSES)
    spent = {"gradients": price.gradients, "queries": price.queries, "trainings": price.trainings}
    told = ", ".join(f"{count:,} {what}" for what, count in spent.items() if count)
    lines = [f"- Costs a sample, at most, with {CLASSES} classes: {told}"] if told else []
    measured = json.loads((RESULTS / "closed_form.json").read_text(encoding="utf-8"))["results"].get(cls.card.id, [])
    if measured:
        ratios = "; ".join(f"{row['norm']}, {row['classes']} classes {_worst(row['worst'])}" for row in measured)
        lines.append(f"- Worst distance over the known optimum, linear models (`bench/closed_form.py`): {ratios}")
    elif cls.card.id.startswith("evasion."):
        lines.append(f"- Known optimum on linear models: none, for it {_apart(cls.card)}")
    return lines


def _before_after(name: str) -> list[str]:
    """What a defence changed on a small model, and what it cost, where that was measured."""
    row = plots.defences().get(name)
    if row is None:
        return []
    words = {**plots.SHARES, "membership_auc": "membership AUC"}
    told = "; ".join(f"{word} {_change(row[key], key)}" for key, word in words.items() if row.get(key))
    return [
        f"- Before and after (`bench/defences.py`: {row['model']}, {row['threat']}, {row['samples']} samples): {told}",
        f"- Cost there: {row['defending_seconds']:.0f} CPU seconds to defend, an answer takes {row['x_answer']:.2f} times as long",
    ]


def _change(pair: dict[str, Any], key: str) -> str:
    """`44.5 → 78.5 % (+28.1 to +39.5)`: the interval of the difference in brackets."""
    scale, unit, digits = (1, "", 3) if key == "membership_auc" else (100, " %", 1)
    first, second = (f"{scale * pair[when]:.{digits}f}" for when in ("before", "after"))
    between = (
        "" if pair["low"] is None else f" ({scale * pair['low']:+.{digits}f} to {scale * pair['high']:+.{digits}f})"
    )
    return f"{first} → {second}{unit}{between}"


def _apart(card: Any) -> str:
    """Why an attack has no ratio."""
    reasons = (
        (card.joint, "changes all inputs alike or together"),
        (Access.FEATURES in card.needs, "works on the features of a hidden layer"),
        (bool(card.modalities), f"searches where only {', '.join(card.modalities)} data are"),
    )
    return next(words for holds, words in reasons if holds)


def _worst(ratio: float | None) -> str:
    return "not reached" if ratio is None else f"{ratio:.3f}"


def _arguments(text: str) -> str:
    """The docstring with its Args block as a list."""
    head, _, tail = text.partition("\nArgs:\n")
    if not tail:
        return text
    lines = [line.strip() for line in tail.splitlines()]
    items: list[str] = []
    for raw, line in zip(tail.splitlines(), lines, strict=True):
        name, colon, rest = line.partition(": ")
        new = raw.startswith("    ") and not raw.startswith("     ") and bool(colon)
        if new:
            items.append(f"- `{name}`: {rest}")
        elif line and items:
            items[-1] += f" {line}"
    return head + "\nSettings:\n\n" + "\n".join(items)


def page(title: str, catalogue: Catalogue[Any]) -> str:
    """All ids of a catalogue, in order."""
    bars = plots.defence_bars() if catalogue is DEFENCES else {}
    drawn = {name: f"![{b.title}]({plots.FOLDER}/{name}.svg)" for name, b in bars.items()}
    first = [drawn["defences"]] if drawn else []
    body = "\n\n".join([*first, *(section(catalogue.load(name), drawn) for name in catalogue.ids())])
    return f"# {title}\n\nMade from the code by `make docs`.\n\n{body}\n"


CONTENDERS = {
    "vauban": "**vauban**",
    "torchattacks": "torchattacks",
    "adv_lib": "adv-lib",
    "foolbox": "Foolbox",
    "cleverhans": "CleverHans",
    "art": "ART",
}


def _evasion(results: dict[str, Any]) -> list[str]:
    """A row a job: time against bare passes, and what is left of the accuracy (or the median distance)."""
    names = list(CONTENDERS.values())
    lines = [f"| same model, samples, steps | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for title, rows in results["results"].items():
        told = {row["contender"]: row for row in rows if row.get("x_floor") is not None and not row.get("error")}
        cells = [_beside(told.get(name)) for name in CONTENDERS]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def _beside(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    left = f"L2 {row['median']:.2f}" if row.get("median") is not None else f"{100 * row['accuracy']:.1f} %"
    return f"{row['x_floor']:.2f} · {left}"


def _leakage(results: dict[str, Any]) -> list[str]:
    """The best of ours and the best of the peer, on the model that leaks and on the one that cannot."""
    lines = [
        "| membership, overfitted MNIST model | AUC | TPR at 1 % FPR | AUC where nothing leaks |",
        "|---|---|---|---|",
    ]
    null = {r["attack"]: r for r in results["results"]["null"]}
    rows = [r for r in results["results"]["overfitted"] if "auc" in r]
    ours = [r for r in rows if r["attack"].startswith("vauban")][:3]
    peers = [r for r in rows if not r["attack"].startswith("vauban")]
    best = [max(peers, key=lambda r: r["auc"]), max(peers, key=lambda r: r["tpr_at_fpr_1pct"])]
    for row in [*ours, *{r["attack"]: r for r in best}.values()]:
        name = row["attack"].replace("vauban ", "**vauban** ")
        lines.append(
            f"| {name} | {row['auc']:.3f} | {100 * row['tpr_at_fpr_1pct']:.1f} % | {null[row['attack']]['auc']:.3f} |"
        )
    return lines


def _cascade(results: dict[str, Any]) -> list[str]:
    """A row a model: what is left by AutoAttack and by two tiers of ours, and their time over AutoAttack's."""
    lines = [
        "| model (samples) | AutoAttack standard | **vauban** screen | **vauban** standard | proved | broken by AutoAttack alone |",
        "|---|---|---|---|---|---|",
    ]
    for name, part in results["results"].items():
        told = {row["contender"]: row for row in part["rows"] if "accuracy" in row}
        if not {"autoattack", "vauban screen", "vauban standard"} <= set(told):
            continue
        peer, ours = told["autoattack"], told["vauban standard"]
        cells = [
            f"{100 * told[t]['accuracy']:.1f} % · {told[t]['x_autoattack']:.3f} x" for t in told if t != "autoattack"
        ]
        proved, alone = f"{100 * ours['certified']:.1f} %", f"{ours['only_autoattack']} of {ours['samples']}"
        left = f"{100 * peer['accuracy']:.1f} %"
        lines.append(f"| {name} ({ours['samples']}) | {left} | {' | '.join(cells)} | {proved} | {alone} |")
    return lines


def _nearest(results: dict[str, Any]) -> list[str]:
    """A row a model and budget: the optimality of the best of ours and of the best peer, by norm."""
    norms = ("linf", "l2", "l1", "l0")
    best = {
        (norm, model, passes): f"{ours:.3f} · {max(theirs.values()):.3f}"
        for model, norm, passes, ours, theirs in plots.optimalities(results["results"])
    }
    lines = ["| nearest success: **vauban** · best peer | " + " | ".join(norms) + " |", "|---" * 5 + "|"]
    for model, passes in sorted({(model, passes) for _, model, passes in best}):
        cells = [best.get((norm, model, passes), "–") for norm in norms]
        lines.append(f"| {model}, {passes:,} passes | {' | '.join(cells)} |")
    return lines


def _hardening(results: dict[str, Any]) -> list[str]:
    """A row a task: what is left by the cascade after equal time, and without attack."""
    tasks = {
        "mnist": "MNIST, linf 0.3", "fashion": "Fashion-MNIST, linf 0.1", "cifar": "CIFAR-10 (3,000), linf 8/255"
    }  # fmt: skip
    found = {name: {row["contender"]: row for row in results["results"][name]["rows"]} for name in tasks}
    names = [*dict.fromkeys(["loop", *(who for told in found.values() for who in told)])]
    lines = [
        f"| trained against attacks, equal time: clean · under attack | {' | '.join(_called(who) for who in names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for name, words in tasks.items():
        told = found[name]
        minutes = next(iter(told.values()))["minutes"]
        cells = [
            f"{100 * told[who]['clean']:.1f} · {100 * told[who]['robust']:.1f} %" if who in told else "–"
            for who in names
        ]
        lines.append(f"| {words}, {minutes:.0f} CPU min | {' | '.join(cells)} |")
    return lines


def _called(contender: str) -> str:
    return "plain PGD-7 loop" if contender == "loop" else f"**vauban** {contender}"


def bench_table() -> str:
    """The README's tables, from bench/results alone."""
    parts = []
    tables = (
        ("cascade", _cascade), ("evasion", _evasion), ("minimal_norm", _nearest), ("hardening", _hardening), ("leakage", _leakage)
    )  # fmt: skip
    for name, table in tables:
        if not (RESULTS / f"{name}.json").exists():
            continue
        results = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        parts.append("\n".join(table(results)))
    return "\n\n".join(parts)


def readme() -> str:
    """README.md with its table made anew."""
    text = README.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{bench_table()}\n{END}{rest.split(END)[1]}"


def main() -> None:
    README.write_text(readme(), encoding="utf-8")
    for name, (title, catalogue) in PAGES.items():
        (HERE / name).write_text(page(title, catalogue), encoding="utf-8")
    (HERE / "benchmarks.md").write_text(measured.page(), encoding="utf-8")
    (HERE / plots.FOLDER).mkdir(exist_ok=True)
    for name, svg in plots.pictures().items():
        (HERE / plots.FOLDER / name).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
