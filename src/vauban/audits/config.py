"""The configuration of a run: command line over environment over file over default, one meaning everywhere.

Every key below is a key of `vauban.yaml`, a `VAUBAN_<KEY>` variable and an option of the command line. What cannot be
read is named with the file, the line and the nearest key that would have been right.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from vauban.audits.gate import FailOn, Gate
from vauban.reports.words import LANGUAGES
from vauban.schema.errors import BadOption, CorruptFile, UnknownName, VaubanError
from vauban.schema.log import Suppression

Format = Literal["html", "json", "sarif", "junit", "md"]
OPTIONS = {"threats": "--threat", "formats": "--format", "defence": "--with", "about": "--class"}
"""Options that are not called like their key."""
PART = re.compile(r"(\d+(?:\.\d+)?)\s*([smh]?)")
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


class PlainLoader(yaml.SafeLoader):
    """Safe YAML in which a date stays the text that it was written as."""


PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def seconds(value: Any) -> Any:
    """`90`, `90s`, `10m`, `1h30m` as seconds; raises ValueError for anything else."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    parts = PART.findall(text)
    if not parts or PART.sub("", text).strip():
        raise ValueError(f"{value!r} is not a time: write 90s, 10m or 1h30m")
    return sum(float(amount) * UNITS[unit] for amount, unit in parts)


def listed(value: Any) -> Any:
    """A comma-separated string, or one thing, as a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, tuple) else value


class Exclusion(BaseModel):
    """A check or family left out, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    reason: str = "left out by the user"


def exclusions(value: Any) -> Any:
    return [{"id": item} if isinstance(item, str) else item for item in listed(value)]


def pair(value: Any) -> Any:
    """`0,1` as two numbers."""
    try:
        low, high = (float(side) for side in listed(value))
    except (TypeError, ValueError):
        raise ValueError("write the smallest and the largest valid input, such as 0,1") from None
    return low, high


def language(value: str) -> str:
    if value not in LANGUAGES:
        raise ValueError(f"there is no report in that language: choose from {', '.join(LANGUAGES)}")
    return value


Words = Annotated[list[str], BeforeValidator(listed)]


class Config(BaseModel):
    """One run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    target: str | None = None
    factory: str | None = None
    data: str | None = None
    label: str | None = None
    out: str | None = None
    threats: Words = Field(default_factory=list)
    include: Words = Field(default_factory=list)
    exclude: Annotated[list[Exclusion], BeforeValidator(exclusions)] = Field(default_factory=list)
    profile: str = "standard"
    time_limit: Annotated[float | None, BeforeValidator(seconds), Field(gt=0)] = None
    query_limit: Annotated[int | None, Field(gt=0)] = None
    samples: Annotated[int | None, Field(gt=0)] = None
    batch_size: Annotated[int | None, Field(gt=0)] = None
    seed: Annotated[int, Field(ge=0)] = 0
    classes: Annotated[int | None, Field(gt=1)] = None
    bounds: Annotated[tuple[float, float] | None, BeforeValidator(pair)] = None
    kind: Literal["image", "tabular"] | None = None
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Hyper-parameters by attack or defence: `{evasion.pgd: {steps: 100}}`."""
    suppress: list[Suppression] = Field(default_factory=list)
    gates: list[Gate] = Field(default_factory=list)
    fail_on: FailOn = "high"
    formats: Annotated[list[Format], BeforeValidator(listed)] = ["json", "html"]  # pydantic copies defaults
    lang: Annotated[list[Annotated[str, AfterValidator(language)]], BeforeValidator(listed)] = Field(
        default_factory=lambda: ["en"]
    )
    executor: str = "local"
    trust_pickle: bool = False
    defence: str | None = None
    tensorboard: str | None = None
    # what `vauban explain` is asked about a model's answers
    input: Annotated[list[int], BeforeValidator(listed)] = Field(default_factory=list)
    method: str | None = None
    baseline: str | None = None
    about: int | None = None
    attack: str | None = None


def resolve(given: Mapping[str, Any], path: str | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration that applies.

    Args:
        given: what was said on the command line or in the call; None means not said.
        path: a YAML file; where None, `VAUBAN_CONFIG`.
        environ: the environment.

    Raises BadOption naming the key, where it stands, and the nearest valid one.
    """
    path = path or environ.get("VAUBAN_CONFIG")
    from_file, lines = read(Path(path)) if path else ({}, {})
    from_environment = {k: v for k in Config.model_fields if (v := _variable(k, environ)) is not None}
    from_call = {k: v for k, v in given.items() if v is not None and v != []}
    merged = {**from_file, **from_environment, **from_call}
    origin = {k: f"{path}, line {lines.get((k,), 1)}" for k in from_file}
    origin |= {k: f"VAUBAN_{k.upper()}" for k in from_environment}
    origin |= {k: OPTIONS.get(k, f"--{k.replace('_', '-')}") for k in from_call}
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise _explain(error, origin, lines if path else {}, path) from None


def _variable(key: str, environ: Mapping[str, str]) -> Any:
    """A variable's value; structured keys are written as YAML. VAUBAN_DATA naming a folder is where data lies, no data set."""
    text = environ.get(f"VAUBAN_{key.upper()}")
    if text is None or text == "" or (key == "data" and Path(text).is_dir()):
        return None
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return yaml.load(text, Loader=PlainLoader)
    except yaml.YAMLError:
        raise BadOption(f"VAUBAN_{key.upper()} is not valid YAML: {text[:60]!r}.") from None


Lines = dict[tuple[str | int, ...], int]


def read(path: Path) -> tuple[dict[str, Any], Lines]:
    """A YAML file's keys, and the line of each (from 1) by its path."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UnknownName(f"There is no configuration file {path}: write one with `vauban init`.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptFile(f"The configuration file {path} cannot be read ({error}).") from None
    try:
        tree = yaml.compose(text, Loader=PlainLoader)
        content = yaml.load(text, Loader=PlainLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        why = getattr(error, "problem", None) or "it cannot be parsed"
        raise BadOption(f"{path}{where}: this is not valid YAML ({why}).") from None
    if content is None:
        return {}, {}
    if not isinstance(content, dict):
        raise BadOption(f"{path}, line 1: a configuration is made of keys and values, such as  profile: smoke.")
    lines: Lines = {}
    _mark(tree, (), lines)
    return {str(k): v for k, v in content.items()}, lines


def _mark(node: Any, at: tuple[str | int, ...], lines: Lines) -> None:
    children: list[tuple[str | int, Any, Any]] = []
    if isinstance(node, yaml.MappingNode):
        children = [(str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(i, value, value) for i, value in enumerate(node.value)]
    for name, key, value in children:
        lines[(*at, name)] = key.start_mark.line + 1
        _mark(value, (*at, name), lines)


def _explain(error: ValidationError, origin: Mapping[str, str], lines: Lines, path: str | None) -> VaubanError:
    """One sentence for the first thing that is wrong."""
    first = error.errors(include_url=False)[0]
    loc: tuple[str | int, ...] = tuple(p for p in first["loc"])
    top = str(loc[0]) if loc else ""
    known = next((loc[:i] for i in range(len(loc), 0, -1) if loc[:i] in lines), None)
    in_file = known is not None and origin.get(top, "").startswith(f"{path}, line")
    where = f"{path}, line {lines[known]}" if in_file and known is not None else origin.get(top, "configuration")
    name = ".".join(str(part) for part in loc if "[" not in str(part))  # brackets: pydantic's branches of a union
    if first["type"] == "extra_forbidden":
        return BadOption(f"{where}: there is no key {name!r}{_nearest(loc)}")
    why = str(first["msg"]).removeprefix("Value error, ")
    value = first.get("input")
    shown = f" (given: {value!r})" if first["type"] != "missing" and not isinstance(value, dict | list) else ""
    named = f"{name}: " if in_file or name != top else ""  # an option or variable names its key itself
    return BadOption(f"{where}: {named}{why}{shown}.")


def _nearest(loc: tuple[str | int, ...]) -> str:
    model: Any = {"suppress": Suppression, "gates": Gate, "exclude": Exclusion}.get(str(loc[0]), Config)
    keys = list((model if len(loc) > 1 else Config).model_fields)
    near = difflib.get_close_matches(str(loc[-1]), keys, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f". Keys are: {', '.join(keys)}."


FORMATS: tuple[str, ...] = get_args(Format)
