"""What a run was made with: versions and machine. No names of people, hosts or folders."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "pydantic", "safetensors", "opacus", "skops")


@cache
def version() -> str:
    """Vauban's own version."""
    return installed("vauban")


def versions() -> dict[str, str]:
    """Python, Vauban and the packages that numbers depend on; those that are not installed are left out."""
    found = {"python": platform.python_version(), "vauban": version()}
    for name in PACKAGES:
        try:
            found[name] = installed(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """Processor, cores, threads, memory and accelerator."""
    import torch

    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": str(os.cpu_count() or 1),
        "threads": str(torch.get_num_threads()),
        "memory": _memory(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
    }


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (ValueError, OSError, AttributeError):
        return "unknown"
