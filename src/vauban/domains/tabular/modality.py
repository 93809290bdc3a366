"""Rows of real-valued features; everything that is not a picture is shown this way."""

from __future__ import annotations

from torch import Tensor

from vauban.core.target import Domain
from vauban.domains.box import Boxed
from vauban.schema.log import Exhibit

SHOWN = 12


class Tabular(Boxed):
    """Feature vectors `[n, d]` (any other shape is flattened for show)."""

    kind = "tabular"

    def exhibit(
        self, clean: Tensor, changed: Tensor, before: Tensor, after: Tensor, captions: list[str], domain: Domain
    ) -> Exhibit:
        """A table of the first row's features, at most 12, those that changed most first."""
        old, new, was, now = (t[0].detach().cpu().double().flatten() for t in (clean, changed, before, after))
        difference = new - old
        order = difference.abs().argsort(descending=True, stable=True)
        names = domain.feature_names if len(domain.feature_names) == len(old) else tuple(map(str, range(len(old))))
        rows = [
            [names[i], *(f"{float(v[i]):.4g}" for v in (old, new)), f"{float(difference[i]):+.3g}"]
            + [f"{float(v[i]):+.3g}" for v in (was, now)]
            for i in order[:SHOWN].tolist()
        ]
        moved = int((difference != 0).sum())
        shown = f"; the {SHOWN} that changed most are shown" if len(old) > SHOWN else ""
        return Exhibit(
            title=captions[0] if captions else "Adversarial example",
            note=f"{moved} of {len(old)} features changed{shown}.",
            columns=["feature", "clean", "changed", "difference", "attribution before", "attribution after"],
            rows=rows,
        )
