"""Rows of real-valued features; everything that is not a picture is shown this way."""

from __future__ import annotations

import torch
from torch import Tensor

from vauban.core.target import Domain
from vauban.domains.box import Boxed
from vauban.schema.log import Bars, Exhibit

SHOWN, BARS = 12, 8
"""Features in the table and in the chart, at most."""


class Tabular(Boxed):
    """Feature vectors `[n, d]` (any other shape is flattened for show)."""

    kind = "tabular"

    def exhibit(
        self,
        clean: Tensor,
        changed: Tensor | None,
        before: Tensor | None,
        after: Tensor | None,
        captions: list[str],
        domain: Domain,
    ) -> Exhibit:
        """A table of the first row's features, at most 12, and bars of those with the largest attributions, at most 8.

        Those that changed most come first in the table (those with the largest attributions where nothing changed).
        """
        old = _flat(clean)
        new = old if changed is None else _flat(changed)
        was = torch.zeros_like(old) if before is None else _flat(before)
        now = was if after is None else _flat(after)
        weight = torch.maximum(was.abs(), now.abs())
        order = (was if changed is None else new - old).abs().argsort(descending=True, stable=True)[:SHOWN].tolist()
        names = domain.feature_names if len(domain.feature_names) == len(old) else tuple(map(str, range(len(old))))
        columns: list[tuple[str, Tensor, str]] = [("value" if changed is None else "clean", old, ".4g")]
        columns += [] if changed is None else [("changed", new, ".4g"), ("difference", new - old, "+.3g")]
        columns += [] if before is None else [("attribution" if after is None else "attribution before", was, "+.3g")]
        columns += [] if after is None else [("attribution after", now, "+.3g")]
        return Exhibit(
            title=captions[0] if captions else "Adversarial example",
            note=_note(old, new, changed is not None),
            columns=["feature", *(name for name, _, _ in columns)],
            rows=[[names[i], *(format(float(v[i]), how) for _, v, how in columns)] for i in order],
            bars=None if before is None else _bars(names, was, None if after is None else now, weight),
        )


def _flat(x: Tensor) -> Tensor:
    """The first row as float64 `[d]`."""
    return x[0].detach().cpu().double().flatten()


def _note(old: Tensor, new: Tensor, attacked: bool) -> str:
    moved = int((new != old).sum())
    most = "that changed most" if attacked else "with the largest attributions"
    parts = [f"{moved} of {len(old)} features changed"] if attacked else []
    parts += [f"the {SHOWN} {most} are shown"] if len(old) > SHOWN else []
    return f"{'; '.join(parts)}." if parts else ""


def _bars(names: tuple[str, ...], was: Tensor, now: Tensor | None, weight: Tensor) -> Bars:
    """The features with the largest attributions, before and after."""
    order = weight.argsort(descending=True, stable=True)[:BARS].tolist()
    series = [("attribution", was)] if now is None else [("before", was), ("after", now)]
    return Bars(
        title="What the answer rests on most",
        labels=[names[i] for i in order],
        series=[name for name, _ in series],
        values=[[float(v[i]) for i in order] for _, v in series],
    )
