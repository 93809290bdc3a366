"""Every error a user can meet.

VaubanError
├── UsageError            exit 2   what was given cannot be used
│   ├── BadOption         VB-OPTION
│   ├── BadThreat         VB-THREAT
│   ├── BadData           VB-DATA
│   ├── BadTarget         VB-TARGET
│   ├── WrongUnits        VB-UNITS
│   ├── UntrustedFile     VB-UNTRUSTED
│   ├── CorruptFile       VB-CORRUPT
│   ├── MissingExtra      VB-EXTRA
│   ├── UnknownName       VB-NAME
│   ├── RunFolder         VB-FOLDER
│   └── NotOffered        VB-ACCESS
├── Unassessed            exit 3   VB-UNASSESSED   too little could be examined for a verdict
├── DiskFull              exit 4   VB-DISK
└── Limit                 (inside)  a budget ran out; the engine turns it into a state, users never see it raised

A message says what was given, why it cannot be used, and what to do instead, in one sentence or two.
"""

from __future__ import annotations

from typing import ClassVar


class VaubanError(Exception):
    """An error with a code, a page (docs/errors.md) and an exit status."""

    code: ClassVar[str] = "VB-INTERNAL"
    exit_code: ClassVar[int] = 4

    @property
    def page(self) -> str:
        return f"docs/errors.md#{self.code.lower()}"


class UsageError(VaubanError):
    """What was given cannot be used."""

    code = "VB-USAGE"
    exit_code = 2


class BadOption(UsageError):
    """An option or configuration key has a value outside what it takes."""

    code = "VB-OPTION"


class BadThreat(UsageError):
    """A threat cannot be read, or does not apply to this kind of data."""

    code = "VB-THREAT"


class BadData(UsageError):
    """The data cannot be used: shape, dtype, NaN, labels, one class, nothing in it."""

    code = "VB-DATA"


class BadTarget(UsageError):
    """The model cannot be used: wrong output shape, NaN, not callable, wrong number of classes."""

    code = "VB-TARGET"


class WrongUnits(UsageError):
    """Model, data and declared range do not speak of the same units."""

    code = "VB-UNITS"


class UntrustedFile(UsageError):
    """The file can run code when it is loaded, and nobody said that it may."""

    code = "VB-UNTRUSTED"


class CorruptFile(UsageError):
    """The file is damaged or is not what its name says."""

    code = "VB-CORRUPT"


class MissingExtra(UsageError):
    """A package that this needs is not installed."""

    code = "VB-EXTRA"

    @classmethod
    def of(cls, what: str, extra: str) -> MissingExtra:
        return cls(f"{what} needs a package that is not installed: run  pip install 'vauban[{extra}]'")


class UnknownName(UsageError):
    """No attack, defence, rule, demo or file of that name."""

    code = "VB-NAME"


class RunFolder(UsageError):
    """The output folder holds something else."""

    code = "VB-FOLDER"


class NotOffered(UsageError):
    """An attack asked for something that the threat model does not grant or the target does not offer."""

    code = "VB-ACCESS"


class Unassessed(VaubanError):
    """Too little could be examined for a verdict."""

    code = "VB-UNASSESSED"
    exit_code = 3


class DiskFull(VaubanError):
    """Nothing more can be written; what was finished is kept."""

    code = "VB-DISK"


class Limit(VaubanError):
    """A time or query budget ran out. The engine catches it; what was found until then is valid."""

    code = "VB-LIMIT"
