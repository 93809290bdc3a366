"""Two processes that train one model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vauban.core.crew import ALONE
from vauban.integrations.accelerate import crew
from vauban.schema.errors import MissingExtra

HERE = Path(__file__).parent
WORDS = (
    "harden demo:digits-cnn --with train.trades --data demo:digits --threat linf:0.1 --include evasion.fgsm --profile smoke "
    "--samples 24 --set epochs=2 --set validation=0.1 --fail-on never"
)


TORCHRUN = "torch.distributed.run --nproc_per_node 2"
ACCELERATE = "accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 29737"
"""Which is no matter of GPUs: with --cpu it would start one process."""


def launch(*words: str, folder: Path, by: str = TORCHRUN) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *by.split(), *words]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=300, check=False)


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    done = launch(str(HERE / "crew_script.py"), str(tmp_path), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert told == [{"size": 2, "rank": 0, "stopped": 2}, {"size": 2, "rank": 1, "stopped": None}]


@pytest.mark.slow
def test_a_hardening_by_two_processes_writes_and_speaks_once(tmp_path: Path) -> None:
    words = [*WORDS.split(), "--out", "run", "--tensorboard", "run/diary", "--json"]
    done = launch("-m", "vauban", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    log = json.loads(done.stdout)
    assert log["before_after"]["defence"] == "train.trades"
    assert done.stderr.count("defending: TRADES") == 1
    assert len(list((tmp_path / "run" / "diary").iterdir())) == 1
    again = launch("-m", "vauban", *words, folder=tmp_path, by=ACCELERATE)
    assert again.returncode == 0, again.stderr
    assert "was made before" in again.stderr
    alone = [sys.executable, "-m", "vauban", *WORDS.split(), "--out", "alone"]
    assert subprocess.run(alone, cwd=tmp_path, capture_output=True, check=False, timeout=300).returncode == 0
    both = [load_file(tmp_path / name / "model.safetensors") for name in ("run", "alone")]
    for name, value in both[0].items():
        # Adam makes much of the last bits of small gradients: this compares models, crew_script compares weights
        assert float((value - both[1][name]).abs().max()) < 0.05 * float(value.abs().max())
    wrong = launch("-m", "vauban", *words[:-5], "--out", "alone", "--seed", "1", folder=tmp_path)
    assert wrong.returncode != 0
    assert wrong.stderr.count("error[VB-FOLDER]") == 1
    assert "VB-INTERNAL" not in wrong.stderr


SCRIPT = """
import os
import vauban
after = vauban.harden(
    "demo:digits-cnn", "demo:digits", defence="train.pgd", threat="linf:0.1", include=["evasion.fgsm"], profile="smoke", samples=10,
    settings={"train.pgd": {"epochs": 1}}, exclude=["evasion.square", "evasion.apgd", "evasion.apgd_targeted"],
)
rank = os.environ["RANK"]
open(f"{rank}.txt", "w").write(f"{after.target.sha256()} {after.log.run.id} {after.comparison.facts['clean_accuracy_after']}")
"""


@pytest.mark.slow
def test_a_script_gets_the_same_in_each_process(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = launch("script.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "0.txt").read_text() == (tmp_path / "1.txt").read_text() != ""


def test_without_a_launcher_a_process_is_alone() -> None:
    assert crew(environ={}) is ALONE
    assert ALONE.same(lambda: 3) == 3


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtra, match=r"pip install 'vauban\[train\]'"):
        crew(environ={"LOCAL_RANK": "1"})


def test_who_asks_accelerate_for_processes_on_cpus_is_told_that_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtra):
        crew(told.append, {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"})
    assert told
    assert "torchrun --nproc_per_node 2" in told[0]
