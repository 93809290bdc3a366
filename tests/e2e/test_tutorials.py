"""The tutorials do what they say, one after another in one folder."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

PAGES = ["1-attack", "2-adversarial-training", "3-distillation", "4-generated-data", "5-private-training"]
PICTURES = ["attacked", "hardened", "distilled", "generated", "private"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.data
def test_tutorials_run(tmp_path: Path) -> None:
    folder = os.environ.get("VAUBAN_DATA")
    if not folder or not (Path(folder) / "mnist" / "mnist.npz").exists():
        pytest.skip("VAUBAN_DATA names no folder with mnist/mnist.npz")
    spec = importlib.util.spec_from_file_location("docs_blocks", ROOT / "tests" / "meta" / "test_meta_docs.py")
    assert spec is not None
    assert spec.loader is not None
    docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docs)
    (tmp_path / "mnist.npz").symlink_to(Path(folder) / "mnist" / "mnist.npz")
    for name in PAGES:
        docs.run_page(ROOT / "docs" / "tutorials" / f"{name}.md", tmp_path, {"PYTHONPATH": str(tmp_path)})
    for name in PICTURES:
        assert (tmp_path / f"{name}.png").stat().st_size > 5000, name
