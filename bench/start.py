"""How long until something happens: `import vauban` without torch, and `vauban --help`.

    python bench/start.py

Bars: 0.3 s and 0.5 s (median of 5, fresh processes, files in the page cache). Writes results/start.json.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import common

VAUBAN = str(Path(sys.executable).with_name("vauban"))
COMMANDS: dict[str, tuple[list[str], float | None]] = {
    "python, nothing else": ([sys.executable, "-c", "pass"], None),
    "import vauban": ([sys.executable, "-c", "import vauban, sys; assert 'torch' not in sys.modules"], 0.3),
    "vauban --help": ([VAUBAN, "--help"], 0.5),
    "vauban list": ([VAUBAN, "list"], None),
    "import torch": ([sys.executable, "-c", "import torch"], None),
}


def seconds(command: list[str], times: int = 5) -> tuple[list[float], int]:
    """Wall seconds of each run after one that warms the page cache, and the last exit code."""
    found, code = [], 0
    for _ in range(times + 1):
        started = time.perf_counter()
        code = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode
        found.append(time.perf_counter() - started)
    return found[1:], code


def main() -> None:
    rows = []
    for name, (command, bar) in COMMANDS.items():
        times, code = seconds(command)
        middle = round(statistics.median(times), 3)
        met = None if bar is None else middle <= bar and code == 0
        rows.append({"what": name, "median_s": middle, "bar_s": bar, "met": met, "exit": code, "runs": times})
    print(common.table(rows, ["what", "median_s", "bar_s", "met", "exit"]))
    common.write("start", {"results": rows})


if __name__ == "__main__":
    main()
