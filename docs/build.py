"""Write docs/attacks.md, defences.md and rules.md from the cards and docstrings: `make docs`."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

from vauban.attacks.catalog import ATTACKS
from vauban.core.registry import Catalogue
from vauban.defences.catalog import DEFENCES
from vauban.rules.catalog import RULES

HERE = Path(__file__).resolve().parent
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


def section(cls: Any) -> str:
    """One id as Markdown."""
    card = cls.card
    told = card.model_dump(mode="json")
    parts = [f"## {card.id}", f"**{card.name}.** {told.get('summary') or told.get('meaning', '')}"]
    if cls.__doc__ and dataclasses.is_dataclass(cls) and not cls.__doc__.startswith(f"{cls.__name__}("):
        parts.append(_arguments(inspect.cleandoc(cls.__doc__)))
    facts = [f"- {label}: {', '.join(told[key])}" for key, label in LISTS.items() if told.get(key)]
    parts += ["\n".join(facts)] if facts else []
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
    body = "\n\n".join(section(catalogue.load(name)) for name in catalogue.ids())
    return f"# {title}\n\nMade from the code by `make docs`.\n\n{body}\n"


def main() -> None:
    for name, (title, catalogue) in PAGES.items():
        (HERE / name).write_text(page(title, catalogue), encoding="utf-8")


if __name__ == "__main__":
    main()
