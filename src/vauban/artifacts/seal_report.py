"""What sealing and verifying have to say."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Signature = Literal["valid", "wrong", "unsigned", "unchecked", "missing"]


@dataclass(frozen=True)
class Changed:
    """One changed element. `before` and `after` are numbers (text where not finite); bit 0 is the lowest."""

    tensor: str
    index: tuple[int, ...]
    bits: tuple[int, ...]
    before: float | int | bool | str
    after: float | int | bool | str

    def __str__(self) -> str:
        bits = ", ".join(map(str, self.bits))
        return f"{self.tensor}{list(self.index)}: bit {bits} changed, {self.before} became {self.after}"


@dataclass(frozen=True)
class Region:
    """Elements `first` to `last` (flat numbers, both included) of a tensor, of which two or more changed."""

    tensor: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.tensor}: two or more of elements {self.first} to {self.last} (flat) changed"


@dataclass(frozen=True)
class Sealed:
    """A seal that was written. `tensors` is None where the file is sealed as a whole."""

    path: str
    sha256: str
    tensors: int | None
    signed: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        what = "as a whole" if self.tensors is None else f"tensor by tensor ({self.tensors})"
        how = "signed" if self.signed else "not signed: it detects accidents, not an attacker who rewrites it"
        return f"Sealed {what} in {self.path}; {how}."


@dataclass(frozen=True)
class Report:
    """What has become of a sealed file."""

    path: str
    intact: bool
    """Every byte is as sealed, and the signature, where one was asked for, is right."""
    signature: Signature
    file_matches: bool
    changes: tuple[Changed, ...] = ()
    regions: tuple[Region, ...] = ()
    altered: tuple[str, ...] = ()
    """Tensors with any change, reshaped ones included."""
    missing: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    """Tensors with another dtype or shape."""
    count: int = 0
    """Elements known to have changed one by one; only the first thousand are in `changes`."""
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.path}: {'intact' if self.intact else 'NOT intact'} (signature {self.signature})"]
        lines += [str(change) for change in (*self.changes, *self.regions)]
        for title, names in (("missing", self.missing), ("added", self.added), ("other dtype or shape", self.reshaped)):
            lines += [f"{title}: {name}" for name in names]
        return "\n".join([*lines, *self.notes])
