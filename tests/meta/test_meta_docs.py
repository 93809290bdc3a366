"""What the docs tell people to type, works: every python and bash block of README and docs is run, in order."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.M | re.S)
SMALL = {"VAUBAN_SAMPLES": "24", "VAUBAN_PROFILE": "smoke", "MPLBACKEND": "agg", "PYTHONWARNINGS": "error"}
HOUSEKEEPING = ("make ", "pip ", "git ", "cd ")


def _blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p)], ids=lambda p: p.name)
def test_examples_run(page: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path, {})


def run_page(page: Path, folder: Path, more: dict[str, str]) -> None:
    """Its blocks in order, each in a process of its own, in one folder."""
    env = {**os.environ, **SMALL, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    env |= {k: f"{v}:{env[k]}" if k in env and k == "PYTHONPATH" else v for k, v in more.items()}
    for kind, text in _blocks(page):
        if kind == "python":
            done = subprocess.run([sys.executable, "-c", text], cwd=folder, env=env, capture_output=True, text=True)
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
            continue
        for line in text.replace("\\\n", " ").splitlines():
            command, _, note = line.partition("#")
            command = command.strip()
            if not command or command.startswith(HOUSEKEEPING):
                continue
            done = subprocess.run(shlex.split(command), cwd=folder, env=env, capture_output=True, text=True)
            wanted = re.search(r"exit (\d+)", note)
            allowed = {int(wanted.group(1))} if wanted else {0, 1}
            assert done.returncode in allowed, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_generated_pages_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make docs` after changing a card or docstring, or a measured result."""
    monkeypatch.syspath_prepend(str(ROOT))
    build = importlib.import_module("docs.build")
    for name, (title, catalogue) in build.PAGES.items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == build.page(title, catalogue), (
            f"{name}: run make docs"
        )
    assert (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8") == build.measured.page(), "run make docs"
    assert build.README.read_text(encoding="utf-8") == build.readme(), "README.md: run make docs"
    folder = ROOT / "docs" / build.plots.FOLDER
    drawn = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert drawn == build.plots.pictures(), "docs/plots: run make docs"
