"""Ctrl-C in the middle of an audit: exit 130, one JSON document, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WORDS = "audit demo:digits-cnn --data demo:digits --include evasion --threat linf:0.1 --samples 20 --seed 0 --json"


@pytest.mark.slow
def test_an_interrupted_audit_says_so_and_is_resumed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vauban", *WORDS.split(), "--out", str(tmp_path / "run")]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = tmp_path / "stderr.txt"
    # a shell that runs tests in the background may have SIGINT ignored, which children inherit
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environ,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as process,
    ):
        until = time.monotonic() + 90
        while "[1/" not in log.read_text() and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(out)["error"]["code"] == "VB-INTERRUPTED"
    assert "resume" in log.read_text()
    assert "Traceback" not in log.read_text()
    again = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120, check=False)
    assert again.returncode in (0, 1)
    assert "resuming:" in again.stderr
    states = {a["state"] for a in json.loads(again.stdout)["attempts"]}
    assert states <= {"assessed", "skipped", "not_applicable"}
