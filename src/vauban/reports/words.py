"""The report's fixed sentences in other languages; English is the key."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files

from vauban.schema.errors import BadOption

Translate = Callable[[str], str]
LANGUAGES = {"en": "English", "zh": "中文"}


@cache
def catalogue(lang: str) -> dict[str, str]:
    """English -> the other language; empty for English itself."""
    if lang == "en":
        return {}
    loaded: dict[str, str] = json.loads(
        files("vauban.reports").joinpath(f"words.{lang}.json").read_text(encoding="utf-8")
    )
    return loaded


def translator(lang: str) -> Translate:
    """Looks sentences up; one that is missing stays English. Raises BadOption for a language that is not there."""
    if lang not in LANGUAGES:
        raise BadOption(f"There is no report in the language {lang!r}: choose from {', '.join(LANGUAGES)}.")
    words = catalogue(lang)
    return lambda text: words.get(text, text)
