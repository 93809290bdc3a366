"""The error codes in the code and the headings in the docs are the same set."""

from __future__ import annotations

import re
from pathlib import Path

from vauban.schema import errors

ROOT = Path(__file__).resolve().parents[2]


def _classes() -> list[type[errors.VaubanError]]:
    return [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.VaubanError)]


def test_every_code_has_a_page_and_every_page_a_code() -> None:
    codes = {c.code for c in _classes()}
    headings = set(re.findall(r"^## (VB-[A-Z]+)$", (ROOT / "docs/errors.md").read_text(encoding="utf-8"), re.M))
    assert codes == headings


def test_codes_are_unique_and_exits_are_those_of_the_contract() -> None:
    classes = _classes()
    assert len({c.code for c in classes}) == len(classes)
    assert {c.exit_code for c in classes} <= {2, 3, 4}
