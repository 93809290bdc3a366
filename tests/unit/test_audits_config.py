"""Configuration: precedence, and errors that name line and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vauban.audits.config import Config, resolve, seconds
from vauban.schema.errors import BadOption, UnknownName


def write(folder: Path, text: str) -> str:
    path = folder / "vauban.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_command_line_over_environment_over_file_over_default(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\nsamples: 10\nprofile: deep\n")
    config = resolve({"seed": 3, "samples": None}, path, {"VAUBAN_SEED": "2", "VAUBAN_SAMPLES": "20"})
    assert (config.seed, config.samples, config.profile, config.batch_size) == (3, 20, "deep", None)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("seed: 0\nprofil: smoke\n", 2, "did you mean profile"),
        ("seed: 0\n\nsamples: many\n", 3, "samples"),
        ("gates:\n  - metric: robust_accuracy\n    minn: 0.4\n", 3, "did you mean min"),
        ("gates:\n  - metric: a\n    min: 1\n  - metric: b\n", 4, "needs min or max"),
        ("seed: 0\nsuppress:\n  - rule: a\n    reason: b\n    until: 2027-01-01\n", 3, "suppress"),
        ("samples: 0\n", 1, "greater than 0"),
        ("seed: 0\ntime_limit: soon\n", 2, "write 90s, 10m or 1h30m"),
        ("seed: [\n", 2, "not valid YAML"),
        ("- a\n", 1, "made of keys"),
        ("seed: 0\nfail_on: hihg\n", 2, "critical"),
    ],
)
def test_an_error_names_its_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    with pytest.raises(BadOption) as caught:
        resolve({}, write(tmp_path, text), {})
    assert f"vauban.yaml, line {line}:" in str(caught.value)
    assert said in str(caught.value)


def test_an_error_outside_the_file_names_where_it_came_from(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 0\n")
    with pytest.raises(BadOption, match="VAUBAN_SEED: Input"):
        resolve({}, path, {"VAUBAN_SEED": "x"})
    with pytest.raises(BadOption, match="--time-limit"):
        resolve({"time_limit": "x"}, path, {})


def test_no_file() -> None:
    with pytest.raises(UnknownName, match="vauban init"):
        resolve({}, "nowhere.yaml", {})


def test_a_file_cannot_make_python_objects(tmp_path: Path) -> None:
    with pytest.raises(BadOption):
        resolve({}, write(tmp_path, "seed: !!python/object/apply:os.getcwd []\n"), {})


def test_suppressions_need_reason_owner_and_date(tmp_path: Path) -> None:
    whole = "suppress:\n  - {rule: a, reason: b, owner: c, until: 2027-01-01}\n"
    assert resolve({}, write(tmp_path, whole), {}).suppress[0].until == "2027-01-01"
    for missing in ("reason: b, ", "owner: c, ", ", until: 2027-01-01"):
        with pytest.raises(BadOption, match="Field required"):
            resolve({}, write(tmp_path, whole.replace(missing, "")), {})


def test_environment_speaks_lists_and_structures() -> None:
    config = resolve(
        {},
        None,
        {"VAUBAN_THREATS": "linf:0.1, l2:1", "VAUBAN_EXCLUDE": "leakage", "VAUBAN_GATES": "[{metric: m, min: 1}]"},
    )
    assert config.threats == ["linf:0.1", "l2:1"]
    assert config.exclude[0].id == "leakage"
    assert config.gates[0].metric == "m"


def test_a_folder_in_vauban_data_is_no_data_set(tmp_path: Path) -> None:
    assert resolve({}, None, {"VAUBAN_DATA": str(tmp_path)}).data is None
    assert resolve({}, None, {"VAUBAN_DATA": "demo:digits"}).data == "demo:digits"


@pytest.mark.parametrize(
    ("given", "wanted"), [("90", 90.0), ("90s", 90.0), ("10m", 600.0), ("1h30m", 5400.0), ("0.5h", 1800.0), (7, 7)]
)
def test_times(given: Any, wanted: float) -> None:
    assert seconds(given) == wanted


@pytest.mark.parametrize("given", ["", "m", "10 parsecs", "-5s"])
def test_no_times(given: str) -> None:
    with pytest.raises(ValueError, match="not a time"):
        seconds(given)


def test_every_option_of_the_command_line_is_a_key() -> None:
    import inspect

    from vauban.cli.auditing import NOT_CONFIG, audit, harden
    from vauban.cli.catalogue import explain

    for command in (audit, harden, explain):
        names = set(inspect.signature(command).parameters) - NOT_CONFIG - {"id"}
        assert names <= set(Config.model_fields)


def test_the_written_template_is_valid(tmp_path: Path) -> None:
    """Also with every comment taken off: what the comments show can be used as it stands."""
    import re

    from vauban.cli.setup import TEMPLATE

    resolve({}, write(tmp_path, TEMPLATE), {})
    whole = re.sub(r"^# (?=( |-|[a-z_]+:))", "", TEMPLATE, flags=re.M)
    whole = "\n".join(line for line in whole.splitlines() if not re.match(r"^[A-Z#]", line))
    config = resolve({}, write(tmp_path, whole), {})
    assert config.gates
    assert config.suppress
    assert config.exclude
