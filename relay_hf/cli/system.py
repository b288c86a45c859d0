"""What a machine has: packages and what is needed of them, and the hardware."""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Package:
    """A package that relay_hf needs: the version that is installed (None: it isn't), and those that will do."""

    name: str
    installed: str | None
    needed: str
    fits: bool


def packages() -> list[Package]:
    """Python, and what relay_hf's own metadata asks for; nothing is imported."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    ours = metadata.metadata("relay_hf")
    wanted: list[tuple[str, str | None, SpecifierSet]] = [
        ("python", platform.python_version(), SpecifierSet(ours["Requires-Python"]))
    ]
    for line in metadata.requires("relay_hf") or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            wanted.append((requirement.name, _version(requirement.name), requirement.specifier))
    return [
        Package(
            name,
            found,
            ", ".join(sorted(map(str, needed), reverse=True)),
            found is not None and needed.contains(found, prereleases=True),
        )
        for name, found, needed in wanted
    ]


def gpu(device: torch.device) -> dict[str, Any]:
    """Of a CUDA device: name, compute capability, memory (GiB), driver."""
    import torch

    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": _driver(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return next(iter(done.stdout.splitlines()), "unknown")
