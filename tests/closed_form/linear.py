"""The linear target that attacks are held against: the nearest success is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vauban.core.target import Domain, Outputs
from vauban.schema.access import EVERYTHING


@dataclass(frozen=True, eq=False)
class Linear:
    """Logits are inputs weighted by `w` `[classes, ...]`, and `b`; as `values`, the first of them. Its features are its inputs."""

    w: Tensor
    b: Tensor | float = 0.0
    kind: Any = "logits"
    id: str = "linear"
    domain: Domain = Domain()  # noqa: RUF009
    offers: Any = EVERYTHING
    recipe: None = None

    def forward(self, x: Tensor) -> Outputs:
        offset = self.b.to(x) if isinstance(self.b, Tensor) else self.b
        out = x.flatten(1) @ self.w.flatten(1).T.to(x) + offset
        return Outputs(out[:, 0] if self.kind == "values" else out, self.kind)

    def forward_features(self, x: Tensor) -> tuple[Outputs, Tensor]:
        return self.forward(x), x.flatten(1)

    def sha256(self) -> str:
        return "linear"

    def settled(self, domain: Domain) -> Linear:
        return self
