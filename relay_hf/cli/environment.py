"""The versions and the hardware that a measurement or a self-check belongs to."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

import relay_hf


def environment() -> dict[str, Any]:
    """Versions of the packages that compute, and the machine's processor, cores, torch's threads and memory (GiB)."""
    packages = ("torch", "transformers")
    return {
        "versions": {"python": platform.python_version(), "relay_hf": relay_hf.__version__}
        | {package: version(package) for package in packages},
        "hardware": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": f"{platform.system()} {platform.machine()}",
        },
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
