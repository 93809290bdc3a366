"""D. Doubts that show only between attacks: who broke what."""

from __future__ import annotations

from collections.abc import Sequence

from vauban.schema.access import Access
from vauban.schema.log import Attempt, Doubt


def contradictions(
    attempts: Sequence[Attempt], cards: dict[str, Access], one_step: str = "evasion.fgsm"
) -> dict[int, list[Doubt]]:
    """Doubts that show only between attacks of one threat: by number of the attempt that they speak of.

    An attack with less knowledge should not break what one with more does not; one step should not beat many.
    """
    found: dict[int, list[Doubt]] = {}
    threats = {a.threat for a in attempts if a.outcomes}
    for threat in sorted(threats, key=str):
        group = {i: a for i, a in enumerate(attempts) if a.threat == threat and a.outcomes and a.state == "assessed"}
        white = [i for i in group if Access.GRADIENTS in cards.get(group[i].check, Access.NONE)]
        strong = [i for i in white if group[i].check != one_step]
        if not strong:
            continue
        union = _union([group[i].outcomes for i in strong])
        black = [i for i in group if i not in white]
        for rivals, name, text in (
            (
                black,
                "black_box_wins",
                "An attack that sees only answers broke {k} samples that no gradient attack broke.",
            ),
            (
                [i for i in white if group[i].check == one_step],
                "one_step_wins",
                "One gradient step broke {k} samples that many steps did not.",
            ),
        ):
            only = {
                i: sum(r == "b" and u == "h" for r, u in zip(group[i].outcomes, union, strict=False)) for i in rivals
            }
            for i, count in only.items():
                share = count / max(1, len(union))
                found.setdefault(i, []).append(
                    Doubt(
                        id=name,
                        verdict="fail" if share > 0.02 else ("warn" if count else "pass"),
                        value=float(count),
                        threshold=0.02 * len(union),
                        text=text.format(k=count),
                        remedy="gradients are misleading here (masking): raise steps and restarts, use another loss, and "
                        "do not call the model robust on the gradient attacks' figure",
                    )
                )
    return found


def _union(outcomes: Sequence[str]) -> str:
    return "".join(
        "w" if "w" in letters else "b" if "b" in letters else "h" for letters in zip(*outcomes, strict=False)
    )
